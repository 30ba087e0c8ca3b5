from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from datasets import large_images as strips
from tests.helpers import picture, variant
from tools.predictor import Predictor
from utils.errors import DataError, WeightsError


def spotted(size, seed, spots, side=6):
    """A random image with bright spots at (top, left), and its mask."""
    image, mask = picture(*size, seed=seed) // 2, np.zeros(size, np.uint8)
    for top, left in spots:
        image[top : top + side, left : left + side] = 250
        mask[top : top + side, left : left + side] = 1
    return image, mask


def scores_of(predictor, image):
    return {
        n: a.score for n, a in next(predictor.segment([image], predictor.memory)).answers.items()
    }


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
    assert one.memory.known.normal[0][0].shape[1] == (6 if windowed else 1) * 64, (
        "windows cover it, or it is one view"
    )
    assert (scores_of(one, query)["prior"] <= scores_of(without, query)["prior"] + 1e-6).all()
    with pytest.raises(DataError, match=r"mask 1, .* has 100 x 149 pixels .*, its image 100 x 150"):
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
    assert same_scores({"SOFS": known["prior"]}, known), (
        "every method answers with the abnormal prior"
    )


def test_scale_of_normal_images_alone_is_that_of_the_settings(predictor):
    resized = Predictor(
        predictor.methods,
        replace(predictor.settings, resize_ratio=None),
        torch.device("cpu"),
        threshold=None,
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
    taught, other, query = (
        variant(predictor, **options),
        variant(predictor, **options),
        picture(90, 130, seed=5),
    )
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
        assert np.array_equal(answer.score, theirs[name].score) and np.array_equal(
            answer.label, theirs[name].label
        )
        assert answer.threshold == theirs[name].threshold == memory.thresholds.get(name, 0.5)


def test_a_support_file_of_an_older_format_is_refused_with_the_remedy(
    predictor, supports, tmp_path
):
    taught, file = variant(predictor), tmp_path / "a.safetensors"
    taught.memory = taught.remember(supports)
    taught.save_support(file)
    with safe_open(file, "pt") as opened:
        about, tensors = (
            opened.metadata(),
            {name: opened.get_tensor(name) for name in opened.keys()},
        )  # noqa: SIM118
    for older in ({"format": "sofs-support-1"}, {}):
        rest = {name: value for name, value in about.items() if name != "format"}
        save_file(tensors, file, metadata=rest | older)
        with pytest.raises(
            WeightsError, match=r"a\.safetensors: its format are not those.*teach the defect again"
        ):
            taught.load_support(file)
    assert json.loads(about["use"])["windowed"] is True


@pytest.fixture
def memories(predictor):
    """Three: of small defects with and without a normal image, and between them of a large one."""
    small, large = spotted((100, 150), 0, [(30, 40)]), spotted((40, 40), 1, [(4, 4)], side=30)
    other = spotted((100, 150), 2, [(50, 100)])
    found = [
        predictor.set_support(*zip(small, strict=True)),
        predictor.set_support(*zip(large, strict=True)),
    ]
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
    assert sum(passes) == 1 + 6 + 4 + 3, (
        "windows of the two of small defects, and each image once for the large one"
    )
    assert len(together) == 4
    for number, outcomes in enumerate(together):
        assert [o.error is None for o in outcomes] == [number != 1] * 3
        for mine, expected in zip(outcomes, alone, strict=True):
            assert (mine.image is None) == (expected[number].image is None)
            assert list(mine.answers) == list(expected[number].answers)
            for name, answer in mine.answers.items():
                np.testing.assert_allclose(
                    answer.score, expected[number].answers[name].score, atol=1e-5
                )
                assert answer.windows == expected[number].answers[name].windows
    answers = [o.answers["prior"].score for o in together[2]]
    assert not any(
        np.allclose(answers[i], answers[j], atol=1e-3) for i, j in ((0, 1), (0, 2), (1, 2))
    )


def test_each_set_of_supports_has_its_own_threshold(predictor, memories):
    given = [
        replace(memory, thresholds={"prior": at})
        for memory, at in zip(memories, (0.4, 0.5, 0.6), strict=True)
    ]
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


def test_a_large_file_that_is_broken_half_way_is_an_error_for_all(
    predictor, memories, tmp_path, monkeypatch
):
    """Windows of its upper part are answered before the fault shows; the images around it are answered whole."""
    monkeypatch.setattr(strips, "AT_ONCE", 10_000)
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(picture(300, 200, seed=1)).save(good)
    bad.write_bytes(good.read_bytes()[:100_000])
    outcomes = list(predictor.segment_all([good, bad, good], memories))
    assert [[o.error is None for o in row] for row in outcomes] == [
        [True] * 3,
        [False] * 3,
        [True] * 3,
    ]
    assert all("bad.png" in str(o.error) and not o.answers for o in outcomes[1])
    for one, other in zip(outcomes[0], outcomes[2], strict=True):
        assert one.image.pixels is None
        np.testing.assert_allclose(
            one.answers["SOFS"].score, other.answers["SOFS"].score, atol=1e-5
        )


def test_no_memories_or_no_images_give_nothing(predictor, memories):
    assert list(predictor.segment_all([], memories)) == []
    assert list(predictor.segment_all([picture(64, 64)], [])) == []
