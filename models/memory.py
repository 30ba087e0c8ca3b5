"""The memory of a set of supports: foreground tokens, background tokens, tokens of normal images.

Shapes: B support sets (1 in use, one per query in training), K views per set, F foreground tokens
of all views together, M background tokens, C_l channels of layer l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from models.pixel_probe import PixelProbe
from models.priors import centred, taken, unit_tokens
from models.similarity import Keys

MOSTLY = 0.5  # share of marked pixels from which on a token is mostly defect
NEAR = 0.75  # share of the kept background that is most like the foreground
SCATTERED = 4096  # background tokens, at most, that the scatter of the probe is taken from
SHRINKAGE, VARIANCE_EPS = 0.3, 1e-6  # added to all variances: of their mean, and at least
WIDTH, ROUNDS, SEED = 128, 16, 54  # of the coreset


@dataclass(frozen=True)
class Memory:
    """Unit tokens of support views, and what methods keep beside them.

    Attributes:
        foreground: per layer (B, F, C_l), a block of tokens per view, the most marked one first. It
            is repeated where other sets of the batch have more, and stands alone, with share 0, in
            the block of a view without marks.
        share: (B, F) float32, share of marked pixels of each foreground token.
        sizes: length of each view's block; they add up to F.
        covered: (B, K) bool, views that hold nothing but foreground tokens.
        background: per layer (B, M, C_l), tokens of share 0; zero where other sets have more.
        mean: per layer (B, 1, C_l), mean token of all views, before any thinning.
        views: (B, 1, 1) number of views in the mean.
        repeated: (B, F) bool, foreground that is repeated as other sets have more; None: none is.
        normal: of each further image without defect, per layer (1, N, C_l); each image has one vote
            on what is normal, see `models.priors.normal_vote`.
        extras: by method, the tensors that it keeps beside the tokens.
        window: side in native pixels of the windows in which queries are seen; 0: each image is
            resized whole.
        coarse: of the same supports in larger windows; scores by both are averaged.
        thresholds: by method, the score above which a pixel is defect, if one was chosen on the
            supports.
        gates: by method, the score that an image without defect does not exceed anywhere, where
            normal images were taught.
        pixel_probes: by method, what corrects refined masks, where several supports were taught.
        border_offset: how far outside of the borders of colours the masks lie, tokens.
    """

    foreground: list[Tensor]
    share: Tensor
    sizes: list[int]
    covered: Tensor
    background: list[Tensor]
    mean: list[Tensor]
    views: Tensor
    repeated: Tensor | None = None
    normal: list[list[Tensor]] = field(default_factory=list)
    extras: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    window: int = 0
    coarse: Memory | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    gates: dict[str, float] = field(default_factory=dict)
    pixel_probes: dict[str, PixelProbe] = field(default_factory=dict)
    border_offset: float = 0.0

    @property
    def scales(self) -> list[Memory]:
        """This memory, and the one for larger windows where there is one."""
        return [self] if self.coarse is None else [self, self.coarse]

    @cached_property
    def is_marked(self) -> bool:
        """Whether any token is marked; without one, methods score what is unlike the supports."""
        return bool(self.share.any())

    @cached_property
    def typical(self) -> Tensor:
        """(B, F) bool: foreground that is mostly marked, or most marked in its view; no token of
        it twice."""
        views = self.share.split(self.sizes, dim=-1)
        enough = [v >= v.amax(-1, keepdim=True).clamp(max=MOSTLY) for v in views]
        typical = torch.cat(enough, dim=-1) & (self.share > 0)
        return typical if self.repeated is None else typical & ~self.repeated

    @cached_property
    def joint_foreground(self) -> Tensor:
        """(B, T, C) typical foreground over all layers, centred; of a set without any its first
        token. Zero where other sets have more."""
        kept = self.typical.clone()
        kept[:, 0] |= ~kept.any(1)
        index = kept.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        index = index[:, : int(kept.sum(1).max())]
        foreground = taken(centred(self.foreground, self.mean), index)
        return foreground * kept.gather(1, index).unsqueeze(-1)

    @cached_property
    def joint_background(self) -> Tensor:
        """(B, M, C) background over all layers, centred; zero where other sets have more."""
        background = centred(self.background, self.mean)
        return background * self.background[0].any(-1, keepdim=True)

    @cached_property
    def joint_keys(self) -> list[Keys]:
        """Foreground, background and each normal image over all layers, centred, in the type of the
        comparison. Where other sets have more, the first token is repeated, so that no largest
        similarity changes."""
        keys, dtype = [], self.foreground[0].dtype
        for tokens in (self.joint_foreground, self.joint_background):
            repeated = ~tokens.any(-1)
            repeated[:, 0] = False
            filled = tokens.where(~repeated.unsqueeze(-1), tokens[:, :1])
            keys.append(Keys(filled.to(dtype), repeated if repeated.any() else None))
        return keys + [Keys(image.to(dtype)) for image in self._joint_normal]

    @property
    def _joint_normal(self) -> list[Tensor]:
        """Each normal image over all layers, centred: (B, N, C)."""
        return [centred(image, self.mean) for image in self.normal]

    @cached_property
    def prototypes(self) -> tuple[Tensor, Tensor]:
        """Mean directions of the typical foreground, zero without any, and of the background, each
        (B, 1, C)."""
        foreground = self.joint_foreground * self.typical.any(1).view(-1, 1, 1)
        sums = (tokens.sum(1, keepdim=True) for tokens in (foreground, self.joint_background))
        return tuple(F.normalize(total, dim=-1) for total in sums)

    @cached_property
    def middle(self) -> Tensor:
        """(B,) float32: cosine to the mean foreground less that to the mean background, halfway
        between the average typical foreground token and the average background token."""
        foreground, background = self.prototypes
        axis, means = (foreground - background).transpose(1, 2), []
        for tokens in (self.joint_foreground, self.joint_background):
            count = tokens.any(-1).sum(-1).clamp(min=1)
            means.append((tokens @ axis).float().sum((1, 2)) / count)
        return (means[0] + means[1]) / 2

    @cached_property
    def probe(self) -> tuple[Tensor, Tensor]:
        """The linear discriminant (Fisher 1936) of foreground and background, over all layers: a
        direction (B, 1, C) float32 and a border (B,). The product of a token with the direction,
        less the border, is on average 0.5 in the foreground and -0.5 in the background, to which
        normal images belong; what the background differs in from itself counts little. Zero without
        a typical foreground token.
        """
        background = torch.cat([self.joint_background, *self._joint_normal], dim=1)
        real, means = [], []
        for tokens in (self.joint_foreground, background):
            real.append(tokens.any(-1, keepdim=True))
            means.append(tokens.sum(1, keepdim=True) / real[-1].sum(1, keepdim=True).clamp(min=1))
        some = slice(None, None, -(-background.shape[1] // SCATTERED))
        apart, counted = (background - means[1])[:, some], real[1][:, some]
        difference = (means[0] - means[1]) * self.typical.any(1).view(-1, 1, 1)
        with torch.autocast(apart.device.type, enabled=False):  # products of bf16 are too coarse
            scatter = (apart * counted).transpose(1, 2) @ apart
            scatter /= counted.sum(1, keepdim=True).clamp(min=1)
            variances = scatter.diagonal(dim1=1, dim2=2)
            variances += SHRINKAGE * variances.mean(-1, keepdim=True) + VARIANCE_EPS
            root = torch.linalg.cholesky(scatter)
            direction = torch.cholesky_solve(difference.transpose(1, 2), root).transpose(1, 2)
        distance = (direction * difference).sum(-1, keepdim=True)
        direction = direction / distance.where(distance > 0, 1)
        return direction, ((means[0] + means[1]) * direction).sum((1, 2)) / 2

    def without_normal(self, number: int) -> Memory:
        """The same memory as if the normal image of this number had not been taught."""
        others = [image for place, image in enumerate(self.normal) if place != number]
        coarse = self.coarse and self.coarse.without_normal(number)
        return replace(self, normal=others, coarse=coarse)

    @property
    def nbytes(self) -> int:
        """Bytes of its tokens."""
        images = [self.foreground, self.background, *self.normal]
        return sum(layer.nbytes for image in images for layer in image)

    def in_type(self, dtype: torch.dtype) -> Memory:
        """The same memory with its tokens in the type of the comparison."""
        return replace(
            self,
            foreground=[layer.to(dtype) for layer in self.foreground],
            background=[layer.to(dtype) for layer in self.background],
            normal=[[layer.to(dtype) for layer in image] for image in self.normal],
            coarse=None if self.coarse is None else self.coarse.in_type(dtype),
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """All tensors by name, for a file: on the CPU, none sharing memory with another."""
        layers = {"foreground": self.foreground, "background": self.background, "mean": self.mean}
        layers |= {f"normal.{number}": image for number, image in enumerate(self.normal)}
        tensors = {f"{part}.{i}": layer for part in layers for i, layer in enumerate(layers[part])}
        for method, extra in self.extras.items():
            tensors |= {f"extras.{method}.{name}": value for name, value in extra.items()}
        for method, probe in self.pixel_probes.items():
            state = probe.state_dict().items()
            tensors |= {f"pixels.{method}.{name}": value for name, value in state}
        tensors |= {"share": self.share, "covered": self.covered, "views": self.views}
        tensors["sizes"] = torch.tensor(self.sizes)
        if self.coarse is not None:
            tensors |= {f"coarse.{n}": value for n, value in self.coarse.to_tensors().items()}
        return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}

    @classmethod
    def from_tensors(
        cls,
        tensors: dict[str, Tensor],
        *,
        windows: Sequence[int],
        thresholds: dict[str, float],
        gates: dict[str, float],
        border_offset: float,
    ) -> Memory:
        """The memory that `to_tensors` wrote, for windows of these sides, the coarse one's last;
        ValueError names a missing or not finite tensor."""
        window, *larger = windows
        own = {n: value for n, value in tensors.items() if not n.startswith("coarse.")}
        larger_ones = {n.removeprefix("coarse."): tensors[n] for n in tensors.keys() - own.keys()}
        rest = {"windows": larger, "thresholds": {}, "gates": {}, "border_offset": 0.0}
        coarse = cls.from_tensors(larger_ones, **rest) if larger else None
        tensors = own
        layers = range(sum(name.startswith("mean.") for name in tensors))
        images = range(len({n.split(".")[1] for n in tensors if n.startswith("normal.")}))
        extras: dict[str, dict[str, Tensor]] = {}
        pixels: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if value.is_floating_point() and not torch.isfinite(value.float()).all():
                raise ValueError(f"{name} holds values that are not finite")
            for kind, of_methods in (("extras", extras), ("pixels", pixels)):
                if name.startswith(f"{kind}."):
                    _, method, part = name.split(".", 2)
                    of_methods.setdefault(method, {})[part] = value
        try:
            lists = {
                part: [tensors[f"{part}.{i}"] for i in layers]
                for part in ("foreground", "background", "mean", *(f"normal.{n}" for n in images))
            }
            normal = [lists.pop(f"normal.{n}") for n in images]
            single = {name: tensors[name] for name in ("share", "covered", "views")}
            probes = {m: PixelProbe.from_state(state).cpu() for m, state in pixels.items()}
            return cls(
                **lists, **single, sizes=tensors["sizes"].tolist(), normal=normal, extras=extras,
                window=window, thresholds=thresholds, gates=gates, pixel_probes=probes,
                border_offset=border_offset, coarse=coarse,
            )  # fmt: skip
        except KeyError as error:
            raise ValueError(f"{error.args[0]} is missing") from error


def comparison_type(device: torch.device) -> torch.dtype:
    """The type in which similarities are taken: that of autocast where it is on, else float32.

    Tokens have unit length, so half precision moves a similarity by a few thousandths.
    """
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32


def label(features: list[Tensor], share: Tensor, counts: Tensor | None = None) -> Memory:
    """Sort the tokens of support views into foreground and background.

    Args:
        features: per layer (B * K, C_l, h, w), batch-major.
        share: (B, K, h, w) share of marked pixels per token.
        counts: (B, K) how often each view was given, where one came more than once; None: once.
    """
    b, k = share.shape[:2]
    flat, grid = share.flatten(2), share[0, 0].numel()
    sizes = (flat > 0).sum(-1).amax(0).clamp(min=1).tolist()
    order = flat.argsort(dim=-1, descending=True, stable=True)
    blocks, repeats = [], []
    for view, size in enumerate(sizes):
        first = order[:, view, :size]
        marked = flat[:, view].gather(1, first) > 0
        blocks.append(first.where(marked, first[:, :1]) + view * grid)
        repeats.append(~marked)
    chosen, everything = torch.cat(blocks, dim=1), flat.flatten(1)
    value, index = everything.sort(dim=1, stable=True)
    count = max(1, int((everything == 0).sum(1).max()))
    unmarked, missing = index[:, :count], value[:, :count] > 0
    counts = torch.ones_like(flat[..., 0]) if counts is None else counts
    weight = counts.unsqueeze(-1) / counts.sum(1).view(b, 1, 1)
    foreground, background, mean = [], [], []
    for layer in features:
        tokens = unit_tokens(layer.float()).unflatten(0, (b, k))
        mean.append((tokens.mean(2) * weight).sum(1, keepdim=True))
        tokens = tokens.flatten(1, 2)
        foreground.append(taken(tokens, chosen))
        background.append(taken(tokens, unmarked).masked_fill(missing.unsqueeze(-1), 0))
    return Memory(
        foreground, everything.gather(1, chosen), sizes, (flat > 0).all(-1), background, mean,
        counts.sum(1).view(b, 1, 1), torch.cat(repeats, dim=1) if b > 1 else None,
    )  # fmt: skip


def join(parts: Sequence[Memory]) -> Memory:
    """One memory of the views of several; their extras and normal images are left out."""
    if len(parts) == 1:
        return parts[0]

    def beside(name: str) -> list[Tensor]:
        layers = zip(*(getattr(p, name) for p in parts), strict=True)
        return [torch.cat(layer, dim=1) for layer in layers]

    share, covered = (torch.cat([getattr(p, n) for p in parts], 1) for n in ("share", "covered"))
    views = torch.stack([p.views for p in parts]).sum(0)
    means = zip(*([layer * p.views for layer in p.mean] for p in parts), strict=True)
    return Memory(
        beside("foreground"), share, [size for p in parts for size in p.sizes], covered,
        beside("background"), [sum(layer) / views for layer in means], views,
    )  # fmt: skip


def background_only(memory: Memory) -> Memory:
    """The same views without their foreground, as normal images have none."""
    none, share, covered = [f[:, :0] for f in memory.foreground], memory.share, memory.covered
    return replace(memory, foreground=none, share=share[:, :0], sizes=[], covered=covered[:, :0])


def with_foreground(memory: Memory) -> Memory:
    """The same memory; without foreground, which a comparison needs, it gets a block of one
    background token of share 0: that it is there twice changes nothing.
    """
    if memory.sizes:
        return memory
    share = memory.share.new_zeros(1, 1)
    first = [layer[:, :1] for layer in memory.background]
    return replace(memory, foreground=first, share=share, sizes=[1], covered=share > 0)


def thin(memory: Memory, budget: int) -> Memory:
    """Keep at most `budget` background tokens of one set of views; the foreground stays whole.

    Most are those most like the foreground, which are hard to tell apart from it; the rest is a
    coreset of the others.
    """
    count = memory.background[0].shape[1]
    if count <= budget:
        return memory
    near = torch.zeros(0, dtype=torch.int64, device=memory.share.device)
    if memory.share.any():
        marked = centred(memory.foreground, memory.mean)[:, memory.share[0] > 0]
        best = Keys(marked).largest(centred(memory.background, memory.mean), 1)[..., 0]
        near = best[0].topk(round(NEAR * budget)).indices
    others = torch.ones(count, dtype=torch.bool, device=near.device).scatter_(0, near, False)
    far = others.nonzero().squeeze(1)
    spread = far[coreset([layer[0, far] for layer in memory.background], budget - len(near))]
    kept = torch.cat([near, spread]).sort().values
    return replace(memory, background=[layer[:, kept] for layer in memory.background])


def coreset(layers: list[Tensor], size: int) -> Tensor:
    """`size` indices, ascending, of tokens (M, C_l) per layer so that every other is near to one.

    They are drawn in rounds, each with a probability in proportion to its squared distance to those
    drawn before (k-means||, Bahmani et al. 2012). Distances are those of random projections of all
    layers. Equal input, equal choice.
    """
    draw = torch.Generator().manual_seed(SEED)
    points = torch.zeros(())
    for layer in layers:
        axes = torch.randn(layer.shape[1], WIDTH, generator=draw) / WIDTH**0.5
        points = points.to(layer.device) + layer.float() @ axes.to(layer.device)
    draw = torch.Generator().manual_seed(SEED)
    distance = torch.full((len(points),), torch.inf, device=points.device)
    chosen: list[Tensor] = []
    for number in range(ROUNDS):
        count = size * (number + 1) // ROUNDS - size * number // ROUNDS
        uniform = torch.rand(len(distance), generator=draw).clamp(1e-12, 1 - 1e-7)
        gumbel = -torch.log(-torch.log(uniform)).to(distance.device)
        new = (2 * distance.clamp(max=1e6).log() + gumbel).topk(count).indices
        chosen.append(new)
        if count:
            distance = torch.minimum(distance, torch.cdist(points, points[new]).amin(1))
        distance[new] = 0
    return torch.cat(chosen).sort().values
