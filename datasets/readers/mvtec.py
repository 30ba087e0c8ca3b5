"""MVTec AD: <root>/<object>/{train,test}/good and test/<defect>; masks in ground_truth/<defect>."""

from __future__ import annotations

from pathlib import Path

from datasets import folders
from datasets.readers.anomaly import NORMAL, AnomalyImage, AnomalyObject
from utils.errors import DataError

kind = "anomaly"
_NAMES = (
    "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush "
    "transistor wood zipper"
)
MVTEC_OBJECTS = objects = tuple(_NAMES.split())


@folders.named_files()
def read_object(root: Path, name: str, key: str = folders.ANY_PATH_KEY) -> AnomalyObject:
    """Finds and matches the files of one object; pixels are read later.

    Raises DataError where the object, its images or the mask of an abnormal image are missing, or a
    mask is not of its image's size.
    """
    folder = root / name
    if not folder.is_dir():
        raise folders.missing_object(root, [folder], key)
    kinds = [path.name for path in folders.subfolders(folder / "test")]
    folders.refuse_other_spelling(folder, "train", "test", "ground_truth")
    folders.refuse_other_spelling(folder / "test", NORMAL)  # it would be a kind of defect
    folders.refuse_other_spelling(folder / "ground_truth", *kinds)
    test = []
    for defect in kinds:
        images = folders.list_images(folder / "test" / defect)
        pairs = [(image, None) for image in images]
        if defect != NORMAL:
            pairs = folders.pair_masks(images, folder / "ground_truth" / defect)
        test += [AnomalyImage(image, defect, mask) for image, mask in pairs]
    item = AnomalyObject(name, folders.some_images(folder / "train" / NORMAL), test)
    expected = f"images are read from train/{NORMAL}/, test/{NORMAL}/ and test/DEFECT/"
    expected += ", masks from ground_truth/DEFECT/"
    folders.warn_unread(folder, item.files(), expected, masks=["ground_truth"])
    if not test:
        expected = f"expected test/{NORMAL}/ and one folder per kind of defect"
        raise DataError(f"{folder / 'test'}: no images; {expected}")
    return item
