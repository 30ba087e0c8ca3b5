from __future__ import annotations

import numpy as np
import torch
from torch.testing import assert_close

from models.sofs import SOFS
from tests.helpers import tiny_config
from tools.benchmark.inference import (
    counted_passes,
    measure_inference,
    published_schedule,
    random_predictor,
    teach,
)


def test_the_published_schedule_gives_our_answer_for_more_passes(tmp_path):
    cfg = tiny_config(tmp_path, tmp_path, TRAIN__backbone="dinov2_vits14", TRAIN__backbone_load_state_dict=False,
                      TRAIN__SOFS__vit_patch_size=14, DATASET__image_size=56, DATASET__mask_size=56)  # fmt: skip
    predictor = random_predictor(cfg)
    model: SOFS = predictor.methods["SOFS"]
    draw = torch.Generator().manual_seed(0)
    windows, supports = (
        torch.randn(6, 3, 56, 56, generator=draw),
        torch.randn(1, 4, 3, 56, 56, generator=draw),
    )
    masks = torch.zeros(1, 4, 56, 56)
    masks[..., 10:20, 20:40] = 1
    with torch.inference_mode():
        ours = model.segment(windows, model.encode_support(supports, masks))
    with counted_passes(model.backbone.model.blocks[11]) as last_block:
        theirs = published_schedule(model, windows, supports, masks)
    assert_close(theirs, ours, rtol=0, atol=1e-5)
    assert sum(last_block) == 6 * (1 + 4), "all blocks, for each window and its four supports"


def test_a_second_pass_would_be_noticed(tmp_path):
    cfg = tiny_config(tmp_path, tmp_path)
    figures = {f.name: f for f in measure_inference(cfg, [(100, 150)], repeats=1, most=(100, 100))}
    assert figures["100 x 150: windows"].value == 6
    passes = figures["100 x 150: backbone passes"]
    assert (passes.value, passes.bound, passes.kind) == (6, 6, "exactly")
    predictor = random_predictor(cfg)
    teach(predictor)
    with counted_passes(predictor.backbone) as count:
        predictor.predict(np.zeros((100, 150, 3), np.uint8))
        predictor.backbone(torch.zeros(2, 3, 64, 64))
    assert sum(count) == 6 + 2
