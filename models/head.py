"""The trained part: mixing convolutions, transformer, fusion, mask logits (paper, section 3.3).

Shapes: B queries, S support views, h x w tokens, N marked support tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import attend

PRIOR_WEIGHT = 10.0  # of the priors in the query's mixing
RESIDUAL_SCALE, LOGIT_SCALE = 10.0, 0.1  # first values of the learned factors, see `corrected`
TRUST, MOST_CORRECTION = 0.35, 2.0  # damping and bound of the correction
CLASSIFIER_WIDTH = 128


class SelfAttention(nn.Module):
    """Multi-head self-attention without bias: (B, M, C) to (B, M, C)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        linear = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.query, self.key, self.value, self.out = linear

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.query, self.key, self.value)
        heads = (layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in layers)
        return self.out(attend(*heads).transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    """Pre-norm self-attention, then an inverted feed-forward with a 3 x 3 depthwise convolution.

    Takes and returns a map (B, C, h, w).
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        hidden = 4 * width
        self.feed_forward = nn.Sequential(
            nn.Conv2d(width, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Conv2d(hidden, width, 1),
            nn.Dropout(0.1),
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(self.norm1(tokens))
        normed = self.norm2(tokens).transpose(1, 2).unflatten(2, x.shape[-2:])
        return tokens.transpose(1, 2).unflatten(2, x.shape[-2:]) + self.feed_forward(normed)


def fuse(query: Tensor, support: Tensor, share: Tensor, temperature: float) -> Tensor:
    """Add support tokens (B or 1, N, C), times their shares of marked pixels (B or 1, N), to the
    query (B, C, h, w): attention without weights, with a softmax over the query tokens (paper,
    section 3.3).
    """
    tokens = query.flatten(2)
    similarity = F.normalize(support, dim=-1) @ F.normalize(tokens, dim=1)
    attention = (similarity * share.unsqueeze(-1) / temperature).softmax(dim=-1)
    added = (support * share.unsqueeze(-1)).transpose(1, 2) @ attention
    return (tokens + added).unflatten(2, query.shape[-2:])


class Head(nn.Module):
    """Turns features, prototypes and priors into mask logits on the token grid.

    Args:
        channels: of all layers together.
        num_priors: prior maps beside the query.
        reduce_dim, embed_dim: widths after reduction and of the transformer.
        num_heads, num_stages: of the transformer.
        temperature: of the fusion.
        meta_cls: the support prototype is the classifier; False: convolutions with two channels.
        prior_residual: take one more prior map, the joint prior, and correct it (ours).
    """

    def __init__(
        self, channels: int, num_priors: int, *, reduce_dim: int = 256, embed_dim: int = 256,
        num_heads: int = 4, num_stages: int = 2, temperature: float = 0.1, meta_cls: bool = True,
        prior_residual: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()

        def conv_relu(inputs: int, width: int, *more: nn.Module) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.ReLU(), *more)

        self.temperature, self.prior_residual = temperature, prior_residual
        self.query_reduce, self.support_reduce, self.prototype_reduce = (
            conv_relu(channels, reduce_dim, nn.Dropout2d(0.5)) for _ in range(3)
        )
        self.support_mix = conv_relu(2 * reduce_dim, embed_dim)
        self.query_mix = conv_relu(2 * reduce_dim + num_priors + prior_residual, embed_dim)
        layers = (TransformerLayer(embed_dim, num_heads) for _ in range(num_stages))
        self.transformer = nn.Sequential(*layers)
        self.support_prototype = nn.Conv2d(embed_dim, embed_dim, 1) if meta_cls else None
        hidden = CLASSIFIER_WIDTH
        self.classifier = None if meta_cls else nn.Sequential(
            nn.Conv2d(embed_dim, hidden, 1), nn.BatchNorm2d(hidden),
            nn.Conv2d(hidden, hidden, 3, padding=1), nn.BatchNorm2d(hidden),
            nn.Conv2d(hidden, 2, 1),
        )  # fmt: skip
        self.residual_scale = nn.Parameter(torch.tensor(RESIDUAL_SCALE)) if prior_residual else None
        self.own_scale = nn.Parameter(torch.tensor(LOGIT_SCALE)) if prior_residual else None

    def embed_support(self, features: Tensor, prototype: Tensor) -> tuple[Tensor, Tensor]:
        """Features (S, channels, h, w) of all layers and prototypes (S, channels) of supports to
        transformed maps (S, embed_dim, h, w) and reduced prototypes (S, reduce_dim).
        """
        reduced = self.prototype_reduce(prototype[..., None, None])
        support = self.support_reduce(features)
        mixed = torch.cat([support, reduced.expand(-1, -1, *support.shape[-2:])], dim=1)
        return self.transformer(self.support_mix(mixed)), reduced[..., 0, 0]

    def embed_query(self, features: Tensor, prototype: Tensor, priors: Tensor) -> Tensor:
        """Features (B, channels, h, w) and priors (B, num_priors, h, w) of queries, and the mean
        prototype (B or 1, reduce_dim) of their supports, to transformed maps (B, embed_dim, h, w).
        """
        query = self.query_reduce(features)
        reduced = prototype[..., None, None].expand(query.shape[0], -1, *query.shape[-2:])
        mixed = torch.cat([query, reduced, PRIOR_WEIGHT * priors], dim=1)
        return self.transformer(self.query_mix(mixed))

    def logits(self, query: Tensor, support: Tensor, share: Tensor, prototype: Tensor) -> Tensor:
        """Log-odds (B, h, w) of defect; query, support and share as in `fuse`, and the support
        prototype (B or 1, embed_dim), which is unused without `meta_cls`.
        """
        fused = fuse(query, support, share, self.temperature)
        if self.classifier is not None:
            scores = self.classifier(fused)
            return scores[:, 1] - scores[:, 0]
        return (fused * prototype[..., None, None]).sum(1)

    def corrected(self, gap: Tensor, logits: Tensor) -> Tensor:
        """The joint prior (B, h, w) plus the head's logits (B, h, w), each times a learned factor
        (ours): the log-odds of defect, float32.

        In use the logits are damped and bounded: a head is too sure on classes and surfaces unlike
        those of its training. Bounded in training, too, it learns less.
        """
        correction = self.own_scale * logits.float()
        if not self.training:
            correction = MOST_CORRECTION * torch.tanh(TRUST * correction / MOST_CORRECTION)
        return self.residual_scale * gap + correction
