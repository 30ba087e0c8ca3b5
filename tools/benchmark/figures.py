"""What all sections of the benchmark share: figures with bounds, a clock, counted passes."""

from __future__ import annotations

import operator
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

AT_MOST, AT_LEAST, EXACTLY = "at most", "at least", "exactly"
HOLDS = {AT_MOST: operator.le, AT_LEAST: operator.ge, EXACTLY: operator.eq}


@dataclass(frozen=True)
class Figure:
    """One measured value; `unit` is empty for a ratio or a count. Without a bound it is only
    reported; `kind` says how a bound holds."""

    section: str
    name: str
    value: float
    unit: str = ""
    bound: float | None = None
    kind: str = AT_MOST

    @property
    def kept(self) -> bool:
        """Whether the value keeps its bound."""
        return self.bound is None or HOLDS[self.kind](self.value, self.bound)

    def line(self) -> str:
        """The figure as one line of text."""
        value, bound = f"{self.value:,.4g} {self.unit}".rstrip(), ""
        if self.bound is not None:
            bound = f"{self.kind} {self.bound:g}: {'kept' if self.kept else 'MISSED'}"
        return f"{self.section:<10} {self.name:<62} {value:>16}  {bound}".rstrip()


def clock(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def counted_passes(backbone: nn.Module) -> Iterator[list[int]]:
    """Images of each pass through a backbone, in order."""
    sizes: list[int] = []
    hook = backbone.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    try:
        yield sizes
    finally:
        hook.remove()
