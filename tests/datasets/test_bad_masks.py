from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from datasets.orientation import check_same_size
from datasets.masks import read_labels, read_mask
from datasets.orientation import turned_back
from datasets.readers import ds_spectrum, mvtec
from datasets.readers.anomaly import read_target
from datasets.readers.open_domain import read_open_domain
from tests.datasets.bad_files import REFUSED, RGB, exif_behind_the_pixels, saved, with_orientation
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
    ("mode", "top"),
    [("L", 1), ("L", 127), ("L", 128), ("L", 255), ("RGB", 1), ("RGB", 255), ("1", 255)],
)
def test_two_values_are_taken_without_a_warning(tmp_path, mode, top, caplog):
    path = saved(tmp_path / "m.png", DISC * np.uint8(top), mode)
    np.testing.assert_array_equal(read_mask(path), DISC)
    assert told(caplog, path) == []


def test_labels_and_colours_that_stand_for_classes_are_all_marked(tmp_path, caplog):
    labels = np.pad(
        np.arange(128, dtype=np.uint8).reshape(8, 16, 1, 1) + np.zeros((5, 5), np.uint8),
        ((0, 0), (0, 0), (1, 1), (1, 1)),
    )
    labels = labels.transpose(0, 2, 1, 3).reshape(8 * 7, 16 * 7)
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "labels.png", labels)), labels > 0)
    few = np.arange(32, dtype=np.uint8).reshape(2, 16)
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "few.png", few)), few > 0)
    colours = np.zeros((9, 9, 3), np.uint8)
    for number, colour in enumerate([[64, 0, 0], [0, 128, 0], [192, 0, 128]]):
        colours[:, 3 * number : 3 * number + 3] = colour
    assert read_mask(saved(tmp_path / "colours.png", colours)).all()
    instances = np.zeros((9, 9), np.uint16)
    instances[0, :2] = 1, 900
    assert read_mask(saved(tmp_path / "instances.png", instances)).sum() == 2
    assert not [text for text in told(caplog, tmp_path) if "lie between" in text]


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
    ways = {
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
    }
    shown = np.array(
        Image.fromarray(MARKS).transpose(ways.get(orientation, Image.Transpose.ROTATE_90))
    )
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
def test_where_sizes_cannot_tell_a_warning_names_the_image_once(
    tmp_path, orientation, side, warns, caplog
):
    image = with_orientation(tmp_path / "i.png", np.zeros((side, 18, 3), np.uint8), orientation)
    mask = np.eye(side, 18, dtype=np.uint8)
    for _ in range(2):
        assert turned_back(mask, image) is mask
    assert len(told(caplog, image)) == warns


def shown_by(pixels, orientation):
    """What a viewer shows of stored pixels: Pillow's own turning."""
    image = Image.fromarray(pixels)
    image.getexif()[274] = orientation
    return np.array(ImageOps.exif_transpose(image))


def stored_for(shown, orientation):
    """Pixels that a viewer shows so: tried out, one way of Pillow's after the other."""
    ways = [shown, *(np.array(Image.fromarray(shown).transpose(way)) for way in Image.Transpose)]
    return next(way for way in ways if np.array_equal(shown_by(way, orientation), shown))


@pytest.mark.parametrize("name", ["m.png", "m.tif"])
@pytest.mark.parametrize("side", [12, 18])
@pytest.mark.parametrize("own", range(2, 9))
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_with_an_orientation_of_its_own_lies_on_its_image_as_both_are_shown(
    tmp_path, orientation, own, side, name
):
    marks = np.zeros((side, 18), np.uint8)
    marks[1:4, 2:9] = 255
    image = with_orientation(tmp_path / "i.jpg", np.zeros((side, 18, 3), np.uint8), orientation)
    mask = with_orientation(tmp_path / name, stored_for(shown_by(marks, orientation), own), own)
    check_same_size(image, mask)
    np.testing.assert_array_equal(turned_back(read_mask(mask), image, mask), marks > 0)


