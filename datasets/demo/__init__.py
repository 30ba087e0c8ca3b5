"""Procedural demo data: surfaces with small defects in the layouts of VISION V1 and Open Domain.

    python -m datasets.demo ROOT [--seed N] [--images-per-class N]

writes ROOT/VISION_V1/<product>/{train,val}/_annotations.coco.json beside the images and
ROOT/Open_Domain/<object>/{support/{image,mask},query/{image,true_label}}. The same seed gives the
same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from datasets.demo.defects import STROKES, outlines
from datasets.demo.products import OPEN_DOMAIN_OBJECTS, PRODUCTS, Product
from datasets.demo.render import render
from utils.errors import DataError, UserError

VERSION = 1
MARKER = "demo.json"
OPEN_DOMAIN_SUPPORTS, OPEN_DOMAIN_QUERIES = 1, 5
OTHER_DEFECT_EVERY = 5  # each fifth image also shows the product's other defect category
_QUANTILES = (0.0, 0.22, 0.82, 0.92, 1.0)
_SHARES = (0.00008, 0.0003, 0.0024, 0.008, 0.022)  # area shares at these quantiles


def write_demo_data(
    root: str | Path,
    seed: int = 54,
    images_per_class: int = 8,
    products: Sequence[str] = tuple(PRODUCTS),
) -> dict:
    """Write the demo data under `root`, or reuse what an earlier call with these arguments wrote.

    Other demo data under `root` is replaced. Nothing appears there before all of it is written.
    Returns `seed`, `images_per_class`, `products`, the number of `images` and `annotations`, and
    `median_area_share`, 0..1 over the (image, category) pairs of the VISION V1 part.
    Raises DataError where `root` holds anything else or cannot be written, or a product is unknown.
    """
    root = Path(root).resolve()
    if images_per_class < 2:
        raise DataError(f"images_per_class is {images_per_class}; at least 2 are needed")
    if unknown := sorted(set(products) - set(PRODUCTS)):
        raise DataError(f"unknown demo products {unknown}; known: {', '.join(PRODUCTS)}")
    wanted = {"seed": seed, "images_per_class": images_per_class, "products": list(products)}
    present = _present(root)
    if wanted.items() <= present.items():
        return present
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as scratch:
            data = Path(scratch, "data")
            summary = _write(data, **wanted)
            if root.exists():
                shutil.rmtree(root)
            data.rename(root)
    except OSError as error:
        raise DataError(f"cannot write {root} ({error}); give another place") from error
    return summary


def _present(root: Path) -> dict:
    """Summary of the demo data under `root`; empty where there is none or not all of it."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return {}
    names = {path.name for path in root.iterdir()} if root.is_dir() else {root.name}
    strange = sorted(names - {"VISION_V1", "Open_Domain", MARKER})
    if strange or MARKER not in names:
        what = f"it contains {', '.join(strange[:3])}" if strange else f"it has no {MARKER}"
        raise DataError(f"{root} is not a demo folder ({what}); give a new or empty folder")
    marker = json.loads((root / MARKER).read_text())
    complete = marker["version"] == VERSION and marker["files"] == _count_files(root) - 1
    return marker["summary"] if complete else {}


def _count_files(root: Path) -> int:
    return sum(path.is_file() for path in root.rglob("*"))


