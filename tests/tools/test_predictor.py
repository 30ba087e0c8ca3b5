from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets import large_images
from datasets.large_images import ImageStrips
from datasets.refinement import refine
from datasets.views import SupportSet
from datasets.windows import tile
from tests.datasets.bad_files import saved, truncated
from tests.helpers import ask, picture, spotted, variant
from tools.predictor import Predictor
from utils.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def memories(predictor):
    """Three: of small defects with and without a normal image, and between them of a large one;
    the last one sees its queries in smaller windows."""
    small, large = spotted((100, 150), 0, [(30, 40)]), spotted((40, 40), 1, [(4, 4)], side=30)
    other = spotted((100, 150), 2, [(50, 100)])
    pairs = [[small], [large], [other, (picture(64, 64, seed=7), None)]]
    taught = [variant(predictor).teach(supports) for supports in pairs]
    assert [memory.window for memory in taught] == [64, 0, 64]
    return [*taught[:2], replace(taught[2], window=50)]


def test_methods_share_each_pass_and_equal_supports_are_encoded_once(predictor, passes, supports):
    order = [0, 1, 0, 2, 0, 1]
    repeated = predictor.remember(SupportSet(supports.images[order], supports.masks[order], 64))
    assert passes == [3]
    passes.clear()
    memory = predictor.remember(supports)
    assert passes == [4, 1] and memory.extras["SOFS"].keys() == repeated.extras["SOFS"].keys()
    passes.clear()
    answers = ask(predictor, picture(150, 192), memory)
    assert passes == [4, 4, 1] and {a.windows for a in answers.values()} == {9}
    assert list(answers) == list(predictor.methods) == ["SOFS", "prior"]
    assert np.abs(answers["SOFS"].score - answers["prior"].score).max() > 0.01
    for name, method in predictor.methods.items():
        alone = Predictor({name: method}, predictor.settings, torch.device("cpu"))
        score = ask(alone, picture(150, 192), alone.remember(supports))[name].score
        np.testing.assert_allclose(score, answers[name].score, atol=1e-6)


def test_windows_see_their_part_of_the_image_and_leave_no_seam_where_they_overlap(
    predictor, memories
):
    image = picture(128, 128)
    changed = image.copy()
    changed[64:, 64:] = 0
    before, after = (ask(predictor, i, memories[0])["prior"].score for i in (image, changed))
    assert np.array_equal(before[:64, :64], after[:64, :64])
    assert np.abs(before[64:, 64:] - after[64:, 64:]).max() > 0.01
    image, steps = cv2.GaussianBlur(picture(192, 192), (0, 0), 6), {}
    for overlap in (0.0, 0.5):
        asked = variant(predictor, overlap=overlap)
        change = np.abs(np.diff(ask(asked, image, memories[0])["prior"].score, axis=1)).mean(0)
        steps[overlap] = change[[63, 127]].mean() / change.mean()
    assert steps[0.0] > 3 > 1.5 > steps[0.5]


def test_the_threshold_of_the_memory_goes_before_that_of_the_predictor(predictor, memories):
    asked = variant(predictor, threshold=0.45)
    given = [replace(memories[0], thresholds={"prior": at}) for at in (0.4, 0.55)]
    (outcome,) = asked.segment([(picture(64, 64), [memories[0], *given])])
    for answers, at in zip(outcome.answers, (0.45, 0.4, 0.55), strict=True):
        answer = answers["prior"]
        assert answer.threshold == at and answers["SOFS"].threshold == 0.45
        assert np.array_equal(answer.mask, answer.score > at) and answer.mask.dtype == bool
    assert 0 < outcome.answers[0]["prior"].mask.mean() < 1


def test_windows_of_several_images_share_a_pass_and_no_answer_depends_on_it(
    predictor, passes, memories
):
    """It is that of the image alone, to the last bit; a lone last window is encoded twice."""
    memory, sizes = memories[0], [(64, 64), (150, 192), (30, 70), (64, 130), (40, 70)]
    queries = [(picture(*size, seed=i), [memory]) for i, size in enumerate(sizes)]
    alone = [next(predictor.segment([query], reproducible=True)) for query in queries]
    assert passes[0] == 2, "the first image is one window"
    passes.clear()
    together = list(predictor.segment(queries, reproducible=True))
    assert passes == [4, 4, 4, 4, 2], "1 + 9 + 2 + 3 + 2 windows"
    for one, other in zip(alone, together, strict=True):
        for method, answer in one.answers[0].items():
            assert np.array_equal(answer.score, other.answers[0][method].score)


