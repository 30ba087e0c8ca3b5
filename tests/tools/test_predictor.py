from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from datasets import strips
from datasets.supports import SupportSet
from tools.predictor import Predictor
from utils.errors import ConfigError, DataError, WeightsError


@pytest.fixture
def supports():
    """Five views (5, 3, 64, 64) and their masks."""
    masks = torch.zeros(5, 64, 64, dtype=torch.uint8)
    masks[:, 10:30, 20:50] = 1
    return SupportSet(torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0)), masks)


@pytest.fixture
def passes(predictor):
    """Batch sizes of the backbone's forward passes, in their order."""
    sizes = []
    hook = predictor.backbone.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    yield sizes
    hook.remove()


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def variant(predictor, **changes):
    return Predictor(predictor.methods, predictor.settings, torch.device("cpu"), **changes)


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
    images = [picture(*size, seed=i) for i, size in enumerate([(64, 64), (150, 192), (30, 70), (64, 130)])]
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
    answers = predictor.segment((picture(200, 200, seed=i) for i in range(1000)), predictor.remember(supports))
    next(answers)
    answers.close()
    assert threading.active_count() == before


def test_a_method_answers_alike_alone_and_beside_another(predictor, supports):
    image, both = picture(70, 130), answers_of(predictor, picture(70, 130), supports)
    for name, method in predictor.methods.items():
        alone = Predictor({name: method}, predictor.settings, torch.device("cpu"))
        np.testing.assert_allclose(answers_of(alone, image, supports)[name].score, both[name].score, atol=1e-6)


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
    windowed, resized = (answers_of(asked, picture(40, 51), supports, windowed=w) for w in (True, False))
    for name in asked.methods:
        assert np.array_equal(windowed[name].score, resized[name].score)
        assert np.array_equal(windowed[name].label, resized[name].label)


@pytest.mark.parametrize("size", [(33, 201), (65, 64), (129, 131), (1, 7)])
@pytest.mark.parametrize("windowed", [True, False])
def test_answers_have_the_size_of_the_image(predictor, supports, size, windowed):
    for answer in answers_of(predictor, picture(*size), supports, windowed=windowed).values():
        assert answer.score.shape == answer.mask.shape == size
        assert answer.score.dtype == np.float32 and answer.label.dtype == np.uint8 and answer.mask.dtype == bool
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
    images, masks = torch.randn(20, 3, 64, 64, generator=draw), torch.zeros(20, 64, 64, dtype=torch.uint8)
    masks[:, 8:16, 8:24] = 1
    whole, bounded = (variant(predictor, memory_tokens=n).remember(SupportSet(images, masks)) for n in (0, 100))
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


def test_a_taught_defect_returns_from_its_file(predictor, tmp_path):
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
    for source in (tmp_path / "image.png", image, Image.fromarray(image)):
        one, two = taught.predict(source), other.predict(source)
        assert np.array_equal(one.score, two.score) and one.windows == two.windows == 8
    by_arrays = variant(predictor)
    by_arrays.set_support([image], [Image.fromarray(mask)])
    assert np.array_equal(by_arrays.predict(image).score, one.score)


def test_a_support_file_of_other_settings_is_refused(predictor, supports, tmp_path):
    file = tmp_path / "a.safetensors"
    with pytest.raises(ConfigError, match="set_support or load_support"):
        variant(predictor).save_support(file)
    taught = variant(predictor)
    taught.memory = taught.remember(supports)
    taught.save_support(file)
    settings = replace(predictor.settings, crop_size=32)
    with pytest.raises(WeightsError, match="its settings are not those of this predictor"):
        Predictor(predictor.methods, settings, torch.device("cpu")).load_support(file)
    alone = Predictor({"prior": predictor.methods["prior"]}, predictor.settings, torch.device("cpu"))
    with pytest.raises(WeightsError, match="its weights are not those"):
        alone.load_support(file)
    for content in (b"", file.read_bytes()[:200], b"x" * 1000):
        (tmp_path / "b.safetensors").write_bytes(content)
        with pytest.raises(WeightsError, match=r"b\.safetensors: not a readable support file"):
            taught.load_support(tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match="no such support file"):
        taught.load_support(tmp_path / "c.safetensors")


def test_a_mask_of_another_size_than_its_support_is_refused(predictor):
    with pytest.raises(DataError, match=r"support 1 has 64 x 64 pixels, its mask 64 x 65"):
        predictor.set_support([picture(64, 64)] * 2, [np.ones((64, 64)), np.ones((64, 65))])


def spotted(size, seed, spots, side=6):
    """A random image with bright spots at (top, left), and its mask."""
    image, mask = picture(*size, seed=seed) // 2, np.zeros(size, np.uint8)
    for top, left in spots:
        image[top : top + side, left : left + side] = 250
        mask[top : top + side, left : left + side] = 1
    return image, mask


def scores_of(predictor, image):
    return {n: a.score for n, a in next(predictor.segment([image], predictor.memory)).answers.items()}


def same_scores(one, other, atol=1e-5):
    for name, score in one.items():
        np.testing.assert_allclose(score, other[name], atol=atol)
    return True


