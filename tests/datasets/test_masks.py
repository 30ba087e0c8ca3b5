from __future__ import annotations

import cv2
import numpy as np
import pytest
import pyvips
from PIL import Image, ImageFilter

from datasets.masks import read_labels, read_mask
from tests.datasets.bad_files import saved, warnings_about
from utils.errors import DataError

DISC = (np.hypot(*np.mgrid[-30:30, -40:40]) < 20).astype(np.uint8)
RIM = cv2.dilate(DISC, np.ones((5, 5), np.uint8)) - DISC


def blurred(values, radius):
    return np.array(Image.fromarray(values).filter(ImageFilter.GaussianBlur(radius)))


def paletted(path, indices, palette, form=None, **options):
    image = Image.fromarray(indices, "P")
    image.putpalette(palette)
    image.save(path, form, **options)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("top", [1, 255])
def test_any_two_values_are_taken_without_a_warning(tmp_path, mode, top, caplog):
    top = 255 if mode == "1" else top
    values = DISC * (np.uint16(257) if mode == "I;16" else np.uint8(1)) * np.uint8(top)
    path = saved(tmp_path / "m.png", values, None if mode == "I;16" else mode)
    mask = read_mask(path)
    assert mask.dtype == np.uint8 and (mask == DISC).all()
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_mask(image), mask)
    for kind in (bool, np.int64, np.float64):
        np.testing.assert_array_equal(read_mask((DISC * top).astype(kind)), DISC)
    full = np.full((4, 5), top, np.uint8)
    assert read_mask(full).all() and not read_mask(0 * full).any()
    assert warnings_about(caplog, tmp_path) == []


CLASSES = [(1, 2, 127), (80, 160, 240), (200, 201, 255), tuple(range(7, 255, 8))]


@pytest.mark.parametrize("classes", CLASSES)
def test_grey_values_that_fill_areas_are_classes(tmp_path, caplog, classes):
    values = np.zeros((60, 12 * len(classes)), np.uint8)
    for number, value in enumerate(classes):
        columns = np.s_[12 * number + 1 : 12 * number + 9]
        values[5 + number : 25, columns] = values[40, columns] = value  # an area and a scratch
    path = saved(tmp_path / "m.png", values)
    np.testing.assert_array_equal(read_mask(path), values > 0)
    np.testing.assert_array_equal(read_labels(path), values)
    assert warnings_about(caplog, path) == []


def test_classes_that_touch_colours_and_instances_are_all_marked(tmp_path):
    touching, instances = np.zeros((60, 80), np.uint8), np.zeros((9, 9), np.uint16)
    touching[10:50, 10:40], touching[10:50, 40:70], touching[25:35, 30:50] = 90, 170, 250
    instances[0, :2] = 1, 900
    colours = np.zeros((9, 9, 3), np.uint8)
    for number, colour in enumerate([[64, 0, 0], [0, 128, 0], [192, 0, 128]]):
        colours[1:, 3 * number : 3 * number + 3] = colour
    deep = np.dstack([DISC.astype(np.uint16) * 65535] * 3)
    for number, values in enumerate((touching, colours, instances, deep)):
        path = str(tmp_path / f"{number}.png")
        cv2.imwrite(path, values)
        expected = values.max(axis=2) > 0 if values.ndim == 3 else values > 0
        np.testing.assert_array_equal(read_mask(path), expected)
    with pytest.raises(DataError, match=r"1\.png: a coloured mask; expected class values"):
        read_labels(tmp_path / "1.png")


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 200, 255)])
@pytest.mark.parametrize(("radius", "levels"), [(0.6, 256), (0.6, 8), (3, 256), (3, 8)])
def test_smoothed_drawings_are_cut_at_half_with_one_warning(
    tmp_path, caplog, colour, radius, levels
):
    """With few values, too: shades lie beside other ones."""
    sharp = np.zeros((60, 80), np.uint8)
    sharp[10:14, 8:30], sharp[30:50, 40:45], sharp[52, 5:60] = 255, 255, 255
    shades = blurred(sharp, radius) // (256 // levels) * (255 // (levels - 1))
    picture = (shades[:, :, None] / 255 * np.array(colour)).round().astype(np.uint8)
    bright, path = picture.max(axis=2), saved(tmp_path / "m.png", picture)
    for _ in range(2):
        np.testing.assert_array_equal(read_mask(path), bright >= bright.max() / 2)
    (message,) = warnings_about(caplog, path)
    share = ((bright > 0) & (bright < bright.max())).mean()
    assert f"{100 * share:.2g} % of the mask's pixels lie between 0 and" in message
    faint = blurred(DISC * np.uint8(100), 5).astype(np.uint16) * 40
    np.testing.assert_array_equal(read_mask(faint), faint >= faint.max() / 2)


