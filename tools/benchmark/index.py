"""How fast, how lean and how small the index of a data set of VISION V1's size is.

    python -m tools.benchmark.index ROOT OBJECT ...

is the process that is measured: it indexes those objects, saves the index beside them, and prints
what it took.
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

from datasets.readers import vision_v1
from datasets.samples import load_or_build
from tools.benchmark.figures import EXACTLY, Figure

VISION_IMAGES, VISION_SIZE = 1900, (2748, 3840)
PRODUCTS = [f"Product_{number:02d}" for number in range(14)]
CATEGORIES = [
    {"id": number, "name": name} for number, name in enumerate(("pit", "scratch", "stain"))
]
SAVED = "index"  # below ROOT
LARGE_SHARE, RLE_SHARE = 0.05, 0.1


def measure_index(
    *, images: int = VISION_IMAGES, size: tuple[int, int] = VISION_SIZE
) -> list[Figure]:
    """Build, save and load the index of a procedural data set, measured in a process of its own.

    Needs Linux, which tells a process its peak memory. The bounds grow with the number of images
    and hold for images up to VISION_SIZE.

    Args:
        images: labelled images, spread over 14 products.
        size: (h, w) of every image, pixels.
    """
    with tempfile.TemporaryDirectory(prefix="sofs-index-") as folder:
        written = write_data_set(Path(folder), images, size)
        objects = sorted(path.name for path in Path(folder).iterdir())
        command = [sys.executable, "-m", "tools.benchmark.index", folder, *objects]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
        took = json.loads(done.stdout)
        saved = sum(path.stat().st_size for path in Path(folder, SAVED).rglob("*.json")) / 1e6
    figures = [
        ("labelled images", took["images"], "", images, EXACTLY),
        ("samples", took["samples"], "", written, EXACTLY),
        ("samples of the saved index that load as built", took["same"], "", written, EXACTLY),
        ("build and save", took["build_s"], "s", 5 + 0.01 * images),
        ("peak memory above that of the imports", took["peak"] / 1e6, "MB", 50 + 0.02 * images),
        ("saved index", saved, "MB", 0.01 * images),
        ("load", took["load_s"], "s", 0.5 + 0.001 * images),
    ]
    return [Figure("index", *figure) for figure in figures]


def write_data_set(root: Path, images: int, size: tuple[int, int]) -> int:
    """Write labelled images of size (h, w) in the layout of VISION V1; returns the number of
    samples.

    All images are one file under many names, as only their headers matter. An image has one to six
    shapes, most of them small, each with its centre inside the image.
    """
    rng = np.random.default_rng(0)
    parts: dict[Path, dict[str, list]] = {}
    samples = 0
    for number in range(images):
        product, turn = PRODUCTS[number % len(PRODUCTS)], number // len(PRODUCTS)
        folder = root / product / vision_v1.PARTS[turn % 4 == 3]
        blank = {"images": [], "annotations": [], "categories": CATEGORIES}
        content = parts.setdefault(folder, blank)
        entry = {"id": number, "file_name": f"{number}.jpg", "height": size[0], "width": size[1]}
        content["images"].append(entry)
        used = set()
        for shape in range(rng.integers(1, 7)):
            category = int(rng.integers(len(CATEGORIES)))
            used.add(category)
            about = {"id": 6 * number + shape, "image_id": number, "category_id": category}
            content["annotations"].append(about | {"segmentation": _shape(size, rng)})
        samples += len(used)
    first: Path | None = None
    for folder, content in parts.items():
        folder.mkdir(parents=True)
        (folder / vision_v1.ANNOTATIONS).write_text(json.dumps(content))
        for image in content["images"]:
            path = folder / image["file_name"]
            if first is None:
                first = path
                Image.new("L", size[::-1], 128).save(first)
            else:
                os.link(first, path)
    return samples


def _shape(size: tuple[int, int], rng: np.random.Generator) -> Any:
    """A star of a thousandth to a fiftieth of the shorter side, or up to a third, which may reach
    past the border; at times the run lengths of a box."""
    shares = (0.02, 0.35) if rng.random() < LARGE_SHARE else (0.001, 0.02)
    radius = min(size) * float(np.exp(rng.uniform(*np.log(shares))))
    y, x = int(rng.integers(size[0])), int(rng.integers(size[1]))
    if rng.random() < RLE_SHARE:
        height, width = (min(n - at, 1 + int(radius)) for n, at in zip(size, (y, x), strict=True))
        counts = [x * size[0] + y, *[height, size[0] - height] * (width - 1), height]
        return {"size": list(size), "counts": [*counts, size[0] * size[1] - sum(counts)]}
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(6, 60)))
    lengths = radius * rng.uniform(0.7, 1, len(angles))
    corners = np.stack([x + lengths * np.cos(angles), y + lengths * np.sin(angles)], axis=1)
    return [[x, y, *corners.round(2).ravel().tolist()]]


def _memory(kind: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at its peak; getrusage's peak is the parent's."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[kind].split()[0])


def _index(root: str, objects: list[str], save: bool) -> Any:
    folder = Path(root, SAVED)
    return load_or_build(vision_v1, "VISION_V1", root, objects, folder, save=save, load=not save)


def main(root: str, *objects: str) -> None:
    """The measured process."""
    before, start = _memory("VmRSS"), time.perf_counter()
    built = _index(root, list(objects), save=True)
    build_s, peak = time.perf_counter() - start, _memory("VmHWM") - before
    start = time.perf_counter()
    loaded = _index(root, list(objects), save=False)
    load_s = time.perf_counter() - start
    same = sum(one == other for one, other in zip(built.samples, loaded.samples, strict=True))
    images = len({sample.image for sample in built.samples})
    took = {"build_s": build_s, "load_s": load_s, "peak": peak, "samples": len(built)}
    print(json.dumps(took | {"same": same, "images": images}))


if __name__ == "__main__":
    main(*sys.argv[1:])
