"""Supports through the backbone, once for all methods: `SupportEncoder` makes their memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models import memory as memories
from models.memory import Memory, comparison_type, join, label
from models.methods import Method
from utils.precision import autocast

LOG = logging.getLogger(__name__)
NORMAL_POOL = 4  # times `memory_tokens`: tokens of a normal image that are kept to choose from


class SupportEncoder:
    """Encodes supports for methods that share a backbone.

    Args:
        methods: in eval mode on the device; the first one downsamples masks to tokens.
        device: of the methods.
        precision: `fp32`, `bf16`, `fp16` or `auto`.
        batch: views per pass.
        memory_tokens: background tokens kept; 0: all.
        support_tokens: background tokens kept of the views that are encoded at once, those of one
            support; 0: no bound.
    """

    def __init__(
        self, methods: Sequence[Method], device: torch.device, *, precision: str = "fp32",
        batch: int = 4, memory_tokens: int = 0, support_tokens: int = 0,
    ) -> None:  # fmt: skip
        self.methods, self.device = list(methods), device
        self.precision, self.batch = precision, batch
        self.memory_tokens, self.support_tokens = memory_tokens, support_tokens
        self._thinning_is_logged = False

    @torch.inference_mode()
    def encode(self, images: Tensor, masks: Tensor) -> Memory:
        """Encode views of images with a defect: (K, 3, S, S) float32 and (K, S, S) {0, 1}.

        Equal views go through the backbone once, and count as often as they were given.
        """
        times: dict[int, float] = {}
        for number, view in enumerate(zip(images, masks, strict=True)):
            equal = (n for n in times if all(map(torch.equal, view, (images[n], masks[n]))))
            first = next(equal, number)
            times[first] = times.get(first, 0.0) + 1
        parts, extras = [], []
        with autocast(self.device, self.precision):
            for rows in torch.tensor(list(times)).split(self.batch):
                features = self.methods[0].backbone(images[rows].to(self.device))
                share = self.methods[0].shares(masks[rows].unsqueeze(0).to(self.device))
                count = torch.tensor([[times[n] for n in rows.tolist()]], device=self.device)
                parts.append(label(features, share, count))
                extras.append({m.name: m.encode(features, share, count) for m in self.methods})
                parts = self._thinned(parts, 2 * self.memory_tokens, self.memory_tokens)
            parts = self._thinned(parts, self.support_tokens, self.support_tokens)
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
                views = label(features, self.methods[0].shares(marks))
                parts.append(memories.background_only(views))
                parts = self._thinned(parts, 2 * pool, pool)
        return join(parts)

    @torch.inference_mode()
    def remember(
        self, supports: Sequence[Memory], normal: Sequence[Memory] = (), *, window: int
    ) -> Memory:
        """One memory of several supports, thinned and in the type of the comparison.

        Args:
            supports: of images with a defect.
            normal: of images without; they are the whole memory where there are no others.
            window: side of the windows of queries, see `Memory`.
        """
        with autocast(self.device, self.precision):
            views = [join(list(supports) or list(normal))]
            most = self.memory_tokens
            (memory,) = self._thinned(views, most, most)
            votes, bound = [], len(supports) * self.support_tokens
            budget = -(-min(most or bound, bound or most) // max(1, len(normal)))
            for image in normal if supports else ():
                near = [replace(memory, background=image.background)]
                votes.append(self._thinned(near, budget, budget)[0].background)
            memory = replace(memories.with_foreground(memory), normal=votes, window=window)
            memory = memory.in_type(comparison_type(self.device))
        return replace(memory, extras=self._joined([support.extras for support in supports]))

    def _joined(self, extras: list[dict[str, dict[str, Tensor]]]) -> dict[str, dict[str, Tensor]]:
        """What each method keeps of several supports; nothing of a method that keeps nothing."""
        kept = {m: [e[m.name] for e in extras if e.get(m.name)] for m in self.methods}
        return {method.name: method.join(parts) for method, parts in kept.items() if parts}

    def _thinned(self, parts: list[Memory], limit: int, budget: int) -> list[Memory]:
        """The parts up to `limit` background tokens, else joined and thinned to `budget`."""
        count = sum(part.background[0].shape[1] for part in parts)
        if not budget or count <= limit:
            return parts
        if not self._thinning_is_logged:
            keys = "TEST.memory_tokens, TEST.support_tokens"
            LOG.info("at most %d background tokens are kept (%s)", budget, keys)
            self._thinning_is_logged = True
        return [memories.thin(join(parts), budget)]
