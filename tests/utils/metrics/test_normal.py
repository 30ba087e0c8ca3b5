from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from utils.metrics import NORMAL
from utils.metrics.normal import normal_figures


def test_shares_areas_and_auroc_are_those_of_sklearn_and_numpy():
    rng = np.random.default_rng(0)
    areas = [0.0, 0.25, 0.0, 0.5, 0.0]
    normal, defective = (rng.integers(0, 6, n) / 10 for n in (5, 9))  # some are tied
    figures = normal_figures(areas, normal.tolist(), (defective + 0.2).tolist())
    labels = [0] * 5 + [1] * 9
    auroc = roc_auc_score(labels, np.concatenate([normal, defective + 0.2]))
    values = (0.6, 0.15, auroc)
    names = (measure.name for measure in NORMAL)
    assert figures == pytest.approx(dict(zip(names, values, strict=True)))


def test_what_there_is_no_image_for_is_none():
    assert set(normal_figures([], [], [0.5]).values()) == {None}
    assert normal_figures([0.0], [0.1], [])["normal_auroc"] is None
