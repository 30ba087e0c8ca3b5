"""The pixel probe: a small network, fitted to the pixels of the supports when a defect is taught,
that corrects the log-odds of pixels. How wide a defect is marked, and which of its pixels, is the
habit of whoever marks it, which only further examples of the same defect tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

MOST = 2.0  # log-odds of the correction
WIDTH, GAIN = 16, 0.3  # hidden units; factor of the output, so that it grows slowly from 0
STEPS, RATE, DECAY = 60, 1e-2, 1e-2
SEED = 54
OUTLIER, DEVIATION_EPS = 4.0, 1e-3  # standard deviations at which features are cut off
IOU_EPS = 0.05  # of the marked area, added to both sides
ROWS = 1 << 18  # pixels answered at once


class Example(NamedTuple):
    """Pixels of an image in which the defect is known."""

    features: np.ndarray  # (N, C) float32
    logits: np.ndarray  # (N,) float32, refined
    marked: np.ndarray  # (N,) float32, share
    weight: float  # of each; the marked pixels of the image weigh 1 together


class PixelProbe(nn.Module):
    """Standardised features of a pixel to a correction of its log-odds, between -MOST and MOST.

    Args:
        mean, deviation: (C,) float32 of the features.
    """

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.hidden, self.out = nn.Linear(len(mean), WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C) to (N,) float32."""
        standard = ((features - self.mean) / self.deviation).clamp(-OUTLIER, OUTLIER)
        answer = self.out(self.hidden(standard).relu()).squeeze(-1)
        return MOST * (GAIN * answer / MOST).tanh()

    @torch.inference_mode()
    def correct(self, features: np.ndarray) -> np.ndarray:
        """`forward` of arrays."""
        parts = torch.from_numpy(features).split(ROWS)
        return torch.cat([self(part) for part in parts]).numpy()

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> PixelProbe:
        """The probe whose `state_dict` this is.

        Raises:
            RuntimeError, KeyError: a tensor is missing or has another shape.
        """
        probe = cls(state["mean"], state["deviation"])
        probe.load_state_dict(state)
        return probe.eval().requires_grad_(False)


@torch.inference_mode(False)
@torch.enable_grad()
def fit_pixel_probe(examples: Sequence[Example]) -> PixelProbe | None:
    """Fit a probe to images; None where there is nothing to tell apart. Equal input, equal probe.

    The loss is 1 - the soft IoU of an image, mean over images.
    """
    if not examples:
        return None
    columns = (np.concatenate(column) for column in zip(*(e[:3] for e in examples), strict=True))
    features, logits, marked = (torch.from_numpy(column).float() for column in columns)
    counts = torch.tensor([len(e.logits) for e in examples])
    image = torch.arange(len(examples)).repeat_interleave(counts)
    weight = torch.tensor([e.weight for e in examples])[image]
    if marked.min() == marked.max():
        return None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)  # that of the CPU alone
        probe = PixelProbe(features.mean(0), features.std(0) + DEVIATION_EPS)
    nn.init.zeros_(probe.out.weight)
    nn.init.zeros_(probe.out.bias)
    optimizer = torch.optim.AdamW(probe.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, RATE / 100)
    none = torch.zeros(len(examples))
    for _ in range(STEPS):
        found = (logits + probe(features)).sigmoid()
        both = none.index_add(0, image, found * marked * weight)
        either = none.index_add(0, image, (found + marked - found * marked) * weight)
        loss = 1 - ((both + IOU_EPS) / (either + IOU_EPS)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return probe.eval().requires_grad_(False)
