from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from models.backbone import Backbone
from models.head import Head
from models.methods.sofs import SOFS


def tiny_vit(**options):
    options = {
        "img_size": 56,
        "patch_size": 14,
        "embed_dim": 24,
        "depth": 4,
        "num_heads": 3,
    } | options
    vit = VisionTransformer(init_values=1e-5, num_classes=0, **options)
    vit.pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(0, 0.2)
    return vit


@pytest.fixture
def make_vit():
    """Build a tiny random ViT of 4 x 4 tokens; options go to timm."""
    torch.manual_seed(0)
    return tiny_vit


@pytest.fixture
def make_model():
    """Build a tiny random SOFS of 4 x 4 tokens in eval mode; options go to SOFS."""

    def build(meta_cls=True, **options):
        torch.manual_seed(0)
        head = Head(2 * 24, 4, reduce_dim=16, embed_dim=16, meta_cls=meta_cls)
        return SOFS(Backbone(tiny_vit(), [1, 2], 14), head, **options).eval()

    return build


@pytest.fixture
def episode():
    """Queries (3, 3, 56, 56), supports (1, 4, 3, 56, 56) and their masks (1, 4, 56, 56)."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(3, 3, 56, 56, generator=generator)
    support = torch.randn(1, 4, 3, 56, 56, generator=generator)
    masks = torch.zeros(1, 4, 56, 56, dtype=torch.uint8)
    for k in range(4):
        masks[0, k, 5 * k : 5 * k + 20, 10:24] = 1
    return query, support, masks
