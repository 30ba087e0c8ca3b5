from __future__ import annotations

import numpy as np
import pytest
import torch

from models.pixel_probe import MOST, Example, PixelProbe, fit_pixel_probe


def examples(count=3, bias=1.0, seed=0):
    """Pixels whose log-odds are wrong by up to a bias, as their first feature tells."""
    draw, made = np.random.default_rng(seed), []
    for _ in range(count):
        features = draw.normal(5, 3, (4000, 4)).astype(np.float32)
        truth = draw.normal(-2, 2, 4000)
        logits = truth + bias * np.tanh((features[:, 0] - 5) / 3)
        marked = (truth > 0).astype(np.float32)
        made.append(Example(features, logits.astype(np.float32), marked, 1 / marked.sum()))
    return made


def iou(examples, probe=None):
    shares = []
    for features, logits, marked, _ in examples:
        found = logits + (0 if probe is None else probe.correct(features)) > 0
        shares.append((found & (marked > 0)).sum() / (found | (marked > 0)).sum())
    return np.mean(shares)


def test_what_is_wrong_in_the_supports_is_put_right_in_other_images():
    probe, others = fit_pixel_probe(examples()), examples(seed=1)
    assert iou(others) < 0.7 and iou(others, probe) > 0.8
    right = fit_pixel_probe(examples(bias=0))
    assert iou(examples(bias=0, seed=1), right) > 0.8, "little is spoilt"


def test_no_correction_exceeds_the_bound_whatever_is_learned_and_seen():
    hopeless = [e._replace(logits=-e.logits * 50) for e in examples()]
    probe = fit_pixel_probe(hopeless)
    rare = np.random.default_rng(0).normal(0, 1e6, (1000, 4)).astype(np.float32)
    for features in (hopeless[0].features, rare):
        assert 0.2 < np.abs(probe.correct(features)).max() <= MOST


def test_images_count_alike_whatever_their_area_and_the_number_of_their_pixels():
    """An image twice as large, by the same pixels, changes nothing."""
    few = examples()
    features, logits, marked, weight = few[0]
    twice = [np.concatenate([part, part]) for part in (features, logits, marked)]
    many = [Example(*twice, weight / 2), *few[1:]]
    one, two = (fit_pixel_probe(given).correct(features) for given in (few, many))
    # their mean and deviation differ a little
    assert np.corrcoef(one, two)[0, 1] > 0.99 and np.abs(one - two).mean() < 0.1 * one.std()


def test_equal_examples_give_equal_probes_and_leave_the_random_numbers_alone():
    torch.manual_seed(3)
    with torch.inference_mode():  # as in a test
        one = fit_pixel_probe(examples())
    after = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(3))
    two = PixelProbe.from_state(fit_pixel_probe(examples()).state_dict())
    features = examples(seed=2)[0].features
    assert np.array_equal(one.correct(features), two.correct(features))
    with pytest.raises(KeyError):
        PixelProbe.from_state({"mean": torch.zeros(4)})


def test_where_there_is_nothing_to_tell_apart_there_is_no_probe():
    assert fit_pixel_probe([]) is None
    for value in (0, 1):
        same = [e._replace(marked=np.full_like(e.marked, value)) for e in examples()]
        assert fit_pixel_probe(same) is None
