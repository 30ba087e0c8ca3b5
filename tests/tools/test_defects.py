from __future__ import annotations

import numpy as np

import utils.large_arrays
from tools.defects import COLUMNS, find_defects
from tools.predictor import Prediction
from utils.large_arrays import allocate

SIZE = (300, 50)


def prediction(label, score):
    return Prediction(label, score.astype(np.float32), 1, 0.5)


def drawn():
    """A diagonal of two pixels, a bar, and a single pixel, in a score that says which is which."""
    label, score = np.zeros(SIZE, np.uint8), np.full(SIZE, 0.1)
    for rows, columns, value in (
        (3, 7, 0.6),
        (4, 8, 0.8),
        (slice(100, 260), 20, 0.9),
        (299, 49, 0.55),
    ):
        label[rows, columns], score[rows, columns] = 1, value
    return label, score


def test_connected_parts_are_rows_from_top_to_bottom():
    label, score = drawn()
    defects, kept = find_defects({"rust": prediction(label, score)})
    share = 100 / label.size
    expected = [
        ("rust", 1, 7, 3, 2, 2, 7.5, 3.5, 2, 2 * share, 0.8, 0.7),
        ("rust", 2, 20, 100, 1, 160, 20, 179.5, 160, 160 * share, 0.9, 0.9),
        ("rust", 3, 49, 299, 1, 1, 49, 299, 1, share, 0.55, 0.55),
    ]
    for defect, row in zip(defects, expected, strict=True):
        assert len(row) == len(COLUMNS) and defect.row()[0] == "rust"
        np.testing.assert_allclose(defect.row()[1:], row[1:], rtol=1e-5)
    assert kept["rust"].label is label
    assert find_defects({"": prediction(0 * label, score)})[0] == []
    assert find_defects({"": prediction(label, score)})[0][0].row()[0] == "defect"


def test_small_and_faint_parts_leave_table_and_mask_alike(monkeypatch):
    """Also where maps lie in files, and votes are floating point."""
    label, score = drawn()
    for in_memory in (1 << 24, 0):
        monkeypatch.setattr(utils.large_arrays, "IN_MEMORY", in_memory)
        map_ = allocate(SIZE, np.float32)
        map_[:] = 2 * (label == 0) + label  # 1 is defect
        bounds = ((2, 0, 162), (1, 0.8, 162), (3, 0, 160), (2, 0.85, 160), (1, 0.91, 0))
        for area, least, left in bounds:
            options = {"min_area": area, "min_score": least}
            defects, kept = find_defects({"": prediction(map_, score)}, **options)
            assert sum(defect.area for defect in defects) == left == kept[""].mask.sum()
            assert [defect.number for defect in defects] == list(range(1, len(defects) + 1))
            assert not (kept[""].mask & (label == 0)).any()
        assert (map_ == 1).sum() == 163  # what was given is as it was
