from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from models.build import build_method
from models.comparison import Comparison
from models.methods import METHODS, method_class
from models.priors import downsample_mask, upsample
from tests.helpers import tiny_config
from tests.models.tiny import answer, remember
from utils.errors import ConfigError

method_class("prior")  # imports all of them


def test_an_unknown_name_lists_the_methods():
    with pytest.raises(ConfigError, match=r"TEST\.method is Sofs; .*SOFS.* mean SOFS\?") as error:
        method_class("Sofs")
    assert all(name in str(error.value) for name in METHODS)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_scores_windows_with_and_without_marks(tmp_path, name):
    """Whatever the batch, each window is scored as alone, and in any order of the supports."""
    torch.manual_seed(0)
    method = build_method(tiny_config(tmp_path, tmp_path), name).eval()
    query, supports = torch.randn(3, 3, 64, 64), torch.randn(1, 4, 3, 64, 64)
    masks, order = torch.zeros(1, 4, 64, 64, dtype=torch.uint8), [3, 1, 0, 2]
    unmarked = answer(method, query, remember([method], supports, masks))
    assert unmarked.shape == (3, 64, 64) and unmarked.dtype == torch.float32
    assert unmarked.min() >= 0 and unmarked.max() <= 2
    masks[..., 10:30, 10:24] = 1
    scores = answer(method, query, remember([method], supports, masks))
    assert scores.shape == (3, 64, 64) and scores.min() >= 0 and scores.max() <= 1
    assert (scores - unmarked).abs().max() > 1e-3
    shuffled = remember([method], supports[:, order], masks[:, order])
    alone = [answer(method, window, shuffled) for window in query.split(1)]
    assert_close(torch.cat(alone), scores, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_prior_is_the_joint_prior_and_finds_the_defect_of_its_support_again(methods, episode):
    (_, prior), (query, support, _) = methods, episode
    masks = torch.zeros(1, 1, 56, 56, dtype=torch.uint8)
    masks[0, 0, 14:42, 28:] = 1
    memory = remember([prior], support[:, :1], masks)
    joint = upsample(Comparison(prior.backbone(query), memory).joint_prior, (56, 56))
    assert_close(answer(prior, query, memory), 0.5 + joint / 4)
    scores = prior.answer(Comparison(prior.backbone(support[0, :1]), memory), (4, 4))
    assert torch.equal(scores[0] > 0.5, downsample_mask(masks, 14)[0, 0] > 0)


@torch.no_grad()
def test_contrast_and_a_head_that_has_learned_nothing_give_the_log_odds_of_the_score(tmp_path):
    torch.manual_seed(0)
    cfg = tiny_config(tmp_path, tmp_path, TRAIN__SOFS__prior_residual=True)
    contrast = build_method(cfg, "contrast").eval()
    head = build_method(cfg, "SOFS", contrast.backbone).eval()
    head.head.own_scale.zero_()
    query, supports = torch.randn(2, 3, 64, 64), torch.randn(1, 2, 3, 64, 64)
    masks = torch.zeros(1, 2, 64, 64, dtype=torch.uint8)
    masks[..., 10:30, 10:24] = 1
    memory = remember([contrast, head], supports, masks)
    score = upsample(Comparison(contrast.backbone(query), memory).score, (64, 64))
    for method in (contrast, head):
        assert_close(answer(method, query, memory).logit(), 10 * score, rtol=0, atol=1e-3)
