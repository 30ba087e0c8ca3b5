from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from utils.metrics import bootstrap
from utils.metrics.bootstrap import paired_bootstrap

EXPERIMENTS = 200


def experiment(rng, sizes, effect):
    """Two runs on queries of which some are harder for both; the second has `effect` more IoU."""
    strata = {}
    for number, queries in enumerate(sizes):
        union = np.repeat(rng.lognormal(6, 0.7, (queries, 1)), 2, axis=1)
        noise = rng.beta(4, 4, (queries, 1)) * 0.6 + rng.uniform(0.05, 0.25, (queries, 2))
        strata[str(number)] = np.stack([(noise + np.array([0, effect])) * union, union], axis=-1)
    return strata


@pytest.fixture
def strata():
    return experiment(np.random.default_rng(1), (12, 7, 20), 0.02)


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


@pytest.mark.parametrize(
    ("sizes", "effect"), [((20, 30, 40), 0.0), ((20, 30, 40), 0.05), ((2,) * 12, 0.0)]
)
def test_the_interval_covers_the_true_difference_and_p_finds_no_more_than_there_is(sizes, effect):
    """Also over many classes of few queries, of which n draws of n would find too much."""
    rng = np.random.default_rng(5)
    samples = [experiment(rng, sizes, effect) for _ in range(EXPERIMENTS)]
    found = [paired_bootstrap(s, 400, i)[0].differences[0] for i, s in enumerate(samples)]
    low, high = binom.ppf((0.001, 0.999), EXPERIMENTS, 0.05)
    if len(sizes) == 3:
        assert low <= sum(not d.low <= effect <= d.high for d in found) <= high
    differing = sum(d.p <= 0.05 for d in found)
    assert differing > 0.95 * EXPERIMENTS if effect else low <= differing <= high


def test_equal_runs_do_not_differ(strata):
    """Means over repeats are no whole numbers, and sums of them are rounded."""
    equal = {name: np.repeat(counts[:, :1] / 3, 3, axis=1) for name, counts in strata.items()}
    miou, classes = paired_bootstrap(equal, 500, 0)
    for found in (miou, *classes.values()):
        assert [(d.value, d.low, d.high, d.p) for d in found.differences] == [(0, 0, 0, 1)] * 2


def test_every_later_run_is_compared_with_the_first(strata):
    swapped = {name: counts[:, ::-1] for name, counts in strata.items()}
    three = {name: counts[:, [0, 1, 0]] for name, counts in strata.items()}
    pair, turned, triple = (paired_bootstrap(s, 500, 3)[0] for s in (strata, swapped, three))
    assert turned.runs == pair.runs[::-1]
    a, b = pair.differences[0], turned.differences[0]
    assert (b.value, b.low, b.high, b.p) == pytest.approx((-a.value, -a.high, -a.low, a.p))
    assert triple.differences[0] == a and triple.differences[1].value == 0
    assert paired_bootstrap(strata, 500, 4)[0].runs[0].low != pair.runs[0].low, "another seed"


def test_a_class_without_a_union_in_a_run_is_left_out_of_the_mean(strata):
    lacking = np.array([[[2.0, 5.0], [0.0, 0.0]]] * 6)
    miou, classes = paired_bootstrap(strata | {"lacking": lacking}, 100, 0)
    assert miou == paired_bootstrap(strata, 100, 0)[0]
    assert [e.value for e in classes["lacking"].runs] == [0.4, None]
    assert classes["lacking"].differences[0].value is None
    few = paired_bootstrap({"lacking": lacking, "few": strata["0"][:3]}, 100, 0)[0].differences[0]
    assert few.value is not None and few.low is None, "queries of the class count nowhere"


def test_too_few_queries_have_no_interval_and_none_no_figure():
    single = np.array([[[1.0, 4.0], [2.0, 4.0]]])
    four, five = (np.repeat(single, n, axis=0) for n in (4, 5))
    miou, classes = paired_bootstrap({"single": single, "other": four}, 100, 0)
    for found in (miou, *classes.values()):
        d = found.differences[0]
        assert (d.value, d.low, d.high, d.p) == (0.25, None, None, None)
    assert paired_bootstrap({"other": five}, 100, 0)[0].differences[0].p is not None
    miou, _ = paired_bootstrap({"empty": np.zeros((8, 2, 2))}, 50, 0)
    assert [e.value for e in miou.runs] == [None, None] and miou.differences[0].p is None