@pytest.mark.parametrize("quality", [30, 100])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_what_compression_leaves_is_no_class(tmp_path, caplog, quality, kind):
    """Values next to 0 and to the greatest one, scattered about the borders of small blobs."""
    mask = np.zeros((96, 128), np.uint8)
    mask[7:16, 20:40] = mask[40:43, 60:84] = mask[70:80, 5:9] = 255
    path = saved(tmp_path / "m", mask, None, kind, quality=quality)
    read, meant = read_mask(path) > 0, mask > 0
    assert (read & meant).sum() / (read | meant).sum() > (0.85 if quality < 90 else 0.93)
    faint = saved(tmp_path / "a.jpg", DISC * 20)
    assert (read_mask(faint) != DISC).mean() < 0.005 and "with losses" in caplog.text
    with pytest.raises(DataError, match=r"a\.jpg: .*saved with losses"):
        read_labels(faint)


def test_classes_have_at_most_32_values_and_what_compression_leaves_beside_255_is_none(tmp_path):
    values = np.arange(33, dtype=np.uint8)[None]
    assert read_labels(saved(tmp_path / "a.png", values[:, :32])).max() == 31
    with pytest.raises(DataError, match=r"b\.png: 33 different values.*JPEG"):
        read_labels(saved(tmp_path / "b.png", values))
    mask = np.zeros((64, 64), np.uint8)
    mask[20:30, 20:37] = 255
    mask[19, 22:30:3], mask[31, 20:37:4] = 1, 2
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", mask)), mask == 255)


@pytest.mark.parametrize("classes", [(1, 2, 3), (31,)])
@pytest.mark.parametrize("form", ["grey", "16 bits", "PASCAL VOC"])
def test_the_greatest_value_beside_small_classes_is_refused_as_not_sure(tmp_path, classes, form):
    values = np.zeros((40, 60), np.uint16 if form == "16 bits" else np.uint8)
    unsure, path = np.iinfo(values.dtype).max, tmp_path / "m.png"
    for number, value in enumerate(classes):
        values[5:15, 14 * number + 3 : 14 * number + 13] = unsure
        values[6:14, 14 * number + 4 : 14 * number + 12] = value
    palette = np.arange(256, dtype=np.uint8).repeat(3)
    palette[3 * classes[0] : 3 * classes[0] + 3], palette[-3:] = (128, 0, 0), (224, 224, 192)
    saved(path, values) if form != "PASCAL VOC" else paletted(path, values, palette.tobytes())
    words = rf"m\.png: holds {classes[0]}.* and {unsure}, which stands for 'not sure'"
    for read in (read_mask, read_labels):
        with pytest.raises(DataError, match=words):
            read(path)


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_palette_of_greys_is_read_as_it_is_shown(tmp_path, caplog, form):
    """Programs that reduce colours put them into any order."""
    for indices, palette in ((DISC, [0] * 3 + [255] * 3), (1 - DISC, [255] * 3 + [0] * 3)):
        path = paletted(tmp_path / "m", indices.astype(np.uint8), palette, form)
        np.testing.assert_array_equal(read_mask(path), DISC)
    assert warnings_about(caplog, tmp_path) == []
    Image.fromarray(blurred(DISC * 255, 1)).convert("RGB").quantize(16).save(path, form)
    assert (read_mask(path) != DISC).mean() < 0.01


