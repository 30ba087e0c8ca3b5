"""Procedural demo data: surfaces with small defects in the layouts of VISION V1 and Open Domain.

    python -m datasets.demo ROOT [--seed N] [--images-per-class N]

writes ROOT/VISION_V1/<product>/{train,val}/_annotations.coco.json beside the images, and
ROOT/Open_Domain/<object>/{support/{image,mask},query/{image,true_label}}. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from datasets.demo.defects import outlines
from datasets.demo.products import (
    OPEN_DOMAIN_OBJECTS,
    PRODUCTS,
    TEST_PRODUCTS,
    TRAIN_PRODUCTS,
    Product,
)
from datasets.demo.render import Instance, render
from utils.console import say
from utils.errors import DataError, UserError

VERSION = 1
MARKER = "demo.json"
OPEN_DOMAIN_SUPPORTS, OPEN_DOMAIN_QUERIES = 1, 5
OTHER_DEFECT_EVERY = 5  # each fifth image also shows the product's other defect category
_QUANTILES = (0.0, 0.22, 0.82, 0.92, 1.0)
_SHARES = (0.00008, 0.0003, 0.0024, 0.008, 0.022)  # area shares at these quantiles
_THIN = ("scratch", "crack", "burr", "weave")  # lines stay lines: no share over 0.25 %


@dataclass(frozen=True)
class DemoSummary:
    """What a demo folder holds."""

    seed: int
    images_per_class: int
    products: tuple[str, ...]
    images: int
    annotations: int
    median_area_share: float  # over (image, category) pairs of the VISION V1 part, 0..1


def write_demo_data(
    root: str | Path,
    seed: int = 54,
    images_per_class: int = 8,
    products: Sequence[str] = (*TRAIN_PRODUCTS, *TEST_PRODUCTS, *OPEN_DOMAIN_OBJECTS),
) -> DemoSummary:
    """Write the demo data under `root`, or reuse what an earlier call with the same arguments wrote there.

    Other demo data under `root` is replaced. Raises DataError where `root` holds anything else, or for an unknown
    product. Nothing appears under `root` before all of it is written.
    """
    root = Path(root).resolve()
    if images_per_class < 2:
        raise DataError(
            f"images_per_class is {images_per_class}; give at least 2, a support and a query"
        )
    if unknown := sorted(set(products) - set(PRODUCTS)):
        raise DataError(f"unknown demo products {unknown}; known: {', '.join(PRODUCTS)}")
    found = _existing(root)
    if found is not None and _matches(root, found, seed, images_per_class, products):
        summary = found["summary"]
        return DemoSummary(**{**summary, "products": tuple(summary["products"])})
    partial = root.with_name(f".{root.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise DataError(
            f"cannot create a folder beside {root} ({error}); give a place that can be written"
        ) from error
    try:
        summary = _write(partial, seed, images_per_class, tuple(products))
        if root.exists():
            shutil.rmtree(root)
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def _existing(root: Path) -> dict | None:
    """The marker of the demo data under `root`, None where there is nothing."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    strange = (
        sorted(p.name for p in root.iterdir() if p.name not in ("VISION_V1", "Open_Domain", MARKER))
        if root.is_dir()
        else [root.name]
    )
    if strange or not (root / MARKER).is_file():
        what = f"it contains {', '.join(strange[:3])}" if strange else f"it has no {MARKER}"
        raise DataError(f"{root} is not a demo folder ({what}); give a new or empty folder")
    try:
        return dict(json.loads((root / MARKER).read_text()))
    except ValueError as error:
        raise DataError(
            f"{root / MARKER} is not readable as JSON ({error}); remove {root} and try again"
        ) from error


def _matches(
    root: Path, found: dict, seed: int, images_per_class: int, products: Sequence[str]
) -> bool:
    wanted = {"seed": seed, "images_per_class": images_per_class, "products": list(products)}
    same = found.get("version") == VERSION and wanted.items() <= found.get("summary", {}).items()
    return same and found.get("files") == _count_files(root)


def _count_files(root: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(root)) - (root / MARKER).is_file()


def _write(root: Path, seed: int, images_per_class: int, products: tuple[str, ...]) -> DemoSummary:
    images, annotations, shares = 0, 0, []
    for name in products:
        if name in OPEN_DOMAIN_OBJECTS:
            images += _write_open_domain(root / "Open_Domain" / name, PRODUCTS[name], seed)
            continue
        for document in _write_vision(
            root / "VISION_V1" / name, PRODUCTS[name], seed, images_per_class
        ):
            images += len(document["images"])
            annotations += len(document["annotations"])
            shares += area_shares(document).values()
    median = float(np.median(shares)) if shares else 0.0
    summary = DemoSummary(seed, images_per_class, products, images, annotations, median)
    marker = {"version": VERSION, "files": _count_files(root), "summary": asdict(summary)}
    (root / MARKER).write_text(json.dumps(marker, indent=1) + "\n")
    return summary


