"""Supports through the backbone, once for all methods: `SupportEncoder` makes their memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models.memory import (
    Memory,
    background_only,
    comparison_type,
    join,
    label,
    thin,
    with_foreground,
)
from models.methods import Method
from utils.precision import autocast

LOG = logging.getLogger(__name__)
NORMAL_POOL = 4  # times `memory_tokens`: tokens of a normal image that are kept to choose from


class SupportEncoder:
    """Encodes supports for methods that share a backbone.

    Args:
        methods: those that will be asked, in eval mode on the device; the first one brings masks to
            tokens.
        device: where they are.
        precision: `fp32`, `bf16`, `fp16` or `auto`.
        batch: views per pass.
        memory_tokens: background tokens kept; 0: all.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        device: torch.device,
        *,
        precision: str = "fp32",
        batch: int = 4,
        memory_tokens: int = 0,
    ) -> None:
        self.methods, self.device = list(methods), device
        self.precision, self.batch, self.memory_tokens = precision, batch, memory_tokens
        self._thinning_is_logged = False

    @torch.inference_mode()
    def encode(self, images: Tensor, masks: Tensor) -> Memory:
        """Encode views of images with a defect: (K, 3, S, S) float32 and (K, S, S) {0, 1}.

        Equal views go through the backbone once, and count as often as they were given.
        """
        distinct, counts = _distinct(images, masks)
        parts: list[Memory] = []
        extras: dict[str, list[dict[str, Tensor]]] = {}
        with autocast(self.device, self.precision):
            for rows, count in zip(
                distinct.split(self.batch), counts.split(self.batch), strict=True
            ):
                features = self.methods[0].backbone(images[rows].to(self.device))
                share = self.methods[0].shares(masks[rows].unsqueeze(0).to(self.device))
                count = count.unsqueeze(0).to(self.device)
                parts.append(label(features, share, count))
                for method in self.methods:
                    extras.setdefault(method.name, []).append(method.encode(features, share, count))
                parts = self._thinned(parts, 2 * self.memory_tokens, self.memory_tokens)
        return replace(join(parts), extras=self._joined(extras))

    @torch.inference_mode()
    def encode_normal(self, batches: Iterable[Tensor]) -> Memory:
        """Encode an image without defect, in batches (K, 3, S, S) float32 of views that cover it.

        Of very many tokens a coreset is kept, from which those like the defect are chosen later.
        """
        parts: list[Memory] = []
        pool = NORMAL_POOL * self.memory_tokens
        with autocast(self.device, self.precision):
            for images in batches:
                marks = torch.zeros(1, len(images), *images.shape[-2:], device=self.device)
                features = self.methods[0].backbone(images.to(self.device))
                parts.append(background_only(label(features, self.methods[0].shares(marks))))
                parts = self._thinned(parts, 2 * pool, pool)
        return join(parts)

    @torch.inference_mode()
    def remember(
        self, supports: Sequence[Memory], normal: Sequence[Memory] = (), *, windowed: bool = True
    ) -> Memory:
        """One memory of several supports, thinned and in the type of the comparison.

        Args:
            supports: of images with a defect.
            normal: of images without; where there are no others, they are all that is known.
            windowed: queries are seen in windows at native resolution; False: each resized whole.
        """
        extras: dict[str, list[dict[str, Tensor]]] = {}
        for support in supports:
            for name, kept in support.extras.items():
                extras.setdefault(name, []).append(kept)
        with autocast(self.device, self.precision):
            views = [join(list(supports) or list(normal))]
            (memory,) = self._thinned(views, self.memory_tokens, self.memory_tokens)
            votes = []
            budget = max(1, self.memory_tokens // max(1, len(normal)))
            for image in normal if supports else ():
                near = [replace(memory, background=image.background)]
                votes.append(self._thinned(near, budget, budget)[0].background)
            memory = replace(with_foreground(memory), normal=votes, windowed=windowed)
            memory = memory.in_type(comparison_type(self.device))
        return replace(memory, extras=self._joined(extras))

    def _joined(self, extras: dict[str, list[dict[str, Tensor]]]) -> dict[str, dict[str, Tensor]]:
        by_name = {method.name: method for method in self.methods}
        return {name: by_name[name].join(kept) for name, kept in extras.items() if kept[0]}

    def _thinned(self, parts: list[Memory], limit: int, budget: int) -> list[Memory]:
        """The parts as they are up to `limit` background tokens, else joined and thinned to
        `budget`.
        """
        count = sum(part.background[0].shape[1] for part in parts)
        if not self.memory_tokens or count <= limit:
            return parts
        if not self._thinning_is_logged:
            LOG.info("%d background tokens are kept (TEST.memory_tokens)", self.memory_tokens)
            self._thinning_is_logged = True
        return [thin(join(parts), budget)]


def _distinct(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (K',) of the views without repetitions, and how often each was given, (K',)
    float32.
    """
    counts: dict[int, float] = {}
    for number in range(len(images)):
        same = (
            first for first in counts
            if torch.equal(masks[first], masks[number]) and torch.equal(images[first], images[number])
        )  # fmt: skip
        first = next(same, number)
        counts[first] = counts.get(first, 0.0) + 1
    return torch.tensor(list(counts)), torch.tensor(list(counts.values()))