SIZES = st.tuples(st.integers(1, 140), st.integers(1, 140))
QUERY = st.tuples(SIZES, st.lists(st.integers(0, 2), max_size=3), st.sampled_from("apfb"))


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(queries=st.lists(QUERY, max_size=6), batch=st.integers(1, 7))
def test_every_image_gets_the_answers_it_gets_alone(predictor, memories, tmp_path, queries, batch):
    """By any of the memories, whatever comes before and after, as array, PIL image, file or none;
    windows that several memories look at are encoded once."""
    asked, images, encoded, given = variant(predictor, window_batch=batch), [], [], []
    for number, (size, chosen, kind) in enumerate(queries):
        image, file = picture(*size, seed=number), tmp_path / f"{number}.png"
        shown = {"a": image, "p": Image.fromarray(image)}.get(kind, file)
        file.write_bytes(b"broken") if kind == "b" else saved(file, image)
        images.append(image)
        given.append((shown, [memories[i] for i in chosen]))
    hook = asked.backbone.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    outcomes = list(asked.segment(query for query in given))
    hook.remove()
    expected = 0
    for image, (_, chosen, kind), outcome in zip(images, queries, outcomes, strict=True):
        assert (outcome.error is not None) == (outcome.image is None) == (kind == "b")
        assert len(outcome.answers) == (0 if kind == "b" else len(chosen))
        counts = {side: len(tile(*image.shape[:2], side)) for side in (64, 50, 0)}
        scales = {memories[i].window for i in chosen} if kind != "b" else ()
        expected += sum(counts[side] for side in scales)
        for place, answers in zip(chosen, outcome.answers, strict=False):
            for name, answer in ask(predictor, image, memories[place]).items():
                np.testing.assert_allclose(answers[name].score, answer.score, atol=1e-5)
                assert answer.windows == counts[memories[place].window] == answers[name].windows
                assert answer.score.shape == answer.label.shape == image.shape[:2]
                assert (answer.score.dtype, answer.label.dtype) == (np.float32, np.uint8)
                assert answer.score.min() >= 0 and answer.score.max() <= 1
    assert sum(encoded) == expected
    assert all(n == batch for n in encoded[:-1])


def test_a_file_in_strips_gets_the_answers_of_the_whole(predictor, memories, tmp_path, monkeypatch):
    """For memories of two scales; one that is broken half-way spoils nothing around it."""
    image = picture(300, 200, seed=1)
    good, bad = saved(tmp_path / "good.png", image), tmp_path / "bad.png"
    truncated(bad, image)
    (whole,) = predictor.segment([(image, memories)])
    monkeypatch.setattr(large_images, "AT_ONCE", 10_000)
    queries = [(good, memories), (bad, memories[:1]), (picture(30, 40), memories), (good, memories)]
    outcomes = list(predictor.segment(queries))
    assert [outcome.error is None for outcome in outcomes] == [True, False, True, True]
    assert "bad.png" in str(outcomes[1].error) and not outcomes[1].answers
    for outcome in (outcomes[0], outcomes[3]):
        assert outcome.image.pixels is None
        for answers, expected in zip(outcome.answers, whole.answers, strict=True):
            for name, answer in answers.items():
                np.testing.assert_allclose(answer.score, expected[name].score, atol=1e-5)


def test_predict_many_ends_at_an_image_that_cannot_be_read(predictor, memories, tmp_path):
    asked, good = variant(predictor), saved(tmp_path / "good.png", picture(64, 150))
    with pytest.raises(ConfigError, match="call set_support or load_support first"):
        asked.predict(good)
    asked.memory = memories[0]
    truncated(tmp_path / "bad.png", picture(64, 150))
    answers = asked.predict_many([good, tmp_path / "bad.png", good])
    assert np.array_equal(next(answers).score, ask(asked, good)["SOFS"].score)
    with pytest.raises(DataError, match=r"bad\.png"):
        next(answers)
    with pytest.raises(DataError, match="image 1, a value of type NoneType"):
        list(asked.predict_many([picture(9, 9), None]))
    with pytest.raises(DataError, match=r"images is .*; expected a list"):
        list(asked.predict_many(good))


def test_few_images_are_held(predictor, memories):
    made = []

    def come():
        for number in range(1000):
            made.append(number)
            yield picture(30, 40, seed=number), memories

    outcomes = predictor.segment(come())
    for number in range(12):
        next(outcomes)
        assert len(made) - number < 10