def area_shares(document: dict) -> dict[tuple[int, int], float]:
    """Defect pixels / image pixels per (image id, category id) of a document of annotations."""
    pixels = {image["id"]: image["height"] * image["width"] for image in document["images"]}
    shares: dict[tuple[int, int], float] = {}
    for entry in document["annotations"]:
        key = (entry["image_id"], entry["category_id"])
        shares[key] = shares.get(key, 0.0) + entry["area"] / pixels[entry["image_id"]]
    return shares


def wanted_shares(product: Product, index: int) -> dict[int, float]:
    """Area share per category for image `index`: spread evenly over the quantiles by the golden ratio."""
    count = len(product.looks)
    category = index % count
    chosen = [category]
    if count > 1 and index % OTHER_DEFECT_EVERY == OTHER_DEFECT_EVERY - 1:
        chosen.append((category + 1) % count)
    offset = sum(product.name.encode()) * 0.382
    shares = {}
    for k in chosen:
        quantile = (offset + 0.618034 * (index + 0.5 * k)) % 1
        if product.looks[k].kind in _THIN:
            quantile *= _QUANTILES[2]
        shares[k] = float(np.exp(np.interp(quantile, _QUANTILES, np.log(_SHARES))))
    return shares


def _write_vision(folder: Path, product: Product, seed: int, images_per_class: int) -> list[dict]:
    """Both splits of a product; the first three quarters of the images train."""
    count = images_per_class * len(product.looks)
    first_val = max(len(product.looks), count * 3 // 4)
    documents = []
    for split, indices in (("train", range(first_val)), ("val", range(first_val, count))):
        target = folder / split
        target.mkdir(parents=True)
        document = {
            "info": {"description": f"procedural demo data, {product.name}, {split}"},
            "categories": [
                {"id": k, "name": x.name, "supercategory": ""} for k, x in enumerate(product.looks)
            ],
            "images": [],
            "annotations": [],
        }
        for image_id, index in enumerate(indices):
            image, instances = render(product, seed, index, wanted_shares(product, index))
            _add_image(document, target, f"{index:06d}.jpg", image_id, image, instances)
        (target / "_annotations.coco.json").write_text(json.dumps(document))
        documents.append(document)
    return documents


def _add_image(
    document: dict,
    folder: Path,
    name: str,
    image_id: int,
    image: np.ndarray,
    instances: list[Instance],
) -> None:
    _save(folder / name, image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    h, w = image.shape[:2]
    document["images"].append({"id": image_id, "file_name": name, "height": h, "width": w})
    for instance in instances:
        polygons = [
            np.add(contour.reshape(-1, 2), (instance.x, instance.y))
            for contour in outlines(instance.mask)
        ]
        x, y, box_w, box_h = cv2.boundingRect(instance.mask)
        document["annotations"].append(
            {
                "id": len(document["annotations"]),
                "image_id": image_id,
                "category_id": instance.category,
                "segmentation": [polygon.reshape(-1).tolist() for polygon in polygons],
                "bbox": [x + instance.x, y + instance.y, box_w, box_h],
                "area": int(instance.mask.sum()),
                "iscrowd": 0,
            }
        )


def full_mask(shape: tuple[int, ...], instances: Sequence[Instance]) -> np.ndarray:
    """Union of the instances in the image's frame, uint8 {0, 1} (h, w)."""
    mask = np.zeros(shape[:2], np.uint8)
    for instance in instances:
        h, w = instance.mask.shape
        mask[instance.y : instance.y + h, instance.x : instance.x + w] |= instance.mask
    return mask


def _write_open_domain(folder: Path, product: Product, seed: int) -> int:
    """Supports and queries of one object as PNG, masks with 0 and 255; returns the number of images."""
    total = OPEN_DOMAIN_SUPPORTS + OPEN_DOMAIN_QUERIES
    for index in range(total):
        image, instances = render(product, seed, index, wanted_shares(product, index))
        support = index < OPEN_DOMAIN_SUPPORTS
        place = folder / ("support" if support else "query")
        mask = 255 * full_mask(image.shape, instances)
        for sub, content in (("image", image), ("mask" if support else "true_label", mask)):
            (place / sub).mkdir(parents=True, exist_ok=True)
            _save(place / sub / f"{index:03d}.png", content, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    return total


def _save(path: Path, image: np.ndarray, options: list[int]) -> None:
    if not cv2.imwrite(str(path), image, options):
        raise DataError(f"could not write {path}; is the disk full or the folder write-protected?")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for faults the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.demo", description="Write the procedural demo data."
    )
    parser.add_argument("root", type=Path, help="new or empty folder, or one of earlier demo data")
    parser.add_argument("--seed", type=int, default=54)
    parser.add_argument("--images-per-class", type=int, default=8)
    args = parser.parse_args(argv)
    try:
        summary = write_demo_data(args.root, args.seed, args.images_per_class)
    except UserError as error:
        say(f"error: {error}", sys.stderr)
        return 2
    say(
        f"{args.root}: {summary.images} images of {len(summary.products)} products, {summary.annotations} annotations, "
        f"median area share {100 * summary.median_area_share:.3f} %"
    )
    return 0
