from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datasets.views import SupportSet
from tests.helpers import picture, variant
from tools.predictor import Predictor
from utils.errors import ConfigError, DataError, WeightsError


def answers_of(predictor, image, supports, windowed=True):
    memory = predictor.remember(replace(supports, windowed=windowed))
    return next(predictor.segment([image], memory)).answers


def test_methods_share_each_pass_and_supports_are_seen_once(predictor, passes, supports):
    assert list(predictor.methods) == ["SOFS", "prior"]
    memory = predictor.remember(supports)
    assert passes == [4, 1]
    for _ in range(2):
        passes.clear()
        answers = next(predictor.segment([picture(150, 192)], memory)).answers
        assert passes == [4, 4, 1], "nine windows"
    assert not np.array_equal(answers["SOFS"].score, answers["prior"].score)
    assert list(answers) == ["SOFS", "prior"] and {a.windows for a in answers.values()} == {9}
    passes.clear()
    list(predictor.segment([picture(150, 192)], replace(memory, windowed=False)))
    assert passes == [1]


def test_equal_support_views_are_encoded_once(predictor, passes, supports):
    def some(places):
        return SupportSet(supports.images[places], supports.masks[places])

    order = [0, 1, 0, 2, 0, 1]
    repeated = predictor.remember(some(order))
    assert passes == [3]
    each = [predictor.remember(some([i])).summary.prototype for i in order]
    torch.testing.assert_close(repeated.summary.prototype, torch.stack(each).mean(0))


def test_windows_of_several_images_share_a_pass_and_come_in_order(predictor, passes, supports):
    memory = predictor.remember(supports)
    images = [
        picture(*size, seed=i) for i, size in enumerate([(64, 64), (150, 192), (30, 70), (64, 130)])
    ]
    alone = [next(predictor.segment([image], memory)).answers["SOFS"] for image in images]
    passes.clear()
    together = [outcome.answers["SOFS"] for outcome in predictor.segment(images, memory)]
    assert passes == [4, 4, 4, 3], "1 + 9 + 2 + 3 windows"
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.score, other.score, atol=1e-5)


def test_an_unreadable_image_is_reported_in_its_place(predictor, passes, supports, tmp_path):
    before, good, bad = threading.active_count(), tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(picture(64, 150)).save(good)
    bad.write_bytes(good.read_bytes()[:100])
    outcomes = list(predictor.segment([good, bad, good], predictor.remember(supports)))
    assert [o.error is None for o in outcomes] == [True, False, True]
    assert "bad.png" in str(outcomes[1].error) and not outcomes[1].answers
    assert np.array_equal(outcomes[0].answers["SOFS"].score, outcomes[2].answers["SOFS"].score)
    predictor.memory = predictor.remember(supports)
    with pytest.raises(DataError, match=r"bad\.png"):
        list(predictor.predict_many([good, bad]))
    assert threading.active_count() == before, "the threads are gone"


def test_leaving_off_early_stops_the_threads(predictor, supports):
    before = threading.active_count()
    answers = predictor.segment(
        (picture(200, 200, seed=i) for i in range(1000)), predictor.remember(supports)
    )
    next(answers)
    answers.close()
    assert threading.active_count() == before


def test_a_method_answers_alike_alone_and_beside_another(predictor, supports):
    image, both = picture(70, 130), answers_of(predictor, picture(70, 130), supports)
    for name, method in predictor.methods.items():
        alone = Predictor({name: method}, predictor.settings, torch.device("cpu"))
        np.testing.assert_allclose(
            answers_of(alone, image, supports)[name].score, both[name].score, atol=1e-6
        )


def test_windows_per_pass_do_not_change_the_answer(predictor, supports):
    scores = []
    for count in (1, 3, 100):
        answers = answers_of(variant(predictor, window_batch=count), picture(150, 192), supports)
        scores.append([answers[name].score for name in answers])
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], atol=1e-5)


@pytest.mark.parametrize("merge", ["probability", "reference"])
def test_a_window_over_a_small_image_is_the_whole_image(predictor, supports, merge):
    asked = variant(predictor, merge=merge)
    windowed, resized = (
        answers_of(asked, picture(40, 51), supports, windowed=w) for w in (True, False)
    )
    for name in asked.methods:
        assert np.array_equal(windowed[name].score, resized[name].score)
        assert np.array_equal(windowed[name].label, resized[name].label)


@pytest.mark.parametrize("size", [(33, 201), (65, 64), (129, 131), (1, 7)])
@pytest.mark.parametrize("windowed", [True, False])
def test_answers_have_the_size_of_the_image(predictor, supports, size, windowed):
    for answer in answers_of(predictor, picture(*size), supports, windowed=windowed).values():
        assert answer.score.shape == answer.mask.shape == size
        assert (
            answer.score.dtype == np.float32
            and answer.label.dtype == np.uint8
            and answer.mask.dtype == bool
        )
        assert answer.score.min() >= 0 and answer.score.max() <= 1


