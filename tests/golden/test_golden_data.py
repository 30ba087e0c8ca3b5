"""Pixels, masks, measures, the loss and learning rates, those of the published implementation."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from datasets.readers.vision_v1 import read_object
from datasets.views import ViewSettings, cut, prepare_image, prepare_mask, support_boxes
from datasets.windows import PublishedStitching, fitted_shape, tile, to_native
from models.losses import MixedNormalDiceLoss, mixed_normal_dice
from models.priors import upsample
from tools.training.steps import polynomial_factor
from utils.metrics.segmentation import SegmentationMeter, intersection_union

ARRAYS = Path(__file__).parent / "arrays"


def close(ours, reference, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(ours), reference, rtol=0, atol=tolerance)


def check_windows(boxes, windows, crop_shape, input_shape, net):
    np.testing.assert_array_equal(boxes, windows)
    shapes = [(bottom - top, right - left) for top, bottom, left, right in boxes]
    np.testing.assert_array_equal(shapes, crop_shape)
    np.testing.assert_array_equal([fitted_shape(*shape, net) for shape in shapes], input_shape)


def stitched(maps, boxes, height, width):
    stitching = PublishedStitching(height, width, 0.5)
    for window, box in zip(maps, boxes, strict=True):
        stitching.add(window, box)
    return stitching.finish()


@pytest.mark.parametrize("i", range(4))
def test_network_input(golden, i):
    case = golden("preprocess")
    image, mask, net = case[f"image_{i}"], case[f"mask_{i}"], int(case[f"net_{i}"])
    close(prepare_image(image, net), case[f"prepared_{i}"], 1e-6)
    np.testing.assert_array_equal(prepare_mask(mask, net).numpy(), case[f"prepared_mask_{i}"])
    assert fitted_shape(*image.shape[:2], net) == tuple(case[f"input_shape_{i}"])
    assert prepare_mask(np.zeros((37, 60), np.uint8), 70).max() == case["all_zero_mask_result_max"]


@pytest.mark.parametrize("i", range(5))
def test_map_back_to_the_window(tensors, i):
    case = tensors("resize_back")
    rows, columns, height, width = case[f"shape_{i}"].tolist()
    assert fitted_shape(height, width, 70) == (rows, columns)
    box = (7, 7 + height, 3, 3 + width)
    close(to_native(case["heatmap_in"], box, aligned=True), case[f"heatmap_{i}"])
    label = to_native(case["label_in"], box, aligned=True) > 0.9
    np.testing.assert_array_equal(label.numpy(), case[f"label_{i}"])


@pytest.mark.parametrize(
    "group", ["upscaled_windows", "native_windows", "downscaled_windows", "whole_image"]
)
def test_stitching(golden, group):
    case = {k.split("/")[1]: v for k, v in golden("stitch_small").items() if k.startswith(group)}
    (height, width), net = case["image_hw"].tolist(), int(case["net_size"])
    if group == "whole_image":
        boxes = [(0, height, 0, width)]
        assert fitted_shape(*case["crop_shape"].tolist(), net) == tuple(case["input_shape"])
    else:
        boxes = tile(height, width, int(case["crop_size"]))
        check_windows(boxes, case["windows"], case["crop_shape"], case["input_shape"], net)
    label, heat = stitched(torch.tensor(case["maps_u8"]).float() / 255, boxes, height, width)
    close(label, case["label"], 1e-6)
    close(heat, case["heatmap"])


def test_stitching_at_full_size(tensors):
    case = tensors("stitch_severstal_geometry")
    (height, width), net = case["image_hw"].tolist(), int(case["net_size"])
    boxes = tile(height, width, int(case["crop_size"]))
    check_windows(boxes, case["windows"], case["crop_shape"], case["input_shape"], net)
    maps = upsample(case["patch_logits"], (net, net)).sigmoid()
    label, heat = stitched(maps, boxes, height, width)
    np.testing.assert_array_equal(label * 2, case["label_x2"])
    close(heat[::4, ::4], case["heatmap_stride4"])
    close(heat[[0, 1, 127, 254, 255]], case["heatmap_rows"])
    close(heat[:, [0, 258, 259, 1340, 1341, 1553, 1554, 1599]], case["heatmap_cols"])
    close(heat.mean(dtype=np.float64), case["heatmap_mean"])


def test_support_crops(golden):
    case = golden("support_crops")
    mask, side = case["mask"], int(case["crop_size"])
    for seed, boxes, counts in zip(case["seeds"], case["boxes"], case["mask_pixels"], strict=True):
        settings = ViewSettings(518, side, 1.0, views=4, crops_may_miss=True)
        ours = support_boxes(mask, settings, random.Random(int(seed)))
        np.testing.assert_array_equal(ours, boxes)
        assert [int((cut(mask, box) > 0).sum()) for box in ours] == counts.tolist()


def test_windows(golden):
    case = golden("tiling")
    assert len(case["combos"]) == 10
    for height, width, crop in case["combos"].tolist():
        tag = f"{height}x{width}_crop{crop}"
        arrays = [case[f"{name}_{tag}"] for name in ("windows", "crop_shape", "input_shape")]
        check_windows(tile(height, width, crop), *arrays, 518)


def test_polygon_masks_and_samples(golden):
    """Masks agree pixel for pixel; every category has the same files."""
    arrays, (samples, notes) = golden("coco_masks"), read_object(ARRAYS, "coco_case")
    assert notes == []
    by_file = {}
    for sample in samples:
        file = "/".join(Path(sample.image).parts[-2:])
        by_file.setdefault(file, {})[sample.category] = sample.decode_mask()
    assert sorted(by_file) == sorted(arrays["files"])
    assert len(samples) == sum(len(masks) for masks in by_file.values())
    for number, file in enumerate(arrays["files"]):
        assert sorted(by_file[file]) == sorted(arrays[f"categories_{number}"].tolist())
        assert len(by_file[file]) == arrays[f"category_sum_{number}"]
        for category, mask in by_file[file].items():
            np.testing.assert_array_equal(mask, arrays[f"mask_{number}_cat{category}"])
    for category in range(int(arrays["category_num"])):
        files = sorted(file for file, masks in by_file.items() if category in masks)
        assert files == sorted(arrays[f"files_of_category_{category}"].tolist())
    names = {f"coco_case/{name}" for name in ("scratch", "pit", "stain")}
    assert {sample.class_name for sample in samples} == names


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
    close(list(meter.class_iou().values()), case[f"{kind}_class_fg_iou"], 1e-6)
    counts = meter.counts.double().numpy()
    close(counts[:, 0] / counts[:, 2], case[f"{kind}_class_bg_iou"], 1e-6)
    pooled = counts.sum(0)
    close(pooled[:2] / pooled[2:4], case[f"{kind}_fb_iou"], 1e-6)
    assert meter.miou() == pytest.approx(float(case[f"{kind}_class_miou"]), abs=1e-6)
    assert meter.fb_iou() == pytest.approx(float(case[f"{kind}_fb_iou_mean"]), abs=1e-6)


def test_a_class_without_union_is_left_out_where_the_published_mean_is_nan(golden):
    """One class of nine background pixels, and one of eight pixels of which three are predicted."""
    case, meter = golden("metrics"), SegmentationMeter(["normal", "defect"])
    meter.update("normal", np.zeros((3, 3), np.uint8), np.zeros((3, 3), np.uint8))
    prediction, target = np.zeros((2, 8), np.uint8)
    prediction[:3], target[:2] = 1, 1
    meter.update("defect", prediction[None], target[None])
    assert math.isnan(case["nan_class_miou"])
    assert meter.miou() == pytest.approx(2 / 3)
    assert meter.fb_iou() == pytest.approx(float(case["nan_fb_iou"].mean()), abs=1e-6)
    pooled = meter.counts.sum(0).double().numpy()
    close(pooled[:2] / pooled[2:4], case["nan_fb_iou"], 1e-6)


def test_polynomial_decay_of_both_parameter_groups(golden):
    case, base = golden("lr_schedule"), 1e-5
    assert float(case["base_lr"]) == np.float32(base)
    for iteration, transformer, rest in case["rows_f64"]:
        factor = polynomial_factor(int(iteration), int(case["max_iter"]), power=0.9)
        ours = [base * factor, 2 * base * factor]
        np.testing.assert_allclose(ours, [transformer, rest], rtol=1e-12, atol=1e-20)


@pytest.mark.parametrize("smooth_r", ["1", "100000", "0.5"])
@pytest.mark.parametrize("target", ["full", "empty", "mixed"])
def test_loss_and_its_gradient(tensors, target, smooth_r):
    case, targets = tensors("loss"), tensors("loss")[f"target_{target}"]
    dice = mixed_normal_dice(case["pred"], targets, float(smooth_r))
    for ours, name in ((dice, "per_item"), (dice.mean(), "mean")):
        assert_close(ours, case[f"dice_{name}_{target}_sr{smooth_r}"], rtol=1e-5, atol=1e-6)
    for weights in (("1", "0.01"), ("0.7", "0.3")):
        tag = f"{target}_sr{smooth_r}_dw{weights[0]}_cw{weights[1]}"
        probability = case["pred"].clone().requires_grad_()
        loss = MixedNormalDiceLoss(float(smooth_r), *map(float, weights))(probability, targets)
        loss.backward()
        assert_close(loss.detach(), case[f"loss_{tag}"], rtol=1e-5, atol=1e-6)
        assert_close(probability.grad, case[f"grad_{tag}"], rtol=1e-4, atol=1e-9)