def _write(root: Path, seed: int, images_per_class: int, products: list[str]) -> dict:
    """Write all products and the marker with the summary, which is returned."""
    images, annotations, shares = 0, 0, []
    for product in map(PRODUCTS.get, products):
        if product.name in OPEN_DOMAIN_OBJECTS:
            images += _write_open_domain(root / "Open_Domain" / product.name, product, seed)
            continue
        count = images_per_class * len(product.looks)
        first_val = max(len(product.looks), count * 3 // 4)
        for split, indices in (("train", range(first_val)), ("val", range(first_val, count))):
            folder = root / "VISION_V1" / product.name / split
            entries = _write_vision(folder, product, seed, indices)
            images += len(indices)
            annotations += len(entries)
            areas: Counter[tuple[int, int]] = Counter()
            for entry in entries:
                areas[entry["image_id"], entry["category_id"]] += entry["area"]
            shares += [area / math.prod(product.size) for area in areas.values()]
    share = float(np.median(shares)) if shares else 0.0
    summary = {"seed": seed, "images_per_class": images_per_class, "products": products}
    summary |= {"images": images, "annotations": annotations, "median_area_share": share}
    marker = {"version": VERSION, "files": _count_files(root), "summary": summary}
    (root / MARKER).write_text(json.dumps(marker, indent=1) + "\n")
    return summary


def wanted_shares(product: Product, index: int) -> dict[int, float]:
    """Area share per category in image `index`: the golden ratio spreads it over the quantiles."""
    count = len(product.looks)
    categories = [index % count]
    if count > 1 and index % OTHER_DEFECT_EVERY == OTHER_DEFECT_EVERY - 1:
        categories.append((index + 1) % count)
    offset = sum(product.name.encode()) * 0.382
    shares = {}
    for k in categories:
        quantile = (offset + 0.618034 * (index + 0.5 * k)) % 1
        if product.looks[k].kind in STROKES:  # lines stay lines: no share over 0.25 %
            quantile *= _QUANTILES[2]
        shares[k] = float(np.exp(np.interp(quantile, _QUANTILES, np.log(_SHARES))))
    return shares


def _write_vision(folder: Path, product: Product, seed: int, indices: range) -> list[dict]:
    """Write one split of a product, JPEG images and the COCO file; returns its annotations."""
    images, annotations, (h, w) = [], [], product.size
    for image_id, index in enumerate(indices):
        image, defects = render(product, seed, index, wanted_shares(product, index))
        name = f"{index:06d}.jpg"
        _save(folder / name, image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        images.append({"id": image_id, "file_name": name, "height": h, "width": w})
        for category, mask in defects:
            polygons = [contour.reshape(-1).tolist() for contour in outlines(mask)]
            annotation = {"id": len(annotations), "image_id": image_id, "category_id": category}
            annotation |= {"segmentation": polygons, "bbox": list(cv2.boundingRect(mask))}
            annotations.append(annotation | {"area": int(mask.sum()), "iscrowd": 0})
    names = enumerate(look.name for look in product.looks)
    document = {
        "info": {"description": f"procedural demo data, {product.name}, {folder.name}"},
        "categories": [{"id": k, "name": name, "supercategory": ""} for k, name in names],
        "images": images,
        "annotations": annotations,
    }
    (folder / "_annotations.coco.json").write_text(json.dumps(document))
    return annotations


def _write_open_domain(folder: Path, product: Product, seed: int) -> int:
    """Write supports and queries of one object, masks with 0 and 255; returns their number."""
    total = OPEN_DOMAIN_SUPPORTS + OPEN_DOMAIN_QUERIES
    for index in range(total):
        image, defects = render(product, seed, index, wanted_shares(product, index))
        mask = 255 * np.any([mask for _, mask in defects], axis=0).astype(np.uint8)
        place = folder / ("support" if index < OPEN_DOMAIN_SUPPORTS else "query")
        label = "mask" if place.name == "support" else "true_label"
        for kind, content in (("image", image), (label, mask)):
            _save(place / kind / f"{index:03d}.png", content, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    return total


def _save(path: Path, image: np.ndarray, options: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image, options):
        raise DataError(f"could not write {path}; is the disk full or the folder write-protected?")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with code 2 for faults that the user can mend."""
    parser = argparse.ArgumentParser("python -m datasets.demo", description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path, help="new or empty folder, or one of earlier demo data")
    parser.add_argument("--seed", type=int, default=54)
    parser.add_argument("--images-per-class", type=int, default=8)
    args = parser.parse_args(argv)
    try:
        summary = write_demo_data(args.root, args.seed, args.images_per_class)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    images, annotations = summary["images"], summary["annotations"]
    print(
        f"{args.root}: {images} images of {len(summary['products'])} products, {annotations} "
        f"annotations, median area share {100 * summary['median_area_share']:.3f} %"
    )
