"""Tiny random models, features and memories."""

from __future__ import annotations

from dataclasses import replace

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models.comparison import Comparison
from models.memory import background_only, comparison_type, label

SIDE, GRID = 56, (3, 4)


def tiny_vit(**options):
    """A random ViT of 4 x 4 tokens; options go to timm."""
    sizes = {"img_size": SIDE, "patch_size": 14, "embed_dim": 24, "depth": 4, "num_heads": 3}
    vit = VisionTransformer(init_values=1e-5, num_classes=0, **sizes | options)
    vit.pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(0, 0.2)
    return vit


def two_layers(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def same(a, b):
    """Whether a model or state holds the tensors of another."""
    a, b = (m.state_dict() if isinstance(m, nn.Module) else m for m in (a, b))
    return a.keys() <= b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def features(count, seed=0, channels=(5, 7)):
    """Per layer (count, C_l, 3, 4), with something in common and of very different lengths."""
    draw = torch.Generator().manual_seed(seed)
    maps = [torch.randn(count, c, *GRID, generator=draw) + 1 for c in channels]
    return [layer * 10**i for i, layer in enumerate(maps)]


def shares(views, marked=4, batch=1, seed=0):
    """(batch, views, 3, 4): in each view `marked` random tokens of shares about one half."""
    draw, share = torch.Generator().manual_seed(seed), torch.zeros(batch, views, 12)
    values = torch.tensor([0.2, 0.55, 0.45, 0.9, 0.1, 0.3, 0.7])[:marked]
    for view in share.view(-1, 12):
        view[torch.randperm(12, generator=draw)[:marked]] = values
    return share.unflatten(-1, GRID)


def remember(methods, supports, masks):
    """A memory of (B, K, 3, S, S) supports and (B, K, S, S) masks for some methods."""
    found = methods[0].backbone(supports.flatten(0, 1))
    share = methods[0].shares(masks)
    memory = label(found, share).in_type(comparison_type(share.device))
    return replace(memory, extras={m.name: m.encode(found, share) for m in methods})


def answer(method, query, memory):
    """Scores (B, S, S) of windows (B, 3, S, S)."""
    return method.answer(Comparison(method.backbone(query), memory), query.shape[-2:])


def normal_image(maps):
    """The memory of an image without defect, per layer (K, C_l, 3, 4)."""
    return background_only(label(maps, torch.zeros(1, len(maps[0]), *GRID)))


def priors(query, memory, weight=None):
    """All that a comparison gives: semantic, abnormal and joint prior as (B, 2 L + 1, h, w)."""
    compared = Comparison(query, memory)
    weight = torch.ones(memory.covered.shape) if weight is None else weight
    maps = compared.semantic_prior(weight), compared.abnormal_prior
    return torch.cat([*maps, compared.joint_prior.unsqueeze(1)], dim=1)
