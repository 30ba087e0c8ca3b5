from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from datasets import ds_spectrum, mvtec
from datasets.anomaly import read_target
from datasets.images import read_labels, read_mask
from datasets.open_domain import read_open_domain
from datasets.orientation import turned_back
from tests.datasets.bad_files import REFUSED, RGB, saved, with_orientation
from utils.errors import DataError

DISC = (np.hypot(*np.mgrid[-30:30, -40:40]) < 20).astype(np.uint8)
MARKS = np.zeros((12, 18), np.uint8)
MARKS[1:4, 2:9] = 1


def told(caplog, path):
    return [record.getMessage() for record in caplog.records if str(path) in record.getMessage()]


def test_a_smoothed_mask_is_cut_at_half_with_one_warning_of_the_share(tmp_path, caplog):
    shades = np.array(Image.fromarray(DISC * 255).filter(ImageFilter.GaussianBlur(2)))
    path = saved(tmp_path / "m.png", shades)
    for _ in range(2):
        mask = read_mask(path)
    np.testing.assert_array_equal(mask, shades.astype(float) >= shades.max() / 2)
    assert np.abs(int(mask.sum()) - int(DISC.sum())) < 0.05 * DISC.sum()
    share = ((shades > 0) & (shades < shades.max())).mean()
    (message,) = told(caplog, path)
    assert f"{100 * share:.2g} %" in message


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("quality", [30, 75, 95])
def test_a_mask_saved_as_jpeg_is_nearly_the_one_meant(tmp_path, mode, quality, caplog):
    path = saved(tmp_path / "m.jpg", DISC * 255, mode, quality=quality)
    assert (read_mask(path) != DISC).mean() < 0.004
    assert len(told(caplog, path)) == 1


def test_a_red_mask_saved_as_jpeg_is_nearly_the_one_meant(tmp_path):
    path = saved(tmp_path / "m.jpg", DISC[:, :, None] * np.array([255, 0, 0], np.uint8), quality=95)
    assert (read_mask(path) != DISC).mean() < 0.02


@pytest.mark.parametrize(
    ("mode", "top"), [("L", 1), ("L", 127), ("L", 128), ("L", 255), ("RGB", 1), ("RGB", 255), ("1", 255)]
)
def test_two_values_are_taken_without_a_warning(tmp_path, mode, top, caplog):
    path = saved(tmp_path / "m.png", DISC * np.uint8(top), mode)
    np.testing.assert_array_equal(read_mask(path), DISC)
    assert told(caplog, path) == []


def test_labels_and_colours_that_stand_for_classes_are_all_marked(tmp_path, caplog):
    labels = np.arange(128, dtype=np.uint8).reshape(8, 16)
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "labels.png", labels)), labels > 0)
    colours = np.zeros((9, 9, 3), np.uint8)
    colours[0, :3] = [[64, 0, 0], [0, 128, 0], [192, 0, 128]]
    assert read_mask(saved(tmp_path / "colours.png", colours)).sum() == 3
    instances = np.zeros((9, 9), np.uint16)
    instances[0, :2] = 1, 900
    assert read_mask(saved(tmp_path / "instances.png", instances)).sum() == 2
    assert caplog.records == []


def test_sixteen_bit_shades_are_cut_at_half(tmp_path, caplog):
    shades = np.array([[0, 9, 32767, 32768, 65535]], np.uint16)
    path = saved(tmp_path / "m.png", shades)
    assert read_mask(path).tolist() == [[0, 0, 0, 1, 1]]
    assert "60 %" in told(caplog, path)[0]


def test_empty_and_full_masks_are_as_they_are(tmp_path):
    for value in (0, 1, 255):
        path = saved(tmp_path / f"{value}.png", np.full((4, 5), value, np.uint8))
        assert (read_mask(path) == (value > 0)).all()


def test_classes_have_at_most_32_values(tmp_path):
    values = np.arange(33, dtype=np.uint8)[None]
    assert read_labels(saved(tmp_path / "a.png", values[:, :32])).max() == 31
    with pytest.raises(DataError, match=r"b\.png: 33 different values.*JPEG"):
        read_labels(saved(tmp_path / "b.png", values))
    with pytest.raises(DataError, match=r"c\.jpg"):
        read_labels(saved(tmp_path / "c.jpg", DISC * 255, quality=30))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("name", ["i.jpg", "i.png", "i.tif"])