@pytest.mark.parametrize(
    ("orientation", "own", "side", "warns"),
    [
        (1, 3, 12, True),
        (1, 6, 18, True),
        (3, 2, 12, True),
        (3, 3, 12, False),
        (6, 6, 12, False),
        (1, 6, 12, False),
    ],
)
def test_a_mask_that_also_fits_as_stored_is_named_once(
    tmp_path, orientation, own, side, warns, caplog
):
    image = with_orientation(tmp_path / "i.png", np.zeros((side, 18, 3), np.uint8), orientation)
    stored = stored_for(shown_by(np.eye(side, 18, dtype=np.uint8), orientation), own)
    mask = with_orientation(tmp_path / "m.png", stored, own)
    for _ in range(2):
        turned_back(read_mask(mask), image, mask)
    assert len(told(caplog, mask)) == warns


@pytest.mark.parametrize(("orientation", "own"), [(1, 6), (6, 3)])
def test_where_only_the_stored_sizes_fit_the_orientation_of_a_mask_is_left_aside(
    tmp_path, orientation, own, caplog
):
    image = with_orientation(tmp_path / "i.png", RGB, orientation)
    mask = with_orientation(tmp_path / "m.png", MARKS, own)
    check_same_size(image, mask)
    np.testing.assert_array_equal(turned_back(read_mask(mask), image, mask), MARKS)
    (message,) = told(caplog, mask)
    assert f"orientation {own}, it does not fit" in message


@pytest.mark.parametrize(
    ("orientation", "own", "size"), [(1, 3, (18, 12)), (6, 6, (18, 12)), (6, 8, (18, 13))]
)
def test_a_turned_mask_that_fits_no_way_is_refused_by_name(tmp_path, orientation, own, size):
    image = with_orientation(tmp_path / "i.png", RGB, orientation)
    mask = with_orientation(tmp_path / "m.png", np.zeros(size, np.uint8), own)
    with pytest.raises(
        DataError,
        match=rf"m\.png is 18 x 1\d .*EXIF orientation {own}, but its image .*i\.png is 12",
    ):
        check_same_size(image, mask)


def test_the_orientation_of_a_mask_is_found_behind_its_pixels(tmp_path):
    image = saved(tmp_path / "i.png", RGB)
    mask = with_orientation(tmp_path / "m.png", np.rot90(MARKS, 2), 3)
    exif_behind_the_pixels(mask)
    np.testing.assert_array_equal(turned_back(read_mask(mask), image, mask), MARKS)


def write_turned(folder, drawn):
    """An image that a viewer turns right (6), and its mask as drawn there, on the stored pixels, or with an orientation
    of its own."""
    (folder / "image").mkdir(parents=True)
    (folder / "mask").mkdir()
    with_orientation(folder / "image" / "a.jpg", RGB, 6)
    if drawn == "tagged":
        with_orientation(folder / "mask" / "a.png", np.rot90(MARKS, 2), 8)
    else:
        saved(folder / "mask" / "a.png", np.rot90(MARKS, -1) if drawn == "shown" else MARKS)


@pytest.mark.parametrize("drawn", ["shown", "stored", "tagged"])
def test_every_layout_turns_masks_back(tmp_path, drawn):
    write_turned(tmp_path / "ds" / "cup", drawn)
    (sample,), _ = ds_spectrum.read_object(tmp_path / "ds", "cup")
    np.testing.assert_array_equal(sample.decode_mask(), MARKS)

    write_turned(tmp_path / "mvtec" / "x", drawn)
    cup = tmp_path / "mvtec" / "cup"
    for place in ("train/good", "test/bad", "ground_truth/bad"):
        (cup / place).mkdir(parents=True)
    with_orientation(cup / "train" / "good" / "a.jpg", RGB, 6)
    with_orientation(cup / "test" / "bad" / "a.jpg", RGB, 6)
    (tmp_path / "mvtec" / "x" / "mask" / "a.png").rename(cup / "ground_truth" / "bad" / "a.png")
    (item,) = mvtec.read_object(tmp_path / "mvtec", "cup").test
    np.testing.assert_array_equal(read_target(item, (12, 18)), MARKS)

    write_turned(tmp_path / "open" / "cup" / "support", drawn)
    (tmp_path / "open" / "cup" / "query" / "image").mkdir(parents=True)
    saved(tmp_path / "open" / "cup" / "query" / "image" / "q.png", RGB)
    assert list(read_open_domain(tmp_path / "open", "cup").supports) == [""]