def test_an_image_without_a_mask_is_one_with_an_empty_mask(predictor):
    """Its tokens join those of the supports; what it shows looks less like the defect."""
    (image, mask), normal = spotted((100, 150), 0, [(4, 5)]), picture(100, 150, seed=3)
    one, other, without = (variant(predictor) for _ in range(3))
    one.set_support([image, normal], [mask, None])
    other.set_support([normal, image], [Image.new("1", (150, 100)), mask])
    without.set_support([image], [mask])
    for query in (picture(90, 130, seed=5), normal):
        before, after, same = (ask(p, query) for p in (without, one, other))
        for name, answer in after.items():
            np.testing.assert_allclose(answer.score, same[name].score, atol=1e-5)
        less = before["prior"].score - after["prior"].score
        assert (less >= -1e-6).all()
    assert (less > 1e-6).mean() > 0.99
    assert len(one.memory.normal) == 1 and not without.memory.normal
    assert one.memory.normal[0][0].shape[1] == 6 * 64, "of six windows"


def test_refined_masks_follow_the_pixels_but_gates_and_the_prior_stay(predictor):
    (image, mask), (query, _) = (spotted((100, 150), seed, [(30, 40)]) for seed in (0, 1))
    threshold = float(
        np.median(ask(predictor, query, variant(predictor).teach([(image, mask)]))["SOFS"].score)
    )
    plain, refined = (variant(predictor, threshold=threshold, refined=r) for r in (False, True))
    for taught in (plain, refined):
        taught.set_support([image, picture(100, 150, seed=2)], [mask, None])
    assert refined.memory.gates == plain.memory.gates and plain.memory.gates
    before, after = (ask(p, query, replace(p.memory, gates={})) for p in (plain, refined))
    assert np.array_equal(before["prior"].score, after["prior"].score)
    label, score = before["SOFS"].label.copy(), before["SOFS"].score.copy()
    refine(label, score, refined.seen(score, ImageStrips(query), threshold, 64), threshold)
    assert np.array_equal(after["SOFS"].label, label) and np.array_equal(after["SOFS"].score, score)
    assert not np.array_equal(label, before["SOFS"].label)


@pytest.mark.parametrize("radius", [38, 50])
def test_a_memory_knows_how_far_from_the_colours_its_masks_lie(predictor, radius, tmp_path):
    """Of a disc with a radius of 44 pixels; its file tells it, too, and answers follow it."""
    image, (y, x) = picture(100, 150, seed=0) // 8, np.mgrid[:100, :150]
    distance = np.hypot(y - 50, x - 70)
    image[distance <= 44] += 120
    mask = (distance <= radius).astype(np.uint8)
    plain, taught, reader = (variant(predictor, refined=r) for r in (False, True, True))
    assert plain.set_support([image], [mask]).border_offset == 0
    found = taught.set_support([image], [mask]).border_offset
    pixels = found * predictor.backbone.stride * 150 / 64  # seen as a whole, 64 pixels wide
    assert pixels == pytest.approx(radius - 44, abs=4)
    taught.save_support(tmp_path / "a.safetensors")
    assert reader.load_support(tmp_path / "a.safetensors").border_offset == found
    raw = next(plain.segment([(image, [taught.memory])])).answers[0]["SOFS"].score
    asking = variant(predictor, threshold=float(np.median(raw)), refined=True)
    labels = []
    for offset in (0.0, 1.0):
        answer = ask(asking, image, replace(taught.memory, border_offset=offset))["SOFS"]
        label, score = np.zeros_like(answer.label), raw.copy()
        about = (asking.threshold, None, offset)
        refine(label, score, asking.seen(score, ImageStrips(image), asking.threshold, 0), *about)
        assert np.array_equal(answer.label, label) and np.array_equal(answer.score, score)
        labels.append(label)
    assert not np.array_equal(*labels)


def test_a_large_file_that_vanishes_before_its_mask_is_refined_is_an_error_of_that_image(
    predictor, tmp_path, monkeypatch
):
    monkeypatch.setattr(large_images, "AT_ONCE", 1000)
    image, mask = spotted((100, 150), 0, [(30, 40)])
    taught = variant(predictor, threshold=0.01, refined=True)
    memory = taught.teach([(image, mask)])
    files = [saved(tmp_path / f"{n}.png", picture(100, 150, seed=n)) for n in range(3)]
    outcomes = taught.segment((file, [memory]) for file in files)
    assert next(outcomes).error is None
    files[1].unlink()
    later = list(outcomes)
    assert "1.png" in str(later[0].error) and later[1].error is None


def test_normal_images_alone_show_what_is_unlike_them(predictor):
    """Every method answers with the abnormal prior."""
    taught = variant(predictor, threshold=None)
    images = [picture(64, 64, seed=i) for i in range(2)]
    memory = taught.set_support(images, [None, np.zeros((64, 64), np.uint8)])
    assert memory.window == 64 and not (memory.thresholds or memory.is_marked or memory.normal)
    seen, new = ask(taught, images[1]), ask(taught, picture(64, 64, seed=9))
    assert seen["prior"].score.max() < 1e-4 < 0.01 < new["prior"].score.min()
    assert np.array_equal(new["prior"].score, new["SOFS"].score)