def test_a_mask_of_the_displayed_size_is_turned_back(tmp_path, orientation, name):
    """The turning is found from what a viewer that obeys EXIF would show."""
    image = with_orientation(tmp_path / name, RGB, orientation)
    ways = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE}
    shown = np.array(Image.fromarray(MARKS).transpose(ways.get(orientation, Image.Transpose.ROTATE_90)))
    np.testing.assert_array_equal(turned_back(shown, image), MARKS)
    np.testing.assert_array_equal(turned_back(MARKS, image), MARKS)


@pytest.mark.parametrize(
    ("orientation", "side", "warns"),
    [
        (1, 12, False),
        (2, 12, True),
        (3, 12, True),
        (4, 12, True),
        (6, 12, False),
        (6, 18, True),
        (8, 18, True),
        (1, 18, False),
    ],
)
def test_where_sizes_cannot_tell_a_warning_names_the_image_once(tmp_path, orientation, side, warns, caplog):
    image = with_orientation(tmp_path / "i.png", np.zeros((side, 18, 3), np.uint8), orientation)
    mask = np.eye(side, 18, dtype=np.uint8)
    for _ in range(2):
        assert turned_back(mask, image) is mask
    assert len(told(caplog, image)) == warns


def write_turned(folder, shown):
    """An image that a viewer turns right (6), and its mask as drawn there or on the stored pixels."""
    (folder / "image").mkdir(parents=True)
    (folder / "mask").mkdir()
    with_orientation(folder / "image" / "a.jpg", RGB, 6)
    saved(folder / "mask" / "a.png", np.rot90(MARKS, -1) if shown else MARKS)


@pytest.mark.parametrize("shown", [True, False])
def test_every_layout_turns_masks_back(tmp_path, shown):
    write_turned(tmp_path / "ds" / "cup", shown)
    (sample,), _ = ds_spectrum.read_object(tmp_path / "ds", "cup")
    np.testing.assert_array_equal(sample.decode_mask(), MARKS)

    write_turned(tmp_path / "mvtec" / "x", shown)
    cup = tmp_path / "mvtec" / "cup"
    for place in ("train/good", "test/bad", "ground_truth/bad"):
        (cup / place).mkdir(parents=True)
    with_orientation(cup / "train" / "good" / "a.jpg", RGB, 6)
    with_orientation(cup / "test" / "bad" / "a.jpg", RGB, 6)
    (tmp_path / "mvtec" / "x" / "mask" / "a.png").rename(cup / "ground_truth" / "bad" / "a.png")
    (item,) = mvtec.read_object(tmp_path / "mvtec", "cup").test
    np.testing.assert_array_equal(read_target(item, (12, 18)), MARKS)

    write_turned(tmp_path / "open" / "cup" / "support", shown)
    (tmp_path / "open" / "cup" / "query" / "image").mkdir(parents=True)
    saved(tmp_path / "open" / "cup" / "query" / "image" / "q.png", RGB)
    assert list(read_open_domain(tmp_path / "open", "cup").supports) == [""]


def test_a_mask_of_another_size_is_refused(tmp_path):
    write_turned(tmp_path / "cup", True)
    saved(tmp_path / "cup" / "mask" / "a.png", np.zeros((18, 13), np.uint8))
    with pytest.raises(DataError, match=r"mask/a\.png is 18 x 13 .*/image/a\.jpg is 12 x 18"):
        ds_spectrum.read_object(tmp_path, "cup")


@pytest.mark.parametrize("kind", sorted(set(REFUSED) - {"folder"}))
def test_a_mask_that_is_no_image_is_refused_by_name(tmp_path, kind):
    write_turned(tmp_path / "cup", False)
    (tmp_path / "cup" / "mask" / "a.png").unlink()
    REFUSED[kind](tmp_path / "cup" / "mask" / "a.png")
    with pytest.raises(DataError, match=r"mask/a\.png"):
        ds_spectrum.read_object(tmp_path, "cup")