def test_a_mask_of_another_size_is_refused(tmp_path):
    write_turned(tmp_path / "cup", "shown")
    saved(tmp_path / "cup" / "mask" / "a.png", np.zeros((18, 13), np.uint8))
    with pytest.raises(DataError, match=r"mask/a\.png is 18 x 13 .*/image/a\.jpg is 12 x 18"):
        ds_spectrum.read_object(tmp_path, "cup")


@pytest.mark.parametrize("kind", sorted(set(REFUSED) - {"folder"}))
def test_a_mask_that_is_no_image_is_refused_by_name(tmp_path, kind):
    write_turned(tmp_path / "cup", "stored")
    (tmp_path / "cup" / "mask" / "a.png").unlink()
    REFUSED[kind](tmp_path / "cup" / "mask" / "a.png")
    with pytest.raises(DataError, match=r"mask/a\.png"):
        ds_spectrum.read_object(tmp_path, "cup")


def with_alpha(colour, alpha):
    return np.dstack([np.broadcast_to(np.array(colour, np.uint8), (*alpha.shape, 3)), alpha])


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (255, 0, 0)])
@pytest.mark.parametrize("name", ["m.png", "m.tif", "m.webp"])
def test_a_mask_drawn_in_the_alpha_channel_is_read_from_there_and_that_is_said(
    tmp_path, caplog, colour, name
):
    path, options = tmp_path / name, {"lossless": True, "exact": True} if name == "m.webp" else {}
    saved(path, with_alpha(colour, DISC * 255), **options)
    for _ in range(2):
        np.testing.assert_array_equal(read_mask(path), DISC)
    (message,) = told(caplog, path)
    assert "taken from its alpha channel" in message
    np.testing.assert_array_equal(read_labels(path), DISC * 255)


@pytest.mark.parametrize("ground", [(255, 255, 255), (0, 0, 0)])
@pytest.mark.parametrize("ink", [(255, 255, 255), (0, 0, 0), (255, 0, 0)])
def test_ink_of_one_colour_on_a_transparent_ground_is_its_alpha(tmp_path, caplog, ground, ink):
    """Cut at half where the brush was soft, whatever colour lies under what cannot be seen."""
    alpha = np.array(Image.fromarray(DISC * 255).filter(ImageFilter.GaussianBlur(2)))
    drawing = with_alpha(ground, alpha)
    drawing[alpha > 0, :3] = ink
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "a.png", drawing)), alpha >= 127.5)
    assert "taken from its alpha channel" in told(caplog, tmp_path)[0]


def test_what_is_transparent_is_not_marked(tmp_path):
    """Of drawings in several colours; a mask whose alpha is the same everywhere is as its colours are."""
    drawing = with_alpha((255, 255, 255), DISC * 255)
    drawing[DISC > 0, :3] = 255, 0, 0
    drawing[28:32, 38:42, :3] = 0, 255, 0
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "a.png", drawing)), DISC)
    for alpha in (np.full_like(DISC, 255), np.zeros_like(DISC)):
        plain = np.dstack([DISC * 255] * 3 + [alpha])
        np.testing.assert_array_equal(read_mask(saved(tmp_path / "b.png", plain)), DISC)


