from __future__ import annotations

import cv2
import numpy as np
import pytest

from datasets.large_images import ImageStrips
from tools import open_domain_files
from tools.open_domain_files import write_answers
from tools.prediction.answers import Prediction
from utils import large_arrays as memory


def answer(size, threshold, seed):
    score = np.random.default_rng(seed).random(size).astype(np.float32)
    return Prediction((score > threshold).astype(np.uint8), score, 1, threshold)


@pytest.fixture
def image():
    return ImageStrips(np.random.default_rng(9).integers(0, 256, (300, 90, 3)).astype(np.uint8))


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_pixel_has_the_label_of_the_type_furthest_above_its_own_threshold(
    tmp_path, image, monkeypatch, in_memory
):
    """Not of the highest score: types may have thresholds of their own. More rows than are taken at once."""
    monkeypatch.setattr(memory, "IN_MEMORY", 10**6 if in_memory else 100)
    answers = {
        name: answer((300, 90), at, i)
        for i, (name, at) in enumerate({"a": 0.3, "b": 0.6, "c": 0.8}.items())
    }
    write_answers(tmp_path, "q", image, answers)
    labels = read(tmp_path / "labels" / "q.png")
    for row, column in np.ndindex(300, 90):
        claims = [
            (a.score[row, column] - a.threshold, i) for i, a in enumerate(answers.values(), 1)
        ]
        best = max(claims)
        assert labels[row, column] == (best[1] if best[0] > 0 else 0)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    for name, a in answers.items():
        assert np.array_equal(read(tmp_path / "masks" / name / "q.png"), a.label * 255)
        assert np.abs(read(tmp_path / "scores" / name / "q.png") / 65535 - a.score).max() < 1e-5


def test_votes_of_windows_that_disagree_claim_nothing(tmp_path, image):
    """Published stitching leaves fractions; only a vote of 1 is a defect, whatever its score is."""
    votes = np.zeros((300, 90), np.float32)
    votes[:100], votes[100:200] = 0.5, 1
    low = Prediction(votes, np.full((300, 90), 0.1, np.float32), 4, 0.5)
    write_answers(
        tmp_path,
        "q",
        image,
        {"a": low, "b": Prediction(np.zeros_like(votes), np.ones_like(votes), 4, 0.5)},
    )
    assert np.array_equal(
        read(tmp_path / "labels" / "q.png"), np.repeat([0, 1, 0], 100)[:, None].repeat(90, 1)
    )
    assert np.array_equal(read(tmp_path / "masks" / "a" / "q.png") > 0, votes == 1)


def test_scores_over_one_are_written_as_one(tmp_path, image):
    """The abnormal prior may be larger."""
    score = np.full((300, 90), 1.3, np.float32)
    write_answers(
        tmp_path, "q", image, {"": Prediction(np.ones((300, 90), np.uint8), score, 1, 0.5)}
    )
    assert (read(tmp_path / "scores" / "q.png") == 65535).all()


@pytest.mark.parametrize(
    ("names", "folder"), [([""], ""), (["dent"], "dent/"), (["dent", "spot"], "dent/")]
)
def test_types_have_folders_of_their_own_where_they_have_names(tmp_path, image, names, folder):
    write_answers(
        tmp_path, "q", image, {name: answer((300, 90), 0.5, i) for i, name in enumerate(names)}
    )
    found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")}
    maps = {
        f"{part}/{name}/q.png".replace("//", "/") for part in ("masks", "scores") for name in names
    }
    assert found == maps | {"overlays/q.png"} | ({"labels/q.png"} if names != [""] else set())
    assert f"masks/{folder}q.png" in found
    assert (len(read(tmp_path / "overlays" / "q.png")) > 300) == (names != [""]), "a legend"


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (200, 131), (7, 500), (500, 7), (129, 128)])
def test_a_shrunk_overlay_loses_no_defect(monkeypatch, size):
    """Every pixel of it has the largest label of its block, also of the blocks at the border."""
    monkeypatch.setattr(open_domain_files, "OVERLAY_SIDE", 64)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, size).astype(np.uint8) * (rng.random(size) < 0.02)
    labels[-1, -1] = 3
    small = ImageStrips(np.zeros((*size, 3), np.uint8)).thumbnail(64).shape[:2]
    shrunk = open_domain_files._shrunk(labels, small)
    step = -(-max(size) // 64)
    assert shrunk.shape == small and max(small) <= 64
    for row in range(small[0]):
        for column in range(small[1]):
            block = labels[row * step : (row + 1) * step, column * step : (column + 1) * step]
            assert shrunk[row, column] == block.max()
