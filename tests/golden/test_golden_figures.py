"""Loss and metrics, number for number those of the original implementation."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from models.losses import MixedNormalDiceLoss, mixed_normal_dice
from utils.metrics.segmentation import SegmentationMeter, intersection_union

GOLDEN = Path(os.environ.get("SOFS_GOLDEN", Path(__file__).parents[2] / ".." / "shared" / "golden"))
if not GOLDEN.is_dir():
    pytest.skip(f"no golden figures in {GOLDEN}; set SOFS_GOLDEN", allow_module_level=True)
TARGETS, SMOOTH = ("full", "empty", "mixed"), ("1", "100000", "0.5")


@pytest.mark.parametrize("weights", [("1", "0.01"), ("0.7", "0.3")])
@pytest.mark.parametrize("smooth_r", SMOOTH)
@pytest.mark.parametrize("target", TARGETS)
def test_loss_and_its_gradient(tensors, target, smooth_r, weights):
    case, tag = tensors("loss"), f"{target}_sr{smooth_r}_dw{weights[0]}_cw{weights[1]}"
    probability = case["pred"].clone().requires_grad_()
    loss = MixedNormalDiceLoss(float(smooth_r), *map(float, weights))(
        probability, case[f"target_{target}"]
    )
    loss.backward()
    assert_close(loss.detach(), case[f"loss_{tag}"], rtol=1e-5, atol=1e-6)
    assert_close(probability.grad, case[f"grad_{tag}"], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("smooth_r", SMOOTH)
@pytest.mark.parametrize("target", TARGETS)
def test_dice(tensors, target, smooth_r):
    case = tensors("loss")
    dice = mixed_normal_dice(case["pred"], case[f"target_{target}"], float(smooth_r))
    assert_close(dice, case[f"dice_per_item_{target}_sr{smooth_r}"], rtol=1e-5, atol=1e-6)
    assert_close(dice.mean(), case[f"dice_mean_{target}_sr{smooth_r}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["int", "frac"])
def test_pixel_counts(golden, kind):
    case = golden("metrics")
    for i, (output, target) in enumerate(zip(case[f"{kind}_output"], case["target"], strict=True)):
        intersection, union = intersection_union(output, target)
        np.testing.assert_array_equal(intersection, case[f"{kind}_intersection"][i])
        np.testing.assert_array_equal(union, case[f"{kind}_union"][i])
        foreground = (output >= 0.5)[target != 255].sum()
        area = np.array([(target != 255).sum() - foreground, foreground])
        np.testing.assert_array_equal(union + intersection - area, case[f"{kind}_target"][i])


@pytest.mark.parametrize("kind", ["int", "frac"])
def test_aggregation(golden, kind):
    case = golden("metrics")
    names = [f"{o}_{c}" for o, c in zip(case["object"], case["category"], strict=True)]
    meter = SegmentationMeter(case[f"{kind}_class_names"].tolist())
    assert set(names) == set(meter.classes)
    for name, output, target in zip(names, case[f"{kind}_output"], case["target"], strict=True):
        meter.update(name, output, target)
    np.testing.assert_allclose(
        list(meter.class_iou().values()), case[f"{kind}_class_fg_iou"], atol=1e-6
    )
    counts = meter.counts.double().numpy()
    np.testing.assert_allclose(counts[:, 0] / counts[:, 2], case[f"{kind}_class_bg_iou"], atol=1e-6)
    pooled = counts.sum(0)
    np.testing.assert_allclose(pooled[:2] / pooled[2:4], case[f"{kind}_fb_iou"], atol=1e-6)
    assert meter.miou() == pytest.approx(float(case[f"{kind}_class_miou"]), abs=1e-6)
    assert meter.fb_iou() == pytest.approx(float(case[f"{kind}_fb_iou_mean"]), abs=1e-6)


def test_class_without_union_is_left_out_where_the_original_gives_nan(golden):
    """One class of nine background pixels; one of eight pixels with counts of the stored pooled figures."""
    case = golden("metrics")
    meter = SegmentationMeter(["normal", "defect"])
    meter.update("normal", np.zeros((3, 3), np.uint8), np.zeros((3, 3), np.uint8))
    prediction, target = np.zeros(8, np.uint8), np.zeros(8, np.uint8)
    prediction[:3], target[:2] = 1, 1
    meter.update("defect", prediction[None], target[None])
    assert math.isnan(case["nan_class_miou"])
    assert meter.miou() == pytest.approx(2 / 3)
    assert meter.fb_iou() == pytest.approx(float(case["nan_fb_iou"].mean()), abs=1e-6)
    pooled = meter.counts.sum(0).double()
    assert_close(
        pooled[:2] / pooled[2:4], torch.tensor(case["nan_fb_iou"]).double(), rtol=0, atol=1e-6
    )