@pytest.mark.parametrize(
    ("share", "words"), [(0.91, "91 %"), (0.985, "98.5 %"), (1, "every pixel")]
)
def test_a_mask_of_nearly_everything_is_told(tmp_path, caplog, share, words):
    values = np.zeros((200, 10), np.uint8)
    values[: round(200 * share)] = 255
    for read in (read_mask, read_labels):
        read(saved(tmp_path / f"{read.__name__}.png", values))
        read(saved(tmp_path / f"{read.__name__}.png", values))
    messages = told(caplog, tmp_path)
    assert len(messages) == 2 and all(f"the mask marks {words}" in text for text in messages)
    values[: round(200 * 0.9)], values[round(200 * 0.9) :] = 255, 0
    read_mask(saved(tmp_path / "less.png", values))
    assert len(told(caplog, tmp_path)) == 2


@pytest.mark.parametrize(
    "classes",
    [(80, 160, 240), (1, 128), (128, 255), (200, 201, 255), tuple(range(7, 255, 8)), (3, 254)],
)
def test_grey_values_that_fill_areas_are_classes_whatever_their_height(tmp_path, caplog, classes):
    values = np.zeros((60, 12 * len(classes)), np.uint8)
    for number, value in enumerate(classes):
        values[5 + number : 25, 12 * number + 1 : 12 * number + 9] = value
        values[40, 12 * number + 1 : 12 * number + 9] = value  # a scratch, a pixel wide
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", values)), values > 0)
    assert told(caplog, tmp_path) == []


def test_classes_that_touch_are_classes_still(tmp_path):
    values = np.zeros((60, 80), np.uint8)
    values[10:50, 10:40], values[10:50, 40:70], values[25:35, 30:50] = 90, 170, 250
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", values)), values > 0)


@pytest.mark.parametrize("colour", [(255, 0, 0), (255, 255, 255), (0, 200, 255)])
@pytest.mark.parametrize("radius", [0.6, 1, 3])
def test_smoothed_drawings_of_any_colour_and_size_are_cut_at_half(tmp_path, caplog, colour, radius):
    """With few values, too: what tells shades is that they lie beside others."""
    sharp = np.zeros((60, 80), np.uint8)
    sharp[10:14, 8:30], sharp[30:50, 40:45], sharp[52, 5:60] = 255, 255, 255
    grown = np.array(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(radius)))
    for levels in (256, 8):
        shades = (grown // (256 // levels) * (255 // (levels - 1))).clip(0, 255)
        picture = (shades[:, :, None] / 255 * np.array(colour)).round().astype(np.uint8)
        bright = picture.max(axis=2)
        mask = read_mask(saved(tmp_path / f"{levels}.png", picture))
        np.testing.assert_array_equal(mask, bright >= bright.max() / 2)
    assert len(told(caplog, tmp_path)) == 2


@pytest.mark.parametrize("classes", [(1,), (1, 2, 3), (31,)])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_255_beside_small_class_values_is_refused_as_not_sure(tmp_path, classes, mode):
    values = np.zeros((40, 60), np.uint8)
    for number, value in enumerate(classes):
        values[5:15, 14 * number + 3 : 14 * number + 13] = 255
        values[6:14, 14 * number + 4 : 14 * number + 12] = value
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / "m.png")
    for read in (read_mask, read_labels):
        with pytest.raises(
            DataError, match=r"m\.png: holds .* and 255, which stands for 'not sure' in most tools"
        ):
            read(tmp_path / "m.png")


