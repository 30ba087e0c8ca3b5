"""The trained part: mixing convolutions, transformer, fusion, mask logits (paper, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import attend

PRIOR_WEIGHT = 10.0
RESIDUAL_SCALE = 10.0
LOGIT_SCALE = 0.1
TRUST = 0.35
MOST_CORRECTION = 2.0


def reduction(channels: int, width: int) -> nn.Sequential:
    """1 x 1 convolution without bias, ReLU, channel dropout."""
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.ReLU(), nn.Dropout2d(0.5))


def mixing(channels: int, width: int) -> nn.Sequential:
    """1 x 1 convolution without bias, ReLU."""
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.ReLU())


class SelfAttention(nn.Module):
    """Multi-head self-attention without bias."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Attend: (B, M, C) to (B, M, C)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    """Pre-norm self-attention, then an inverted feed-forward with a 3 x 3 depthwise convolution."""

    def __init__(self, width: int, num_heads: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        hidden = width * ratio
        self.feed_forward = nn.Sequential(
            nn.Conv2d(width, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Conv2d(hidden, width, 1),
            nn.Dropout(0.1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform a (B, C, h, w) map."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(self.norm1(tokens))
        normed = self.norm2(tokens).transpose(1, 2).unflatten(2, x.shape[-2:])
        return tokens.transpose(1, 2).unflatten(2, x.shape[-2:]) + self.feed_forward(normed)


def fuse(query: Tensor, support: Tensor, share: Tensor, temperature: float) -> Tensor:
    """Add to the query what the marked support tokens say: attention without weights, softmax over
    the query axis.

    Args:
        query: (B, C, h, w).
        support: (B or 1, N, C) marked support tokens of all supports.
        share: (B or 1, N) their shares; a token of share 0 adds nothing.
        temperature: of the softmax.

    Returns:
        (B, C, h, w).
    """
    tokens = query.flatten(2)
    similarity = F.normalize(support, dim=-1) @ F.normalize(tokens, dim=1)
    attention = (similarity * share.unsqueeze(-1) / temperature).softmax(dim=-1)
    added = (support * share.unsqueeze(-1)).transpose(1, 2) @ attention
    return (tokens + added).unflatten(2, query.shape[-2:])


class Head(nn.Module):
    """Turns features, prototypes and priors into mask logits on the token grid.

    Args:
        channels: channels of all layers together.
        num_priors: number of prior maps given to the query.
        reduce_dim: width after reduction.
        embed_dim: width of the transformer.
        num_heads, num_stages: attention heads and layers.
        temperature: of the fusion.
        prior_residual: expect one more prior map, the joint prior (`Comparison.joint_prior`), and
            correct it (ours), see `corrected`.
        meta_cls: True: the support prototype is the classifier; False: a convolutional classifier
            of two channels.
    """

    def __init__(
        self,
        channels: int,
        num_priors: int,
        *,
        reduce_dim: int = 256,
        embed_dim: int = 256,
        num_heads: int = 4,
        num_stages: int = 2,
        temperature: float = 0.1,
        meta_cls: bool = True,
        prior_residual: bool = False,
    ) -> None:
        super().__init__()
        self.temperature, self.prior_residual = temperature, prior_residual
        self.query_reduce = reduction(channels, reduce_dim)
        self.support_reduce = reduction(channels, reduce_dim)
        self.prototype_reduce = reduction(channels, reduce_dim)
        self.support_mix = mixing(2 * reduce_dim, embed_dim)
        self.query_mix = mixing(2 * reduce_dim + num_priors + prior_residual, embed_dim)
        self.transformer = nn.Sequential(
            *(TransformerLayer(embed_dim, num_heads) for _ in range(num_stages))
        )
        self.support_prototype = nn.Conv2d(embed_dim, embed_dim, 1) if meta_cls else None
        self.classifier = None if meta_cls else two_channel_classifier(embed_dim)
        self.residual_scale = nn.Parameter(torch.tensor(RESIDUAL_SCALE)) if prior_residual else None
        self.own_scale = nn.Parameter(torch.tensor(LOGIT_SCALE)) if prior_residual else None

    def embed_support(self, features: Tensor, prototype: Tensor) -> tuple[Tensor, Tensor]:
        """Embed supports.

        Args:
            features: (S, channels, h, w), all layers concatenated.
            prototype: (S, channels), each support's own.

        Returns:
            transformed map (S, embed_dim, h, w) and reduced prototype (S, reduce_dim).
        """
        reduced = self.prototype_reduce(prototype[..., None, None])
        support = self.support_reduce(features)
        mixed = self.support_mix(
            torch.cat([support, reduced.expand(-1, -1, *support.shape[-2:])], dim=1)
        )
        return self.transformer(mixed), reduced[..., 0, 0]

    def embed_query(self, features: Tensor, prototype: Tensor, priors: Tensor) -> Tensor:
        """Embed queries.

        Args:
            features: (B, channels, h, w).
            prototype: (B or 1, reduce_dim), mean over the supports.
            priors: (B, num_priors, h, w).

        Returns:
            (B, embed_dim, h, w).
        """
        query = self.query_reduce(features)
        reduced = prototype[..., None, None].expand(query.shape[0], -1, *query.shape[-2:])
        return self.transformer(
            self.query_mix(torch.cat([query, reduced, PRIOR_WEIGHT * priors], dim=1))
        )

    def logits(self, query: Tensor, support: Tensor, share: Tensor, prototype: Tensor) -> Tensor:
        """Mask logits on the token grid.

        Args:
            query: (B, embed_dim, h, w) from `embed_query`.
            support: (B or 1, N, embed_dim) marked support tokens.
            share: (B or 1, N).
            prototype: (B or 1, embed_dim) support prototype; unused without `meta_cls`.

        Returns:
            (B, h, w): the log-odds of defect.
        """
        fused = fuse(query, support, share, self.temperature)
        if self.classifier is not None:
            scores = self.classifier(fused)
            return scores[:, 1] - scores[:, 0]
        return (fused * prototype[..., None, None]).sum(1)

    def corrected(self, gap: Tensor, logits: Tensor) -> Tensor:
        """Log-odds of the joint prior, corrected by the head's own logits, both by learned factors.

        In training the two are added. In use the correction is damped and bounded: on classes and
        surfaces that it was not trained on a head is surer of itself than it should be, and more so
        the less they are like the trained ones. Bounded in training, too, it learns less.

        Args:
            gap: (B, h, w) difference of the joint prior.
            logits: (B, h, w) from `logits`.

        Returns:
            (B, h, w) float32.
        """
        own = self.own_scale * logits.float()
        if not self.training:
            own = MOST_CORRECTION * torch.tanh(TRUST * own / MOST_CORRECTION)
        return self.residual_scale * gap + own


def two_channel_classifier(width: int) -> nn.Sequential:
    """The convolutional classifier used instead of the support prototype."""
    hidden = 128
    return nn.Sequential(
        nn.Conv2d(width, hidden, 1),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, hidden, 3, padding=1),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, 2, 1),
    )
