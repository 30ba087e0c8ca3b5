"""What lies in the folders of a data set and is not read is told, in every layout, and of whole data sets nothing."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image

from datasets.build import build_normal_images
from datasets.readers import ds_spectrum, mvtec, visa, vision_v1
from datasets.readers.open_domain import read_open_domain
from tests.anomaly_data import write_converted_visa, write_mvtec, write_visa
from tests.helpers import tiny_config, write_product
from tests.tools.open_domain_data import write_object, write_typed
from utils.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 10), np.uint8)


def save(path, pixels=PIXELS):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_spectrum(root):
    for kind in ("", "hole"):
        save(root / "cup" / "image" / kind / "a.png")
        save(root / "cup" / "mask" / kind / "a_mask.png", (PIXELS > 128).astype(np.uint8))
    save(root / "cup" / "image" / "good" / "b.png")
    save(root / "cup" / "rbg_mask" / "hole" / "a.png")


LAYOUTS = {  # how one object is written, how it is read, and places in its folder that no layout knows
    "VISION V1": (
        lambda root: write_product(root, "cup"),
        vision_v1.read_object,
        ["more.png", "train/deep/more.png", "images/more.png", "train/more.webp"],
    ),
    "Defect Spectrum": (
        write_spectrum,
        ds_spectrum.read_object,
        ["more.png", "image/hole/deep/more.png", "mask/more.png", "image/more.webp"],
    ),
    "MVTec AD": (
        lambda root: write_mvtec(root, ["cup"]),
        mvtec.read_object,
        ["more.png", "test/more.png", "train/more.png", "train/good/day1/more.png", "ground_truth/spot/more.png"],
    ),
    "VisA": (
        lambda root: write_visa(root, ["cup"]),
        visa.read_object,
        ["more.png", "Data/Images/Normal/more.JPG", "Data/Masks/Anomaly/more.png"],
    ),
    "VisA, converted": (
        lambda root: write_converted_visa(root, ["cup"]),
        visa.read_object,
        ["test/more.png"],
    ),
    "open domain": (
        lambda root: write_object(root, "cup", labels=("one.png",)),
        read_open_domain,
        ["query/more.png", "support/more.png", "query/image/day1/more.png", "query/true_label/more.png",
         "support/mask/more.png", "query/image/more.webp"],
    ),
    "open domain with types": (
        lambda root: (write_typed(root, labels=("one.png",)), (root / "steel").rename(root / "cup")),
        read_open_domain,
        ["query/more.png", "support/line/more.png", "query/true_label/dent/more.png", "support/good/deep/more.png"],
    ),
}  # fmt: skip


def told(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_whole_data_set_is_read_without_a_word(tmp_path, caplog, layout):
    write, read, _ = LAYOUTS[layout]
    write(tmp_path)
    for name in (
        "readme.txt",
        "Thumbs.db",
        ".hidden.png",
        "@eaDir/a.png/SYNOPHOTO.png",
        "__MACOSX/._a.png",
    ):
        (tmp_path / "cup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cup" / name).write_bytes(b"")
    read(tmp_path, "cup")
    assert told(caplog) == []


@pytest.mark.parametrize(
    ("layout", "place"), [(name, place) for name in LAYOUTS for place in LAYOUTS[name][2]]
)
def test_an_image_in_any_other_place_is_told_with_its_folder(tmp_path, caplog, layout, place):
    write, read, _ = LAYOUTS[layout]
    write(tmp_path)
    before = read(tmp_path, "cup")
    if place.startswith("support/good"):
        save(tmp_path / "cup" / "support" / "good" / "known.png")
    path = tmp_path / "cup" / place
    save(path)
    after = read(tmp_path, "cup")
    assert "good" in place or after == before
    (message,) = told(caplog)
    assert message.startswith(f"{path.parent}: 1 files, such as {path.name}, are ")


@pytest.mark.parametrize("names", [("line", "@eaDir"), ("line", "__MACOSX"), ("line", "notes")])
def test_a_folder_without_image_and_mask_is_no_type_of_defect(tmp_path, caplog, names):
    write_typed(tmp_path, kinds=names[:1])
    (tmp_path / "steel" / "support" / names[1]).mkdir()
    assert list(read_open_domain(tmp_path, "steel").supports) == ["line"]
    (message,) = told(caplog)
    assert f"support/{names[1]} is no type of defect: it has no image/ and mask/" in message


def test_folders_of_supports_in_the_plural_are_named(tmp_path, caplog):
    write_object(tmp_path, "steel")
    for name in ("image", "mask"):
        (tmp_path / "steel" / "support" / name).rename(tmp_path / "steel" / "support" / f"{name}s")
    with pytest.raises(
        DataError, match=r"support/image: no images; .*; images/ is there, rename it to image/"
    ):
        read_open_domain(tmp_path, "steel")


def test_a_type_that_lacks_its_masks_is_still_refused(tmp_path):
    write_typed(tmp_path, kinds=("line", "spot"))
    (tmp_path / "steel" / "support" / "spot" / "mask").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"spot/image/s\.png has no mask"):
        read_open_domain(tmp_path, "steel")


def test_images_below_the_folder_of_normal_images_are_told(tmp_path, caplog):
    write_product(tmp_path, "Disk")
    for place in ("clean/a.png", "clean/b.png", "clean/day1/c.png"):
        save(tmp_path / place)
    cfg = tiny_config(
        tmp_path, tmp_path / "log", DATASET__normal_shot=2, DATASET__normal_folder="clean"
    )
    assert len(build_normal_images(cfg, ["Disk"])["Disk"]) == 2
    (message,) = told(caplog)
    assert message.startswith(
        f"{tmp_path / 'clean' / 'day1'}: 1 files, such as c.png, are not read"
    )


@pytest.mark.parametrize(
    ("layout", "given", "other"),
    [
        ("MVTec AD", "test/good", "test/Good"),
        ("MVTec AD", "ground_truth", "Ground_Truth"),
        ("Defect Spectrum", "image/good", "image/GOOD"),
    ],
)
def test_a_folder_that_would_be_taken_for_a_defect_is_refused(tmp_path, layout, given, other):
    """Its normal images would count as abnormal ones, or masks as missing."""
    write, read, _ = LAYOUTS[layout]
    write(tmp_path)
    (tmp_path / "cup" / given).rename(tmp_path / "cup" / "aside")
    (tmp_path / "cup" / "aside").rename(tmp_path / "cup" / other)
    with pytest.raises(
        DataError,
        match=rf"cup/{other}: expected {given.split('/')[-1]}/ in this spelling; rename it",
    ):
        read(tmp_path, "cup")


def test_normal_supports_in_a_folder_of_another_spelling_are_no_type(tmp_path):
    write_object(tmp_path, "cup")
    save(tmp_path / "cup" / "support" / "Good" / "image" / "a.png")
    with pytest.raises(DataError, match=r"support/Good: expected good/"):
        read_open_domain(tmp_path, "cup")


def test_an_object_in_both_trees_of_defect_spectrum_is_told(tmp_path, caplog):
    write_spectrum(tmp_path)
    (tmp_path / "DS-MVTec").mkdir()
    (tmp_path / "DS-MVTec" / "cup").symlink_to(tmp_path / "cup")
    ds_spectrum.read_object(tmp_path, "cup")
    assert f"cup is read from {tmp_path}/cup; {tmp_path}/DS-MVTec/cup is there, too" in caplog.text


def test_255_beside_small_classes_of_other_masks_is_told(tmp_path, caplog):
    write_spectrum(tmp_path)
    assert not caplog.records
    save(tmp_path / "cup" / "image" / "z.png")
    save(tmp_path / "cup" / "mask" / "z.png", np.where(PIXELS > 128, 255, 0).astype(np.uint8))
    samples, _ = ds_spectrum.read_object(tmp_path, "cup")
    assert {s.category for s in samples} == {
        1,
        255,
    } and "class 255 beside classes such as 1" in caplog.text