def test_windows_see_their_own_part_of_the_image(predictor, supports):
    """A change in the lower right window leaves the scores of the upper left one as they are."""
    image = picture(128, 128)
    changed = image.copy()
    changed[64:, 64:] = 0
    before, after = (answers_of(predictor, i, supports)["prior"].score for i in (image, changed))
    assert np.array_equal(before[:64, :64], after[:64, :64])
    assert np.abs(before[64:, 64:] - after[64:, 64:]).max() > 0.01


def test_overlapping_windows_leave_no_seam(predictor, supports):
    """Across the borders of windows that overlap the score changes no more than elsewhere."""
    image = cv2.GaussianBlur(picture(192, 192), (0, 0), 6)
    steps = {}
    for overlap in (0.0, 0.5):
        score = answers_of(variant(predictor, overlap=overlap), image, supports)["prior"].score
        change = np.abs(np.diff(score, axis=1)).mean(0)
        steps[overlap] = change[[63, 127]].mean() / change.mean()
    assert steps[0.0] > 3 > 1.5 > steps[0.5]


def test_threshold_cuts_the_score(predictor, supports):
    answer = answers_of(variant(predictor, threshold=0.45), picture(64, 64), supports)["prior"]
    assert np.array_equal(answer.mask, answer.score > 0.45)
    assert 0 < answer.mask.mean() < 1


def test_half_precision_stays_near(predictor, supports):
    image, half = picture(64, 64), variant(predictor, precision="bf16")
    exact = answers_of(predictor, image, supports)
    for name, answer in answers_of(half, image, supports).items():
        assert answer.score.dtype == np.float32
        assert 0 < np.abs(answer.score - exact[name].score).max() < 0.1


def test_memory_is_bounded_and_still_knows_the_supports(predictor, passes):
    """Twenty views leave as many background tokens as asked for, and what they marked is all there."""
    draw = torch.Generator().manual_seed(0)
    images, masks = (
        torch.randn(20, 3, 64, 64, generator=draw),
        torch.zeros(20, 64, 64, dtype=torch.uint8),
    )
    masks[:, 8:16, 8:24] = 1
    whole, bounded = (
        variant(predictor, memory_tokens=n).remember(SupportSet(images, masks)) for n in (0, 100)
    )
    marked = int((whole.known.share > 0).sum())
    assert [m.known.keys[0].shape[1] for m in (whole, bounded)] == [20 * 64, marked + 100]
    assert torch.equal(whole.known.share, bounded.known.share)
    torch.testing.assert_close(whole.known.mean, bounded.known.mean)
    torch.testing.assert_close(whole.summary, bounded.summary)


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_mirrored_supports_are_known_in_the_mirror(predictor, passes, axes):
    image, mask = picture(64, 64), np.zeros((64, 64), np.uint8)
    mask[8:24, 40:56] = 1
    plain, mirrored = variant(predictor), variant(predictor, mirrored=True)
    for one, encoded in ((plain, 1), (mirrored, 4)):
        passes.clear()
        one.set_support([image], [mask])
        assert sum(passes) == encoded
    torch.testing.assert_close(plain.memory.summary, mirrored.memory.summary)
    assert len(mirrored.memory.known.sizes) == len(plain.memory.known.sizes)
    found, not_found = (
        next(p.segment([np.flip(image, axes).copy()], p.memory)).answers["prior"].mask[4::8, 4::8]
        for p in (mirrored, plain)
    )
    expected = np.flip(mask, axes)[4::8, 4::8] > 0
    assert np.array_equal(found, expected) and not np.array_equal(not_found, expected)


def test_a_taught_defect_returns_from_its_file(predictor, tmp_path, monkeypatch):
    image, file = picture(120, 200), tmp_path / "defects" / "scratch.safetensors"
    mask = np.zeros((120, 200), np.uint8)
    mask[50:56, 60:90] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    taught = variant(predictor)
    taught.set_support([tmp_path / "image.png"], [tmp_path / "mask.png"])
    taught.save_support(file)
    other = variant(predictor)
    other.load_support(file)
    monkeypatch.setenv("HOME", str(tmp_path))
    other.save_support("~/again.safetensors")
    other.load_support("~/again.safetensors")
    assert (tmp_path / "again.safetensors").is_file()
    for source in (tmp_path / "image.png", image, Image.fromarray(image)):
        one, two = taught.predict(source), other.predict(source)
        assert np.array_equal(one.score, two.score) and one.windows == two.windows == 8
    by_arrays = variant(predictor)
    by_arrays.set_support([image], [Image.fromarray(mask)])
    assert np.array_equal(by_arrays.predict(image).score, one.score)


