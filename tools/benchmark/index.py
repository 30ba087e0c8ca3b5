"""How fast, how lean and how small the index of a data set of VISION V1's size is.

    python -m tools.benchmark.index ROOT OBJECT ...

is the process that is measured: it indexes those objects, saves the index beside them, and prints what it took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.rle import rle_of_annotation
from datasets.readers import vision_v1
from datasets.samples import load_or_build
from tools.benchmark.figures import EXACTLY, Figure

VISION_IMAGES, VISION_SIZE = 1900, (2748, 3840)
_PRODUCTS = [f"Product_{number:02d}" for number in range(14)]
_CATEGORIES = ["pit", "scratch", "stain"]
_SAVED = "index"  # below ROOT
_LARGE_SHARE, _RLE_SHARE = 0.05, 0.1
_MB = 1e6


def measure_index(
    *, images: int = VISION_IMAGES, size: tuple[int, int] = VISION_SIZE
) -> list[Figure]:
    """Figures of building, saving and loading the index of a procedural data set, measured in a process of its own.

    Needs Linux, which tells a process its peak memory. The bounds grow with the number of images and hold for images
    up to VISION_SIZE.

    Args:
        images: labelled images, spread over 14 products.
        size: (h, w) of every image, pixels.

    Raises:
        subprocess.CalledProcessError: the measured process failed; its message is on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="sofs-index-") as folder:
        written = write_data_set(Path(folder), images, size)
        took = _measured_process(Path(folder))
        saved = sum(path.stat().st_size for path in Path(folder, _SAVED).rglob("*.json"))
    return [
        Figure("index", "labelled images", took["images"], bound=images, kind=EXACTLY),
        Figure("index", "samples", took["samples"], bound=written, kind=EXACTLY),
        Figure(
            "index",
            "samples of the saved index that load as built",
            took["same"],
            bound=written,
            kind=EXACTLY,
        ),
        Figure("index", "build and save", took["build_s"], "s", 5 + 0.01 * images),
        Figure(
            "index",
            "peak memory above that of the imports",
            took["peak_bytes"] / _MB,
            "MB",
            50 + 0.02 * images,
        ),
        Figure("index", "saved index", saved / _MB, "MB", 0.01 * images),
        Figure("index", "load", took["load_s"], "s", 0.5 + 0.001 * images),
    ]


def write_data_set(root: Path, images: int, size: tuple[int, int]) -> int:
    """Writes labelled images of size (h, w) in the layout of VISION V1; returns the number of samples they hold.

    All images are one file under many names, as only their headers matter. An image has one to six shapes, most of
    them small, each with its centre inside the image.
    """
    rng = np.random.default_rng(0)
    parts: dict[Path, dict[str, list]] = {}
    samples = 0
    for number in range(images):
        product, turn = _PRODUCTS[number % len(_PRODUCTS)], number // len(_PRODUCTS)
        folder = root / product / vision_v1.PARTS[turn % 4 == 3]
        content = parts.setdefault(
            folder, {"images": [], "annotations": [], "categories": _categories()}
        )
        shapes = _annotations(number, size, rng)
        content["images"].append(
            {"id": number, "file_name": f"{number}.jpg", "height": size[0], "width": size[1]}
        )
        content["annotations"] += shapes
        samples += len({shape["category_id"] for shape in shapes})
    _write(parts, size)
    return samples


def _write(parts: dict[Path, dict[str, list]], size: tuple[int, int]) -> None:
    first: Path | None = None
    for folder, content in parts.items():
        folder.mkdir(parents=True)
        (folder / vision_v1.ANNOTATIONS).write_text(json.dumps(content))
        for image in content["images"]:
            path = folder / image["file_name"]
            if first is None:
                Image.new("L", size[::-1], 128).save(path)
                first = path
            else:
                os.link(first, path)


def _categories() -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for number, name in enumerate(_CATEGORIES)]


def _annotations(
    image: int, size: tuple[int, int], rng: np.random.Generator
) -> list[dict[str, Any]]:
    return [
        {
            "id": 6 * image + number,
            "image_id": image,
            "category_id": int(rng.integers(len(_CATEGORIES))),
            "segmentation": _box(size, rng) if rng.random() < _RLE_SHARE else [_polygon(size, rng)],
        }
        for number in range(rng.integers(1, 7))
    ]


def _centre_and_radius(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, float]:
    """y, x and radius in pixels: a thousandth to a fiftieth of the shorter side, or up to a third."""
    shares = (0.02, 0.35) if rng.random() < _LARGE_SHARE else (0.001, 0.02)
    radius = min(size) * float(np.exp(rng.uniform(*np.log(shares))))
    return int(rng.integers(size[0])), int(rng.integers(size[1])), radius


def _polygon(size: tuple[int, int], rng: np.random.Generator) -> list[float]:
    """A star around a point of the image; it may reach past the border."""
    y, x, radius = _centre_and_radius(size, rng)
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(6, 60)))
    lengths = radius * rng.uniform(0.7, 1, len(angles))
    corners = np.stack([x + lengths * np.cos(angles), y + lengths * np.sin(angles)], axis=1)
    return [x, y, *corners.round(2).ravel().tolist()]


def _box(size: tuple[int, int], rng: np.random.Generator) -> dict[str, Any]:
    """Run lengths of a box inside the image, as a list or compressed."""
    y, x, radius = _centre_and_radius(size, rng)
    height, width = (
        min(end - start, 1 + int(radius)) for start, end in ((y, size[0]), (x, size[1]))
    )
    before = x * size[0] + y
    counts = [before, *[height, size[0] - height] * (width - 1), height]
    listed = {"size": list(size), "counts": [*counts, size[0] * size[1] - sum(counts)]}
    return listed if rng.random() < 0.5 else rle_of_annotation(listed, size)


def _measured_process(root: Path) -> dict[str, float]:
    objects = sorted(path.name for path in root.iterdir())
    command = [sys.executable, "-m", "tools.benchmark.index", str(root), *objects]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def _memory(kind: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its peak; getrusage's peak would be that of the parent process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[kind].split()[0])


def _main(root: str, *objects: str) -> None:
    before, start = _memory("VmRSS"), time.perf_counter()
    built = load_or_build(
        vision_v1, "VISION_V1", root, objects, Path(root, _SAVED), save=True, load=False
    )
    build_s, peak = time.perf_counter() - start, _memory("VmHWM")
    start = time.perf_counter()
    loaded = load_or_build(
        vision_v1, "VISION_V1", root, objects, Path(root, _SAVED), save=False, load=True
    )
    load_s = time.perf_counter() - start
    same = sum(one == other for one, other in zip(built.samples, loaded.samples, strict=True))
    took = {
        "build_s": build_s,
        "load_s": load_s,
        "peak_bytes": peak - before,
        "samples": len(built),
        "same": same,
    }
    print(json.dumps(took | {"images": len({sample.image for sample in built.samples})}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