@pytest.mark.parametrize("windowed", [True, False])
def test_an_image_without_a_mask_is_one_with_an_empty_mask(predictor, windowed):
    size = (100, 150) if windowed else (14, 14)
    (image, mask), query = spotted(size, 0, [(4, 5)]), picture(90, 130, seed=5)
    normal, empty = picture(100, 150, seed=3), np.zeros((100, 150), bool)
    one, other, without = variant(predictor), variant(predictor), variant(predictor)
    one.set_support([image, normal], [mask, None])
    other.set_support([normal, image], [Image.fromarray(empty), mask])
    without.set_support([image], [mask])
    assert one.memory.windowed == other.memory.windowed == without.memory.windowed == windowed
    assert same_scores(scores_of(one, query), scores_of(other, query))
    assert len(one.memory.known.normal) == 1 and not without.memory.known.normal
    assert one.memory.known.normal[0][0].shape[1] == (6 if windowed else 1) * 64, "windows cover it, or it is one view"
    assert (scores_of(one, query)["prior"] <= scores_of(without, query)["prior"] + 1e-6).all()
    with pytest.raises(DataError, match="support 1 has 100 x 150 pixels, its mask 100 x 149"):
        one.set_support([image, normal], [mask, empty[:, 1:]])


def test_a_normal_image_takes_back_what_it_shows(predictor):
    """The query itself as normal image: everything in it looks less like a defect."""
    image, mask = spotted((100, 150), 0, [(30, 40)])
    query = picture(100, 150, seed=5)
    plain, told = variant(predictor), variant(predictor)
    plain.set_support([image], [mask])
    told.set_support([image, query], [mask, None])
    before, after = scores_of(plain, query)["prior"], scores_of(told, query)["prior"]
    assert (after < before).mean() > 0.99 and (after <= before + 1e-6).all()


@pytest.mark.parametrize("masks", ["none", "empty", "both"])
def test_normal_images_alone_say_what_is_unlike_them(predictor, masks):
    images = [picture(64, 64, seed=i) for i in range(2)]
    empty = np.zeros((64, 64), np.uint8)
    given = {"none": [None, None], "empty": [empty, empty], "both": [None, empty]}[masks]
    taught = variant(predictor)
    memory = taught.set_support(images, given)
    assert memory.windowed and memory.summary is None and not memory.known.is_marked
    new, known = picture(64, 64, seed=9), scores_of(taught, images[1])
    assert known["prior"].max() < 1e-4 < 0.01 < scores_of(taught, new)["prior"].min()
    assert same_scores({"SOFS": known["prior"]}, known), "every method answers with the abnormal prior"


def test_scale_of_normal_images_alone_is_that_of_the_settings(predictor):
    resized = Predictor(
        predictor.methods, replace(predictor.settings, resize_ratio=None), torch.device("cpu"), threshold=None
    )
    memory = resized.set_support([picture(100, 150)], [None])
    assert not memory.windowed and not memory.thresholds
    assert memory.known.keys[0].shape[1] == 1 + 64


def test_no_support_at_all_is_refused(predictor):
    with pytest.raises(DataError, match="no support image is given; give at least one"):
        variant(predictor).set_support([], [])


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("defect", [True, False])
def test_a_support_file_keeps_normal_images_and_thresholds(predictor, tmp_path, count, defect):
    options = {"threshold": None, "memory_tokens": 300}
    taught, other, query = variant(predictor, **options), variant(predictor, **options), picture(90, 130, seed=5)
    pairs = [spotted((100, 150), i, [(30, 40), (60, 80)]) for i in range(2 * defect)]
    images = [image for image, _ in pairs] + [picture(100, 150, seed=10 + i) for i in range(count)]
    memory = taught.set_support(images, [mask for _, mask in pairs] + [None] * count)
    assert set(memory.thresholds) == ({"SOFS", "prior"} if defect else set())
    taught.save_support(tmp_path / "a.safetensors")
    loaded = other.load_support(tmp_path / "a.safetensors")
    assert loaded.thresholds == memory.thresholds and loaded.windowed == memory.windowed
    assert len(loaded.known.normal) == len(memory.known.normal) == (count if defect else 0)
    ours, theirs = (next(p.segment([query], p.memory)).answers for p in (taught, other))
    for name, answer in ours.items():
        assert np.array_equal(answer.score, theirs[name].score) and np.array_equal(answer.label, theirs[name].label)
        assert answer.threshold == theirs[name].threshold == memory.thresholds.get(name, 0.5)


def test_a_support_file_of_an_older_format_is_refused_with_the_remedy(predictor, supports, tmp_path):
    taught, file = variant(predictor), tmp_path / "a.safetensors"
    taught.memory = taught.remember(supports)
    taught.save_support(file)
    with safe_open(file, "pt") as opened:
        about, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for older in ({"format": "sofs-support-1"}, {}):
        rest = {name: value for name, value in about.items() if name != "format"}
        save_file(tensors, file, metadata=rest | older)
        with pytest.raises(WeightsError, match=r"a\.safetensors: its format are not those.*teach the defect again"):
            taught.load_support(file)
    assert json.loads(about["use"])["windowed"] is True


