"""Tokens of the supports with their shares of marked pixels: sorted view by view, joined, thinned, made ready.

Shapes: B support sets (1 in use, one per query in training), K views per set, F marked tokens of all views together, M
tokens without a marked pixel, C_l channels of layer l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from models import joint_prior
from models.coreset import coreset
from models.joint_prior import JointTokens
from models.priors import unit_tokens
from models.products import Keys, as_keys, best_similarity

NEAR = 0.75  # share of the kept background that lies nearest to the marked tokens


@dataclass(frozen=True)
class LabelledTokens:
    """Unit tokens of support views, sorted into foreground and background.

    Attributes:
        foreground: per layer (B, F, C_l), a block per view, the most marked token first, and repeated where the sets
            of a batch differ; a view without marks leaves a block of one token of share 0.
        share: (B, F) shares of marked pixels.
        sizes: length of each view's block; they add up to F.
        covered: (B, K) bool, views that hold nothing but marked tokens.
        background: per layer (B, M, C_l), tokens of share 0; zero where the sets of a batch differ, or there are none.
        mean: per layer (B, 1, C_l), mean token of all views, before any thinning.
        views: (B, 1, 1) number of views behind the mean.
    """

    foreground: list[Tensor]
    share: Tensor
    sizes: list[int]
    covered: Tensor
    background: list[Tensor]
    mean: list[Tensor]
    views: Tensor


@dataclass(frozen=True)
class SupportTokens:
    """What queries are compared with; `share`, `sizes`, `covered` and `mean` as in `LabelledTokens`.

    Attributes:
        keys: per layer (B, F + M, C_l), foreground, then background, in the type of the comparison.
        joint: for the joint prior; None where no method asks for it.
        normal: of each further image without defect, per layer (1, N, C_l), likewise; it has one vote on what is
            normal, see `models.priors.normal_vote`.
    """

    keys: list[Tensor]
    share: Tensor
    sizes: list[int]
    covered: Tensor
    mean: list[Tensor]
    joint: JointTokens | None
    normal: list[list[Tensor]] = field(default_factory=list)

    @cached_property
    def is_marked(self) -> bool:
        """Whether any token is marked: without one there is nothing to look for but what is unlike the supports."""
        return bool(self.share.any())

    @cached_property
    def ready_keys(self) -> list[Keys]:
        """`keys`, made ready for products."""
        return [as_keys(layer) for layer in self.keys]

    @cached_property
    def ready_normal(self) -> list[list[Keys]]:
        """Per layer the keys of each normal image, made ready for products."""
        return [[as_keys(image[i]) for image in self.normal] for i in range(len(self.keys))]


def label(features: list[Tensor], share: Tensor, counts: Tensor | None = None) -> LabelledTokens:
    """Sort the tokens of support views by their shares.

    Args:
        features: per layer (B * K, C_l, h, w), batch-major.
        share: (B, K, h, w) share of marked pixels per token.
        counts: (B, K) how often each view was given, where the same one came more than once; None: once.
    """
    b, k = share.shape[:2]
    flat, grid = share.flatten(2), share[0, 0].numel()
    sizes = (flat > 0).sum(-1).amax(0).clamp(min=1).tolist()
    order = flat.argsort(dim=-1, descending=True, stable=True)
    chosen = torch.cat(
        [_block(flat[:, i], order[:, i], n) + i * grid for i, n in enumerate(sizes)], dim=1
    )
    everything = flat.flatten(1)
    normal, missing = _normal(everything)
    counts = torch.ones_like(flat[..., 0]) if counts is None else counts
    weight = counts.unsqueeze(-1) / counts.sum(1).view(b, 1, 1)
    foreground, background, mean = [], [], []
    for layer in features:
        tokens = unit_tokens(layer.float()).unflatten(0, (b, k))
        mean.append((tokens.mean(2) * weight).sum(1, keepdim=True))
        foreground.append(_taken(tokens.flatten(1, 2), chosen))
        background.append(
            _taken(tokens.flatten(1, 2), normal).masked_fill(missing.unsqueeze(-1), 0)
        )
    return LabelledTokens(
        foreground,
        everything.gather(1, chosen),
        sizes,
        (flat > 0).all(-1),
        background,
        mean,
        counts.sum(1).view(b, 1, 1),
    )


def background_of(tokens: LabelledTokens) -> LabelledTokens:
    """The same views without what is marked, and without a block for each: what is known to be normal."""
    return replace(
        tokens,
        foreground=[layer[:, :0] for layer in tokens.foreground],
        share=tokens.share[:, :0],
        sizes=[],
        covered=tokens.covered[:, :0],
    )


def join(parts: list[LabelledTokens]) -> LabelledTokens:
    """One set of views out of several."""
    if len(parts) == 1:
        return parts[0]
    views = torch.stack([p.views for p in parts]).sum(0)
    means = zip(*(p.mean for p in parts), strict=True)
    return LabelledTokens(
        foreground=[
            torch.cat(layer, dim=1) for layer in zip(*(p.foreground for p in parts), strict=True)
        ],
        share=torch.cat([p.share for p in parts], dim=1),
        sizes=[n for p in parts for n in p.sizes],
        covered=torch.cat([p.covered for p in parts], dim=1),
        background=[
            torch.cat(layer, dim=1) for layer in zip(*(p.background for p in parts), strict=True)
        ],
        mean=[
            sum(m * p.views for m, p in zip(layer, parts, strict=True)) / views for layer in means
        ],
        views=views,
    )


def thin(tokens: LabelledTokens, budget: int) -> LabelledTokens:
    """Keep at most `budget` background tokens of one set of views; the foreground stays whole.

    Most of those kept are the ones that look most like marked tokens: they draw the border between the two. The rest is
    a coreset of the others, which says what else is normal.
    """
    count = tokens.background[0].shape[1]
    if count <= budget:
        return tokens
    near = _nearest_to_marked(tokens, round(NEAR * budget))
    far = (
        torch.ones(count, dtype=torch.bool, device=near.device)
        .scatter_(0, near, False)
        .nonzero()
        .squeeze(1)
    )
    spread = far[coreset([layer[0, far] for layer in tokens.background], budget - len(near))]
    kept = torch.cat([near, spread]).sort().values
    return replace(tokens, background=[layer[:, kept] for layer in tokens.background])


def ready(
    tokens: LabelledTokens, normal: Sequence[LabelledTokens] = (), *, joint: bool
) -> SupportTokens:
    """Tokens in the form that comparisons take.

    Args:
        tokens: of all views.
        normal: of each further image without defect.
        joint: a method asks for the joint prior.
    """
    tokens = tokens if tokens.sizes else _with_unmarked_block(tokens)
    keys = [
        torch.cat(pair, dim=1) for pair in zip(tokens.foreground, tokens.background, strict=True)
    ]
    dtype = comparison_dtype(keys[0].device)
    further = [[layer.to(dtype) for layer in image.background] for image in normal]
    keys = [k.to(dtype) for k in keys]
    known = SupportTokens(
        keys, tokens.share, tokens.sizes, tokens.covered, tokens.mean, None, further
    )
    return with_joint(known) if joint else known


def with_joint(known: SupportTokens) -> SupportTokens:
    """The same tokens, made ready for the joint prior."""
    return replace(
        known,
        joint=joint_prior.prepare(known.keys, known.share, known.sizes, known.mean, known.normal),
    )


def comparison_dtype(device: torch.device) -> torch.dtype:
    """Type in which similarities are taken: that of autocast where it is on. Tokens have unit length, so half precision
    moves a similarity by a few thousandths."""
    return (
        torch.get_autocast_dtype(device.type)
        if torch.is_autocast_enabled(device.type)
        else torch.float32
    )


def _nearest_to_marked(tokens: LabelledTokens, count: int) -> Tensor:
    """Indices (count,) of the background tokens most like any marked one, over all layers; none without marks."""
    if not tokens.share.any():
        return torch.zeros(0, dtype=torch.int64, device=tokens.share.device)
    marked, normal = (
        joint_prior.centred(t, tokens.mean) for t in (tokens.foreground, tokens.background)
    )
    return best_similarity(normal, as_keys(marked[:, tokens.share[0] > 0]))[0].topk(count).indices


def _with_unmarked_block(tokens: LabelledTokens) -> LabelledTokens:
    """The same with a background token of share 0 in front: a comparison needs a foreground, and to know this one twice
    changes nothing, which a zero token would where a query is like no token at all."""
    share = tokens.share.new_zeros(1, 1)
    blocks = [layer[:, :1] for layer in tokens.background]
    return replace(tokens, foreground=blocks, share=share, sizes=[1], covered=share > 0)


def _block(share: Tensor, order: Tensor, n: int) -> Tensor:
    """Indices (B, n) of the marked tokens of one view, the first repeated where there are fewer."""
    first = order[:, :n]
    return first.where(share.gather(1, first) > 0, first[:, :1])


def _normal(share: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (B, M) of the tokens of share 0, at least one, and where there is none to take."""
    count = max(1, int((share == 0).sum(1).max()))
    value, index = share.sort(dim=1, stable=True)
    return index[:, :count], value[:, :count] > 0


def _taken(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
