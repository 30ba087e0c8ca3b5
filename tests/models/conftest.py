from __future__ import annotations

import pytest
import torch

from models.backbone import Backbone
from models.head import Head
from models.methods.prior import Prior
from models.methods.sofs import SOFS
from tests.models.tiny import tiny_vit


@pytest.fixture
def make_model():
    """Build a tiny random SOFS of 4 x 4 tokens in eval mode; options go to SOFS."""

    def build(meta_cls=True, prior_residual=False, **options):
        torch.manual_seed(0)
        sizes = {"reduce_dim": 16, "embed_dim": 16}
        head = Head(2 * 24, 4, **sizes, meta_cls=meta_cls, prior_residual=prior_residual)
        return SOFS(Backbone(tiny_vit(), [1, 2], 14), head, **options).eval()

    return build


@pytest.fixture
def methods(make_model):
    """The head and the prior on one backbone."""
    model = make_model()
    return [model, Prior(model.backbone)]


@pytest.fixture
def episode():
    """Queries (3, 3, 56, 56), supports (1, 4, 3, 56, 56) and their masks (1, 4, 56, 56)."""
    draw = torch.Generator().manual_seed(1)
    query = torch.randn(3, 3, 56, 56, generator=draw)
    support = torch.randn(1, 4, 3, 56, 56, generator=draw)
    masks = torch.zeros(1, 4, 56, 56, dtype=torch.uint8)
    for k in range(4):
        masks[0, k, 5 * k : 5 * k + 20, 10:24] = 1
    return query, support, masks
