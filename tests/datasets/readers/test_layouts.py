"""What holds in every layout: the registry, and what lies in the folders and is not read."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.readers import READERS, ds_spectrum, mvtec, reader_of, visa, vision_v1
from datasets.readers.open_domain import read_open_domain
from tests.anomaly_data import write_mvtec, write_visa
from tests.datasets.bad_files import saved, warnings_about
from tests.helpers import write_product
from tests.tools.open_domain_data import write_object, write_typed
from utils.errors import ConfigError, DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 10), np.uint8)


def write_spectrum(root):
    for kind in ("", "hole"):
        saved(root / "cup" / "image" / kind / "a.png", PIXELS)
        saved(root / "cup" / "mask" / kind / "a_mask.png", (PIXELS > 128).astype(np.uint8))
    saved(root / "cup" / "image" / "good" / "b.png", PIXELS)
    saved(root / "cup" / "rbg_mask" / "hole" / "a.png", PIXELS)


def write_types(root):
    write_typed(root, labels=("one.png",))
    (root / "steel").rename(root / "cup")
    saved(root / "cup" / "support" / "good" / "a.png", PIXELS)


# How an object is written and read; places that its layout does not know; a folder and a spelling
# of it by which it would be taken for something else
LAYOUTS = {
    "VISION V1": (lambda root: write_product(root, "cup"), vision_v1.read_object,
                  "more.png train/deep/more.png train/more.webp", None),
    "Defect Spectrum": (write_spectrum, ds_spectrum.read_object,
                        "more.png image/hole/deep/more.png mask/more.png image/more.webp",
                        ("image/good", "image/GOOD")),
    "MVTec AD": (lambda root: write_mvtec(root, ["cup"]), mvtec.read_object,
                 "more.png test/more.png train/more.png ground_truth/spot/more.png",
                 ("test/good", "test/Good")),
    "VisA": (lambda root: write_visa(root, ["cup"]), visa.read_object,
             "more.png Data/Images/Normal/more.JPG Data/Masks/Anomaly/more.png", None),
    "open domain": (lambda root: write_object(root, "cup", labels=("one.png",)), read_open_domain,
                    "support/more.png query/image/d/more.png query/true_label/more.png "
                    "support/mask/more.png query/image/more.webp", ("query", "Query")),
    "open domain with types": (write_types, read_open_domain,
                               "query/more.png support/line/more.png query/true_label/dent/more.png"
                               " support/good/deep/more.png", ("support/good", "support/Good")),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_an_image_in_a_place_that_is_not_read_is_named(tmp_path, caplog, layout):
    write, read, places, _ = LAYOUTS[layout]
    write(tmp_path)
    for name in ("readme.txt", "Thumbs.db", ".hidden.png", "@eaDir/a.png", "__MACOSX/._a.png"):
        (tmp_path / "cup" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "cup" / name).touch()
    before = read(tmp_path, "cup")
    assert not caplog.records
    for place in places.split():
        path = saved(tmp_path / "cup" / place, PIXELS)
        caplog.clear()
        assert read(tmp_path, "cup") == before
        (message,) = warnings_about(caplog, path.parent)
        assert message.startswith(f"{path.parent}: 1 files, such as {path.name}, are ")
        path.unlink()


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if LAYOUTS[name][3]])
def test_a_folder_in_another_spelling_is_refused(tmp_path, layout):
    """Normal images would count as abnormal ones, or masks as missing."""
    write, read, _, (given, other) = LAYOUTS[layout]
    write(tmp_path)
    (tmp_path / "cup" / given).rename(tmp_path / "cup" / "aside")
    (tmp_path / "cup" / "aside").rename(tmp_path / "cup" / other)
    words = rf"cup/{other}: expected {given.split('/')[-1]}/ in this spelling; rename it"
    with pytest.raises(DataError, match=words):
        read(tmp_path, "cup")


def test_every_data_set_has_a_reader_of_a_kind_that_jobs_know():
    kinds = {reader.kind for reader in READERS.values()}
    assert kinds == {"episodes", "anomaly", "open_domain"}
    assert reader_of("VISION_V1_ND") is reader_of("VISION_V1") is vision_v1
    assert reader_of("DS_Spectrum_DS_ND") is reader_of("DS_Spectrum") is ds_spectrum
    words = r"DATASET\.name is 'VISION_V2_ND', expected one of VISION_V1, .*mean VISION_V1_ND\?"
    with pytest.raises(ConfigError, match=words):
        reader_of("VISION_V2_ND")