@pytest.fixture
def memories(predictor):
    """Three: of small defects with and without a normal image, and between them of a large one."""
    small, large = spotted((100, 150), 0, [(30, 40)]), spotted((40, 40), 1, [(4, 4)], side=30)
    other = spotted((100, 150), 2, [(50, 100)])
    found = [predictor.set_support(*zip(small, strict=True)), predictor.set_support(*zip(large, strict=True))]
    found.append(predictor.set_support([other[0], picture(64, 64, seed=7)], [other[1], None]))
    assert [m.windowed for m in found] == [True, False, True]
    return found


def test_memories_asked_together_answer_as_each_alone(predictor, passes, memories, tmp_path):
    """Also of different scale, for images of any kind from a generator, an unreadable one among them; windows that
    several memories look at are encoded once."""
    Image.fromarray(picture(100, 150, seed=1)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    images = [
        picture(64, 64, seed=4),
        tmp_path / "bad.png",
        tmp_path / "good.png",
        Image.fromarray(picture(30, 200, seed=3)),
    ]
    alone = [list(predictor.segment(images, memory)) for memory in memories]
    passes.clear()
    together = list(predictor.segment_all((image for image in images), memories))
    assert sum(passes) == 1 + 6 + 4 + 3, "windows of the two of small defects, and each image once for the large one"
    assert len(together) == 4
    for number, outcomes in enumerate(together):
        assert [o.error is None for o in outcomes] == [number != 1] * 3
        for mine, expected in zip(outcomes, alone, strict=True):
            assert (mine.image is None) == (expected[number].image is None)
            assert list(mine.answers) == list(expected[number].answers)
            for name, answer in mine.answers.items():
                np.testing.assert_allclose(answer.score, expected[number].answers[name].score, atol=1e-5)
                assert answer.windows == expected[number].answers[name].windows
    answers = [o.answers["prior"].score for o in together[2]]
    assert not any(np.allclose(answers[i], answers[j], atol=1e-3) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_each_set_of_supports_has_its_own_threshold(predictor, memories):
    given = [replace(memory, thresholds={"prior": at}) for memory, at in zip(memories, (0.4, 0.5, 0.6), strict=True)]
    (outcomes,) = predictor.segment_all([picture(100, 150, seed=1)], given)
    for outcome, at in zip(outcomes, (0.4, 0.5, 0.6), strict=True):
        assert [a.threshold for a in outcome.answers.values()] == [0.5, at]
        assert np.array_equal(outcome.answers["prior"].mask, outcome.answers["prior"].score > at)


@pytest.mark.parametrize("delay", [0, 0.04])
def test_images_made_on_the_way_are_made_once_whatever_asks_for_them(predictor, memories, delay):
    """Two scales take the same images, each in a thread of its own, also where the images come slowly."""
    made = []

    def come():
        for number in range(15):
            made.append(number)
            time.sleep(delay)
            yield picture(30, 40, seed=number)

    answered = list(predictor.segment_all(come(), memories[:2]))
    assert made == list(range(15)) and len(answered) == 15
    last = next(predictor.segment([picture(30, 40, seed=14)], memories[1])).answers["prior"].score
    np.testing.assert_allclose(answered[-1][1].answers["prior"].score, last, atol=1e-5)


def test_an_error_of_the_generator_reaches_whoever_asks(predictor, memories):
    before = threading.active_count()

    def come():
        yield picture(64, 64)
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        list(predictor.segment_all(come(), memories))
    assert threading.active_count() == before


def test_leaving_off_early_stops_the_threads_of_every_scale(predictor, memories):
    before = threading.active_count()
    answers = predictor.segment_all((picture(200, 200, seed=i) for i in range(1000)), memories)
    next(answers)
    assert threading.active_count() > before
    answers.close()
    assert threading.active_count() == before


def test_a_large_file_that_is_broken_half_way_is_an_error_for_all(predictor, memories, tmp_path, monkeypatch):
    """Windows of its upper part are answered before the fault shows; the images around it are answered whole."""
    monkeypatch.setattr(strips, "AT_ONCE", 10_000)
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(picture(300, 200, seed=1)).save(good)
    bad.write_bytes(good.read_bytes()[:100_000])
    outcomes = list(predictor.segment_all([good, bad, good], memories))
    assert [[o.error is None for o in row] for row in outcomes] == [[True] * 3, [False] * 3, [True] * 3]
    assert all("bad.png" in str(o.error) and not o.answers for o in outcomes[1])
    for one, other in zip(outcomes[0], outcomes[2], strict=True):
        assert one.image.pixels is None
        np.testing.assert_allclose(one.answers["SOFS"].score, other.answers["SOFS"].score, atol=1e-5)


def test_no_memories_or_no_images_give_nothing(predictor, memories):
    assert list(predictor.segment_all([], memories)) == []
    assert list(predictor.segment_all([picture(64, 64)], [])) == []
