"""Crops, windows, network input and stitching, those of the original implementation."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.views import ViewSettings, cut, prepare_image, prepare_mask, support_boxes
from datasets.windows import fitted_shape, merge_reference, tile, to_native
from models.priors import upsample

GOLDEN = Path(os.environ.get("SOFS_GOLDEN", Path(__file__).parents[2] / ".." / "shared" / "golden"))
if not GOLDEN.is_dir():
    pytest.skip(f"no golden figures in {GOLDEN}; set SOFS_GOLDEN", allow_module_level=True)


def close(ours, reference, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(ours), reference, rtol=0, atol=tolerance)


def check_windows(boxes, windows, crop_shape, input_shape, net):
    np.testing.assert_array_equal(boxes, windows)
    shapes = [(bottom - top, right - left) for top, bottom, left, right in boxes]
    np.testing.assert_array_equal(shapes, crop_shape)
    np.testing.assert_array_equal([fitted_shape(*shape, net) for shape in shapes], input_shape)


@pytest.mark.parametrize("i", range(4))
def test_network_input(golden, i):
    case = golden("preprocess")
    image, net = case[f"image_{i}"], int(case[f"net_{i}"])
    close(prepare_image(image, net), case[f"prepared_{i}"], 1e-6)
    np.testing.assert_array_equal(
        prepare_mask(case[f"mask_{i}"], net).numpy(), case[f"prepared_mask_{i}"]
    )
    assert fitted_shape(*image.shape[:2], net) == tuple(case[f"input_shape_{i}"])


def test_mask_without_defect_stays_empty(golden):
    assert (
        prepare_mask(np.zeros((37, 60), np.uint8), 70).max()
        == golden("preprocess")["all_zero_mask_result_max"]
    )


@pytest.mark.parametrize("i", range(5))
def test_map_back_to_the_window(tensors, i):
    case = tensors("resize_back")
    rows, columns, height, width = case[f"shape_{i}"].tolist()
    assert fitted_shape(height, width, 70) == (rows, columns)
    box = (7, 7 + height, 3, 3 + width)
    close(to_native(case["heatmap_in"], box, reference=True), case[f"heatmap_{i}"])
    label = to_native(case["label_in"], box, reference=True) > 0.9
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
    maps = torch.tensor(case["maps_u8"]).float() / 255
    label, heat = merge_reference(list(maps), boxes, height, width)
    close(label, case["label"], 1e-6)
    close(heat, case["heatmap"])


def test_stitching_at_full_size(tensors):
    case = tensors("stitch_severstal_geometry")
    (height, width), net = case["image_hw"].tolist(), int(case["net_size"])
    boxes = tile(height, width, int(case["crop_size"]))
    check_windows(boxes, case["windows"], case["crop_shape"], case["input_shape"], net)
    maps = upsample(case["patch_logits"], (net, net)).sigmoid()
    label, heat = merge_reference(list(maps), boxes, height, width)
    np.testing.assert_array_equal(label * 2, case["label_x2"])
    close(heat[::4, ::4], case["heatmap_stride4"])
    close(heat[[0, 1, 127, 254, 255]], case["heatmap_rows"])
    close(heat[:, [0, 258, 259, 1340, 1341, 1553, 1554, 1599]], case["heatmap_cols"])
    close(heat.mean(dtype=np.float64), case["heatmap_mean"])


def test_support_crops(golden):
    case = golden("support_crops")
    for seed, boxes, counts in zip(case["seeds"], case["boxes"], case["mask_pixels"], strict=True):
        rng = random.Random(int(seed))
        settings = ViewSettings(70, int(case["crop_size"]), 1.0, views=4, crops_may_miss=True)
        ours = support_boxes(case["mask"], settings, rng)
        np.testing.assert_array_equal(ours, boxes)
        assert [int((cut(case["mask"], box) > 0).sum()) for box in ours] == counts.tolist()


@pytest.mark.parametrize("i", range(10))
def test_windows(golden, i):
    case = golden("tiling")
    assert len(case["combos"]) == 10
    height, width, crop = case["combos"][i].tolist()
    tag = f"{height}x{width}_crop{crop}"
    arrays = [case[f"{name}_{tag}"] for name in ("windows", "crop_shape", "input_shape")]
    check_windows(tile(height, width, crop), *arrays, 518)