def test_labels_of_a_palette_are_marked_wherever_black_is(tmp_path):
    values = np.zeros((30, 40), np.uint8)
    values[5:15, 5:15], values[18:28, 20:35], values[2, 1:39] = 1, 2, 3
    classes = [128, 0, 0, 0, 128, 0, 1, 2, 3]
    for first in ([0, 0, 0], [9, 9, 9]):
        path = paletted(tmp_path / "m.png", values, first + classes)
        np.testing.assert_array_equal(read_mask(path), values > 0)
        np.testing.assert_array_equal(read_labels(path), values)
    path = paletted(tmp_path / "m.png", 3 - values, [1, 2, 3, 128, 0, 0, 0, 128, 0, 0, 0, 0])
    np.testing.assert_array_equal(read_mask(path), values > 0)
    path = paletted(tmp_path / "m.png", DISC, [255, 255, 255, 255, 0, 0], transparency=0)
    np.testing.assert_array_equal(read_mask(path), DISC)


@pytest.mark.parametrize("bits", [2, 4])
def test_class_values_of_few_bits_are_those_of_the_file(tmp_path, bits):
    file, values = tmp_path / "a.png", 3 * DISC + RIM
    image = pyvips.Image.new_from_array(values).copy(interpretation="b-w")
    image.pngsave(str(file), bitdepth=bits)
    np.testing.assert_array_equal(read_labels(file), values)
    np.testing.assert_array_equal(read_mask(file), DISC | RIM)


def with_alpha(colour, alpha):
    return np.dstack([np.broadcast_to(np.array(colour, np.uint8), (*alpha.shape, 3)), alpha])


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (255, 0, 0)])
def test_a_mask_drawn_in_the_alpha_channel_is_read_from_there(tmp_path, caplog, colour):
    path = saved(tmp_path / "m.png", with_alpha(colour, DISC * 255))
    for _ in range(2):
        np.testing.assert_array_equal(read_mask(path), DISC)
    (message,) = warnings_about(caplog, path)
    assert "the mask is taken from its alpha channel" in message
    np.testing.assert_array_equal(read_labels(path), DISC * 255)
    for ground in (0, 255):  # soft ink on a transparent ground
        drawing = with_alpha((ground,) * 3, alpha := blurred(DISC * 255, 2))
        drawing[alpha > 0, :3] = colour
        np.testing.assert_array_equal(read_mask(saved(path, drawing)), alpha >= 127.5)


def test_what_is_transparent_is_not_marked_and_a_photograph_has_its_mask_in_alpha(tmp_path, caplog):
    """An alpha that is the same everywhere says nothing."""
    drawing, path = with_alpha((255, 255, 255), DISC * 255), tmp_path / "a.png"
    drawing[DISC > 0, :3] = 255, 0, 0
    drawing[28:32, 38:42, :3] = 0, 255, 0
    plain = [np.dstack([DISC * 255] * 3 + [np.full_like(DISC, alpha)]) for alpha in (0, 255)]
    for values in (drawing, *plain):
        np.testing.assert_array_equal(read_mask(saved(path, values)), DISC)
    assert not caplog.records
    photo = np.random.default_rng(0).integers(0, 256, (*DISC.shape, 3), np.uint8)
    assert np.array_equal(read_mask(saved(path, np.dstack([photo, 255 * DISC]))), DISC)
    assert "is a photograph" in caplog.text


@pytest.mark.parametrize(("share", "words"), [(0.9, None), (0.985, "98.5 %"), (1, "every pixel")])
def test_a_mask_of_nearly_everything_is_named_once(tmp_path, caplog, share, words):
    values = np.zeros((200, 10), np.uint8)
    values[: round(200 * share)] = 255
    for read in (read_mask, read_labels):
        path = saved(tmp_path / f"{read.__name__}.png", values)
        read(path), read(path)
        messages = warnings_about(caplog, path)
        assert len(messages) == (words is not None)
        assert all(f"the mask marks {words}" in text for text in messages)
