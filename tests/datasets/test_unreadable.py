"""Files and folders that may not be read."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from datasets.build import build_normal_images, build_test_index, build_train_index
from datasets.images import image_size, read_image
from datasets.large_images import ImageStrips
from datasets.masks import read_mask
from datasets.readers import ds_spectrum, mvtec, visa, vision_v1
from datasets.readers.open_domain import read_open_domain
from tests.anomaly_data import write_mvtec, write_visa
from tests.datasets.bad_files import RGB, saved
from tests.helpers import read_index, tiny_config, write_product
from tests.tools.open_domain_data import write_object
from utils.errors import DataError

NOBODY = 65534
"".encode("utf-8-sig")  # what another user may not import is there


@contextmanager
def as_other_user():
    """Root may read everything; the effective user decides."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def root():
    """A folder that every user reaches."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def locked(path):
    """The block runs as somebody who may not read a file or folder."""
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with as_other_user():
            yield
    finally:
        path.chmod(mode)


@pytest.mark.parametrize("read", [read_image, read_mask, image_size, ImageStrips])
def test_an_image_is_refused_with_the_remedy(root, read):
    path = saved(root / "a.png", RGB)
    with locked(path), pytest.raises(DataError, match=r"a\.png: may not be read.*permissions"):
        read(path)
    (root / "b").mkdir()
    path = saved(root / "b" / "a.png", RGB)
    with locked(root / "b"), pytest.raises(DataError, match=r"a\.png: may not be read"):
        read(path)


@pytest.mark.parametrize("place", ["Plate", "Plate/train", f"Plate/train/{vision_v1.ANNOTATIONS}"])
def test_annotations(root, place):
    write_product(root, "Plate", {"spot": 2})
    with locked(root / place), pytest.raises(DataError, match=place) as error:
        read_index(root, "Plate")
    assert "permissions" in str(error.value)
    assert len(read_index(root, "Plate")) == 2


@pytest.mark.parametrize(
    "place",
    ["steel", "steel/support", "steel/support/image", "steel/support/mask", "steel/query/image"],
)
def test_open_domain(root, place):
    write_object(root, "steel")
    with locked(root / place), pytest.raises(DataError, match=place):
        read_open_domain(root, "steel")
    assert read_open_domain(root, "steel").queries


@pytest.mark.parametrize(
    "place", ["bottle", "bottle/train/good", "bottle/test", "bottle/ground_truth/spot"]
)
def test_mvtec(root, place):
    write_mvtec(root)
    with locked(root / place), pytest.raises(DataError, match=place):
        mvtec.read_object(root, "bottle")


@pytest.mark.parametrize("place", ["split_csv", "split_csv/1cls.csv", "candle/Data/Images"])
def test_visa(root, place):
    write_visa(root)
    with locked(root / place), pytest.raises(DataError, match=place):
        visa.read_object(root, "candle")


@pytest.mark.parametrize("place", ["cup/image", "cup/mask", "cup/mask/a.png"])
def test_ds_spectrum(root, place):
    for part, pixels in (("image", RGB), ("mask", np.eye(12, 18, dtype=np.uint8))):
        (root / "cup" / part).mkdir(parents=True)
        saved(root / "cup" / part / "a.png", pixels)
    with locked(root / place), pytest.raises(DataError, match=place):
        ds_spectrum.read_object(root, "cup")


def test_the_root_and_what_a_config_names(root, tmp_path):
    (root / "data").mkdir()
    for name in ("Plate", "Disk"):
        write_product(root / "data", name, {"spot": 2})
    cfg = tiny_config(
        root / "data", tmp_path, DATASET__normal_shot=1, DATASET__normal_folder="Plate/train"
    )
    with locked(root / "data"):
        for call in (
            build_train_index,
            build_test_index,
            lambda c: build_normal_images(c, ["Disk"]),
        ):
            with pytest.raises(DataError, match="data"):
                call(cfg)


def test_a_part_that_leads_nowhere_is_not_taken_for_one_that_was_left_out(tmp_path):
    write_product(tmp_path, "Plate")
    (tmp_path / "Plate" / "val").rename(tmp_path / "elsewhere")
    (tmp_path / "Plate" / "val").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"Plate/val/_annotations\.coco\.json: no such file"):
        vision_v1.read_object(tmp_path, "Plate")
    (tmp_path / "Plate" / "val").unlink()
    assert vision_v1.read_object(tmp_path, "Plate")[0]