@pytest.mark.parametrize("quality", [70, 90, 95, 97, 98, 99, 100])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_what_compression_leaves_is_no_class_however_little_it_is(tmp_path, quality, kind):
    """Values next to 0 and to the greatest one, scattered about the borders of thin lines and small blobs."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        mask = np.zeros((96, 128), np.uint8)
        for _ in range(3):
            top, left = rng.integers(5, 80), rng.integers(5, 100)
            mask[top : top + rng.integers(2, 12), left : left + rng.integers(3, 25)] = 255
        path = tmp_path / f"{seed}.{kind.lower()}"
        Image.fromarray(mask).save(path, kind, quality=quality)
        read, meant = read_mask(path) > 0, mask > 0
        assert (read & meant).sum() / (read | meant).sum() > (0.85 if quality < 90 else 0.93)


@pytest.mark.parametrize("order", ["black first", "white first"])
@pytest.mark.parametrize("form", ["PNG", "GIF", "TIFF"])
def test_a_palette_of_greys_is_read_as_it_is_shown(tmp_path, caplog, order, form):
    """Programs that reduce colours put them into any order."""
    image = Image.fromarray((DISC if order == "black first" else 1 - DISC).astype(np.uint8), "P")
    image.putpalette(
        [0, 0, 0, 255, 255, 255] if order == "black first" else [255, 255, 255, 0, 0, 0]
    )
    image.save(tmp_path / "m", form)
    np.testing.assert_array_equal(read_mask(tmp_path / "m"), DISC)
    assert told(caplog, tmp_path) == []


def test_a_bmp_that_the_decoder_gets_wrong_is_refused(tmp_path):
    image = Image.fromarray(DISC, "P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(tmp_path / "m.bmp")
    with pytest.raises(
        DataError, match=r"m\.bmp: a BMP of a black and a white palette entry.*; save it as PNG"
    ):
        read_mask(tmp_path / "m.bmp")
    image.convert("1").save(tmp_path / "m.bmp")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.bmp"), DISC)


@pytest.mark.parametrize("colours", [2, 16])
def test_a_mask_of_reduced_colours_is_the_mask(tmp_path, colours):
    smooth = Image.fromarray(DISC * 255).filter(ImageFilter.GaussianBlur(1 if colours > 2 else 0))
    smooth.convert("RGB").quantize(colours).save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png") != DISC).mean() < 0.01


def test_labels_of_a_palette_are_marked_wherever_black_is(tmp_path):
    values = np.zeros((30, 40), np.uint8)
    values[5:15, 5:15], values[18:28, 20:35], values[2, 1:39] = 1, 2, 3
    classes = [128, 0, 0, 0, 128, 0, 1, 2, 3]
    for name, palette in {"VOC": [0, 0, 0, *classes], "no black": [9, 9, 9, *classes]}.items():
        image = Image.fromarray(values, "P")
        image.putpalette(palette)
        image.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png"), values > 0)
        np.testing.assert_array_equal(read_labels(tmp_path / f"{name}.png"), values)
    image = Image.fromarray(3 - values, "P")
    image.putpalette([1, 2, 3, 128, 0, 0, 0, 128, 0, 0, 0, 0])
    image.save(tmp_path / "black last.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "black last.png"), values > 0)


def test_a_transparent_index_of_a_palette_is_not_marked(tmp_path):
    image = Image.fromarray(DISC, "P")
    image.putpalette([255, 255, 255, 255, 0, 0])
    image.save(tmp_path / "m.png", transparency=0)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), DISC)


def test_small_values_that_compression_leaves_beside_255_are_no_class(tmp_path, caplog):
    mask = np.zeros((64, 64), np.uint8)
    mask[20:30, 20:37] = 255
    mask[19, 22:30:3] = 1
    mask[31, 20:37:4] = 2
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", mask)), mask == 255)
    assert "lie between 0 and 255" in told(caplog, tmp_path)[0]


def test_probabilities_in_percent_and_smoothed_masks_of_little_height_are_cut_at_half(tmp_path):
    for most in (100, 60):
        shades = np.array(
            Image.fromarray(DISC * np.uint8(most)).filter(ImageFilter.GaussianBlur(5))
        )
        path = saved(tmp_path / f"{most}.png", shades)
        np.testing.assert_array_equal(read_mask(path), shades >= shades.max() / 2)
    deep = (
        np.array(Image.fromarray(DISC * np.uint8(255)).filter(ImageFilter.GaussianBlur(5))).astype(
            np.uint16
        )
        * 16
    )
    np.testing.assert_array_equal(
        read_mask(saved(tmp_path / "deep.png", deep)), deep >= deep.max() / 2
    )