def test_a_support_file_of_other_settings_is_refused(predictor, supports, tmp_path, monkeypatch):
    file = tmp_path / "a.safetensors"
    with pytest.raises(ConfigError, match="set_support or load_support"):
        variant(predictor).save_support(file)
    taught = variant(predictor)
    taught.memory = taught.remember(supports)
    taught.save_support(file)
    settings = replace(predictor.settings, crop_size=32)
    with pytest.raises(WeightsError, match="its settings are not those of this predictor"):
        Predictor(predictor.methods, settings, torch.device("cpu")).load_support(file)
    with monkeypatch.context() as patch:
        patch.setattr(
            predictor.backbone, "layers", [layer - 1 for layer in predictor.backbone.layers]
        )
        with pytest.raises(WeightsError, match="its settings are not those of this predictor"):
            taught.load_support(file)
    alone = Predictor(
        {"prior": predictor.methods["prior"]}, predictor.settings, torch.device("cpu")
    )
    with pytest.raises(WeightsError, match="its weights are not those"):
        alone.load_support(file)
    for content in (b"", file.read_bytes()[:200], b"x" * 1000):
        (tmp_path / "b.safetensors").write_bytes(content)
        with pytest.raises(WeightsError, match=r"b\.safetensors: not a readable support file"):
            taught.load_support(tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match="no such support file"):
        taught.load_support(tmp_path / "c.safetensors")


def test_a_mask_of_another_size_than_its_support_is_refused(predictor):
    with pytest.raises(
        DataError, match=r"mask 1, .*\(64, 65\) has 64 x 65 pixels .*, its image 64 x 64"
    ):
        predictor.set_support([picture(64, 64)] * 2, [np.ones((64, 64)), np.ones((64, 65))])


@pytest.mark.parametrize(
    "one", ["a.png", Path("a.png"), Image.new("L", (64, 64)), picture(64, 64), None, 3]
)
def test_one_picture_in_place_of_a_list_is_refused(predictor, one):
    taught = variant(predictor)
    with pytest.raises(
        DataError, match=r"images is .*; expected a list of paths, PIL images or arrays"
    ):
        taught.set_support(one, [None])
    with pytest.raises(DataError, match=r"masks is .*; expected a list"):
        taught.set_support([picture(64, 64)], one)
    taught.set_support([picture(64, 64)], [None])
    with pytest.raises(DataError, match=r"images is .*; expected a list"):
        list(taught.predict_many(one))


def test_a_picture_that_cannot_be_meant_is_refused_by_its_number(predictor):
    good, bad = picture(64, 64), picture(64, 64).transpose(2, 0, 1)
    taught = variant(predictor)
    with pytest.raises(
        DataError,
        match=r"support image 1, an array of uint8, shape \(3, 64, 64\): expected \(h, w\)",
    ):
        taught.set_support([good, bad], [None, None])
    with pytest.raises(DataError, match=r"mask 1, an array of float64, .*whole numbers"):
        taught.set_support([good, good], [None, np.full((64, 64), 0.5)])
    with pytest.raises(
        DataError,
        match=r"there are 1 masks, but more images; .* None for one of the normal surface",
    ):
        taught.set_support([good, good], [None])
    taught.set_support([good], [None])
    answers = taught.predict_many([good, None])
    assert next(answers).mask.shape == (64, 64)
    with pytest.raises(DataError, match="image 1, a value of type NoneType"):
        next(answers)
    for wrong in (None, bad, np.zeros((0, 64, 3), np.uint8), good / 255, [good]):
        with pytest.raises(DataError):
            taught.predict(wrong)


@pytest.mark.parametrize("container", [np.stack, iter, tuple])
def test_several_pictures_may_come_in_any_container(predictor, container):
    taught, images = variant(predictor), container([picture(64, 70)] * 2)
    taught.set_support((picture(64, 64),), [np.eye(64, dtype=bool)])
    assert [p.mask.shape for p in taught.predict_many(images)] == [(64, 70)] * 2


@pytest.mark.parametrize("kind", ["RGBA", "JPEG noise", "16 bit", "grey", "alpha"])
def test_answers_are_the_same_whatever_way_the_pictures_come_in(predictor, tmp_path, kind):
    image, mask = picture(96, 128), np.zeros((96, 128), np.uint8)
    mask[20:40, 30:70] = 255
    if kind == "RGBA":
        opaque = np.full((96, 128), 255, np.uint8)
        image, mask = np.dstack([image, opaque]), np.dstack([mask, mask, mask, opaque])
    if kind == "JPEG noise":
        noise = np.random.default_rng(0).integers(-9, 10, mask.shape)
        mask = np.clip(mask.astype(int) + noise, 0, 255).astype(np.uint8)
    if kind == "16 bit":
        image = image[:, :, 0].astype(np.uint16) * 257
    if kind == "grey":
        image = image[:, :, 0]
    if kind == "alpha":
        mask = np.dstack([np.full((96, 128, 3), 255, np.uint8), mask])
    scores = []
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for way in (
        lambda path, _: path,
        lambda path, _: Image.open(path),
        lambda path, pixels: pixels,
    ):
        taught = variant(predictor)
        taught.set_support([way(tmp_path / "image.png", image)], [way(tmp_path / "mask.png", mask)])
        assert float(taught.memory.known.share.gt(0).float().mean()) > 0.05, "something is marked"
        scores.append(taught.predict(way(tmp_path / "image.png", image)).score)
    assert np.array_equal(scores[0], scores[1]) and np.array_equal(scores[0], scores[2])
