from __future__ import annotations

import numpy as np
import pytest

from utils.metrics import bootstrap
from utils.metrics.bootstrap import paired_bootstrap


@pytest.fixture
def strata():
    """Two runs on queries of which some are harder for both; the second has 0.02 more IoU."""
    rng, strata = np.random.default_rng(1), {}
    for number, queries in enumerate((12, 7, 20)):
        union = np.repeat(rng.lognormal(6, 0.7, (queries, 1)), 2, axis=1)
        noise = rng.beta(4, 4, (queries, 1)) * 0.6 + rng.uniform(0.05, 0.25, (queries, 2))
        strata[str(number)] = np.stack([(noise + np.array([0, 0.02])) * union, union], axis=-1)
    return strata


def test_figures_are_ratios_of_sums_and_intervals_those_of_a_plain_loop(strata, monkeypatch):
    """Interval and p of the difference, drawn query by query, with n - 1 queries of n."""
    monkeypatch.setattr(bootstrap, "CHUNK", 70000)  # draws in several parts
    miou, classes = paired_bootstrap(strata, 20000, 0)
    by_hand = {name: np.divide(*counts.sum(0).T) for name, counts in strata.items()}
    for name, iou in by_hand.items():
        assert [e.value for e in classes[name].runs] == pytest.approx(iou)
    difference, mean = miou.differences[0], np.mean(list(by_hand.values()), axis=0)
    assert [e.value for e in miou.runs] == pytest.approx(mean)
    assert difference.value == pytest.approx(mean[1] - mean[0])
    rng, found = np.random.default_rng(99), []
    for _ in range(4000):
        per_class = []
        for counts in strata.values():
            drawn = counts[rng.integers(len(counts), size=len(counts) - 1)].sum(axis=0)
            per_class.append(drawn[:, 0] / drawn[:, 1])
        found.append(np.mean([second - first for first, second in per_class]))
    interval = pytest.approx(np.quantile(found, (0.025, 0.975)), abs=0.2 * np.std(found))
    assert (difference.low, difference.high) == interval
    share = np.mean(np.array(found) <= 0)
    p = 2 * min(share, 1 - share)
    assert difference.p == pytest.approx(p, abs=4 * np.sqrt(p / 4000) + 0.01)


def test_every_later_run_is_compared_with_the_first_and_equal_ones_do_not_differ(strata):
    """Means over repeats are no whole numbers, and sums of them are rounded."""
    three = {name: counts[:, [0, 1, 0]] / 3 for name, counts in strata.items()}
    turned = {name: counts[:, ::-1] / 3 for name, counts in strata.items()}
    triple, pair = (paired_bootstrap(s, 500, 3)[0] for s in (three, turned))
    assert pair.runs == triple.runs[1::-1]
    (a, equal), (b,) = triple.differences, pair.differences
    assert (b.value, b.low, b.high, b.p) == pytest.approx((-a.value, -a.high, -a.low, a.p))
    assert (equal.value, equal.low, equal.high, equal.p) == (0, 0, 0, 1)
    assert paired_bootstrap(three, 500, 4)[0].runs[0].low != triple.runs[0].low, "another seed"


def test_a_class_without_a_union_in_a_run_is_left_out_of_the_mean(strata):
    lacking = np.array([[[2.0, 5.0], [0.0, 0.0]]] * 6)
    miou, classes = paired_bootstrap(strata | {"lacking": lacking}, 100, 0)
    assert miou == paired_bootstrap(strata, 100, 0)[0]
    assert [e.value for e in classes["lacking"].runs] == [0.4, None]
    assert classes["lacking"].differences[0].value is None
    few = paired_bootstrap({"lacking": lacking, "few": strata["0"][:3]}, 100, 0)[0].differences[0]
    assert few.value is not None and few.low is None, "queries of the class count nowhere"


def test_too_few_queries_have_no_interval_and_none_no_figure():
    for n, enough in ((1, False), (4, False), (5, True)):
        counts = np.array([[[1.0, 4.0], [2.0, 4.0]]] * n)
        d = paired_bootstrap({"a": counts}, 100, 0)[0].differences[0]
        assert d.value == 0.25 and [d.p is not None, d.low is not None] == [enough] * 2
    miou, _ = paired_bootstrap({"empty": np.zeros((8, 2, 2))}, 50, 0)
    assert [e.value for e in miou.runs] == [None, None] and miou.differences[0].p is None
