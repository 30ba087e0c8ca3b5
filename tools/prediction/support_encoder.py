"""Supports through the backbone, once: what methods keep of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.views import prepare_image
from models.sofs import SOFS, SupportMemory, SupportSummary, join_summaries
from models.support_tokens import LabelledTokens, background_of, join, label, ready, thin
from utils.precision import autocast

LOG = logging.getLogger(__name__)
MIRRORS = ((), (-1,), (-2,), (-2, -1))  # axes turned round
NORMAL_POOL = 4  # times `memory_tokens`: tokens of normal images that are kept to choose from


@dataclass(frozen=True)
class EncodedSupport:
    """Support views that are encoded: their tokens, and the head's summary (None: no head, or nothing is marked)."""

    tokens: LabelledTokens
    summary: SupportSummary | None


class SupportEncoder:
    """Encodes supports for methods that share a backbone.

    Args:
        methods: those that will be asked, in eval mode on the device.
        device: where they are.
        precision: `fp32`, `bf16`, `fp16` or `auto`.
        batch: views per pass.
        memory_tokens: background tokens kept; 0: all.
        mirrored: keep the views' mirror images, too.
    """

    def __init__(
        self,
        methods: Sequence[nn.Module],
        device: torch.device,
        *,
        precision: str = "fp32",
        batch: int = 4,
        memory_tokens: int = 0,
        mirrored: bool = False,
    ) -> None:
        self.backbone, self.shares = methods[0].backbone, methods[0].shares
        self.device, self.precision, self.batch, self.memory_tokens = (
            device,
            precision,
            batch,
            memory_tokens,
        )
        self.mirrors = MIRRORS if mirrored else MIRRORS[:1]
        self.needs_joint = any(method.needs_joint for method in methods)
        self.summarise = next((m.summarise for m in methods if isinstance(m, SOFS)), None)
        self.told = False

    @torch.inference_mode()
    def encode(self, supports: Tensor, masks: Tensor) -> EncodedSupport:
        """Views of images with a defect, equal ones but once: (K, 3, S, S) float32 and (K, S, S) {0, 1}."""
        kept, counts = _distinct(supports, masks)
        summaries: list[SupportSummary] = []
        tokens: list[LabelledTokens] = []
        with autocast(self.device, self.precision):
            for views, number in zip(kept.split(self.batch), counts.split(self.batch), strict=True):
                seen = self._seen(
                    supports[views].to(self.device), masks[views].unsqueeze(0).to(self.device)
                )
                number = number.unsqueeze(0).to(self.device)
                tokens.append(label(*_one_below_the_other(seen), number))
                if self.summarise is not None:
                    summaries.append(self.summarise(*seen[0], number))
                tokens = self._thinned(tokens, 2 * self.memory_tokens, self.memory_tokens)
        return EncodedSupport(join(tokens), join_summaries(summaries) if summaries else None)

    @torch.inference_mode()
    def encode_normal(self, views: Iterable[np.ndarray], size: int) -> LabelledTokens:
        """An image without defect.

        Args:
            views: that cover it, (h, w, 3) uint8 RGB.
            size: side at which the network sees them, pixels.

        Returns:
            Its tokens; of very many a coreset, from which those like the defect are chosen once it is known.
        """
        tokens: list[LabelledTokens] = []
        pool = NORMAL_POOL * self.memory_tokens
        with autocast(self.device, self.precision):
            for batch in _batches(views, self.batch):
                images = torch.stack([prepare_image(view, size) for view in batch]).to(self.device)
                marks = torch.zeros(
                    1, len(images), size, size, dtype=torch.uint8, device=self.device
                )
                tokens.append(
                    background_of(label(*_one_below_the_other(self._seen(images, marks))))
                )
                tokens = self._thinned(tokens, 2 * pool, pool)
        return join(tokens)

    @torch.inference_mode()
    def remember(
        self,
        parts: Sequence[EncodedSupport],
        normal: Sequence[LabelledTokens] = (),
        *,
        windowed: bool = True,
    ) -> SupportMemory:
        """One memory of several supports.

        Args:
            parts: images with a defect.
            normal: images without; where there are no others, they are all that is known.
            windowed: the queries are seen in windows at native resolution; False: each resized whole.
        """
        summaries = [part.summary for part in parts if part.summary is not None]
        with autocast(self.device, self.precision):
            first = [part.tokens for part in parts] or list(normal)
            (tokens,) = self._thinned([join(first)], self.memory_tokens, self.memory_tokens)
            further = (
                [self._share_of(tokens, image, len(normal)) for image in normal] if parts else []
            )
            known = ready(tokens, further, joint=self.needs_joint)
        return SupportMemory(known, join_summaries(summaries) if summaries else None, windowed)

    def _share_of(
        self, tokens: LabelledTokens, image: LabelledTokens, count: int
    ) -> LabelledTokens:
        """What is kept of one of `count` normal images, beside the tokens of supports with a defect."""
        budget = max(1, self.memory_tokens // count)
        (kept,) = self._thinned([replace(tokens, background=image.background)], budget, budget)
        return kept

    def _seen(self, images: Tensor, marks: Tensor) -> list[tuple[list[Tensor], Tensor]]:
        """Features and shares of views and of their mirror images."""
        return [(self.backbone(images.flip(m)), self.shares(marks.flip(m))) for m in self.mirrors]

    def _thinned(self, tokens: list[LabelledTokens], limit: int, kept: int) -> list[LabelledTokens]:
        """The tokens as they are up to `limit` background tokens, else joined and thinned to `kept`."""
        if not self.memory_tokens or sum(t.background[0].shape[1] for t in tokens) <= limit:
            return tokens
        if not self.told:
            LOG.info(
                "of the supports' background %d tokens are kept (TEST.memory_tokens)",
                self.memory_tokens,
            )
            self.told = True
        return [thin(join(tokens), kept)]


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _one_below_the_other(seen: list[tuple[list[Tensor], Tensor]]) -> tuple[list[Tensor], Tensor]:
    """Features and shares of the same views, joined to taller maps."""
    features, shares = zip(*seen, strict=True)
    return [torch.cat(layer, dim=-2) for layer in zip(*features, strict=True)], torch.cat(
        shares, dim=-2
    )


def _distinct(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (K',) of the views without repetitions, and how often each was given, (K',) float32."""
    kept: list[int] = []
    counts: list[float] = []
    for number in range(len(images)):
        same = (
            i
            for i, k in enumerate(kept)
            if torch.equal(masks[k], masks[number]) and torch.equal(images[k], images[number])
        )
        position = next(same, None)
        if position is None:
            kept.append(number)
            counts.append(1.0)
        else:
            counts[position] += 1
    return torch.tensor(kept), torch.tensor(counts)
