"""MVTec AD: <root>/<object>/{train,test}/good and test/<defect>; masks in ground_truth/<defect>."""

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
    warn_unread,
)
from datasets.readers.anomaly import NORMAL, AnomalyImage, AnomalyObject
from utils.errors import DataError

kind = "anomaly"
_NAMES = (
    "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush "
    "transistor wood zipper"
)
MVTEC_OBJECTS = objects = tuple(_NAMES.split())


@named_files()
def read_object(root: str | Path, name: str, key: str = ANY_PATH_KEY) -> AnomalyObject:
    """Finds and matches the files of one object; pixels are read later.

    The mask of test/DEFECT/NAME.png is ground_truth/DEFECT/NAME_mask or NAME with any image suffix.
    key: the setting that holds root, named in errors.
    Raises DataError where the object or its images are missing, an abnormal image has no mask, or a
    mask is not of its image's size.
    """
    folder = Path(root) / name
    if not folder.is_dir():
        raise missing_object(Path(root), [folder], key)
    kinds = [path.name for path in subfolders(folder / "test")]
    refuse_other_spelling(folder, "train", "test", "ground_truth")
    refuse_other_spelling(folder / "test", NORMAL)  # it would be a kind of defect
    refuse_other_spelling(folder / "ground_truth", *kinds)
    test = []
    for defect in kinds:
        images = list_images(folder / "test" / defect)
        pairs = [(image, None) for image in images]
        if defect != NORMAL:
            pairs = pair_masks(images, folder / "ground_truth" / defect)
        test += [AnomalyImage(image, defect, mask) for image, mask in pairs]
    item = AnomalyObject(name, some_images(training_folder(folder)), test)
    expected = f"images are read from train/{NORMAL}/, test/{NORMAL}/ and test/DEFECT/, masks from "
    warn_unread(folder, item.files(), f"{expected}ground_truth/DEFECT/", masks=["ground_truth"])
    if not test:
        expected = f"expected test/{NORMAL}/ and one folder per kind of defect"
        raise DataError(f"{folder / 'test'}: no images; {expected}")
    return item


def training_folder(folder: Path) -> Path:
    """Where the normal training images of an object's folder lie."""
    return folder / "train" / NORMAL
