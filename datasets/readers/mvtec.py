"""MVTec AD: <root>/<object>/{train/good, test/good, test/<defect>} and the masks in ground_truth/<defect>."""

from __future__ import annotations

from pathlib import Path

from datasets.folders import (
    ANY_PATH_KEY,
    list_images,
    missing_object,
    named_files,
    pair_masks,
    refuse_other_spelling,
    some_images,
    subfolders,
    tell_unread,
)
from datasets.readers.anomaly import NORMAL, AnomalyImage, AnomalyObject
from utils.errors import DataError

MVTEC_OBJECTS = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
    "toothbrush", "transistor", "wood", "zipper",
)  # fmt: skip


@named_files()
def read_object(root: str | Path, name: str, key: str = ANY_PATH_KEY) -> AnomalyObject:
    """Finds and matches the files of one object; pixels are read later.

    The mask of test/DEFECT/NAME.png is ground_truth/DEFECT/NAME_mask or NAME with any image suffix.
    key: the setting that holds root, named in errors.
    Raises DataError where the object or its images are missing, an abnormal image has no mask, or a mask is not of its
    image's size.
    """
    folder = Path(root) / name
    if not folder.is_dir():
        raise missing_object(Path(root), [folder], key)
    refuse_other_spelling(folder, "train", "test", "ground_truth")
    refuse_other_spelling(folder / "test", NORMAL)  # it would be a kind of defect
    refuse_other_spelling(
        folder / "ground_truth", *(kind.name for kind in subfolders(folder / "test"))
    )
    normal = some_images(training_folder(folder))
    test = [
        item for kind in subfolders(folder / "test") for item in _test_images(folder, kind.name)
    ]
    read = [*normal, *(path for item in test for path in (item.image, item.mask) if path)]
    expected = f"images are read from train/{NORMAL}/, test/{NORMAL}/ and test/DEFECT/, masks from ground_truth/DEFECT/"
    tell_unread(folder, read, expected, masks=["ground_truth"])
    if not test:
        raise DataError(
            f"{folder / 'test'}: no images; expected test/{NORMAL}/ and one folder per kind of defect"
        )
    return AnomalyObject(name, normal, test)


def training_folder(folder: Path) -> Path:
    """Where the normal training images of an object's folder lie."""
    return folder / "train" / NORMAL


def _test_images(folder: Path, kind: str) -> list[AnomalyImage]:
    images = list_images(folder / "test" / kind)
    if kind == NORMAL:
        return [AnomalyImage(image, kind, None) for image in images]
    return [
        AnomalyImage(image, kind, mask)
        for image, mask in pair_masks(images, folder / "ground_truth" / kind)
    ]
