"""Dot products of query tokens with many known tokens, at the full speed of the machine and in bounded memory.

Shapes: B queries or sets of keys, M query tokens, N keys, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

CHUNK = 3 << 20
ROWS = 256
CODES = 127
INT8_CHANNELS = (
    256  # with fewer the largest value of a token is larger, and so is what rounding loses
)
TINY = 1e-30


class Keys(Protocol):
    """Tokens that queries are compared with."""

    def compare(self, queries: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """Dot products with the first keys, and the largest with the others.

        Args:
            queries: (B, M, C) tokens.
            first: how many keys are the first; at least one other must remain.

        Returns:
            (B, M, first) and (B, M), float32.
        """


class PlainKeys:
    """Keys in the type of the comparison.

    Args:
        tokens: (B or 1, N, C).
    """

    def __init__(self, tokens: Tensor) -> None:
        self.one_set = len(tokens) == 1  # one large product runs faster than several
        self.transposed = tokens[0].T if self.one_set else tokens.transpose(-2, -1)

    def compare(self, queries: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """See `Keys.compare`."""
        rows = (queries.flatten(0, 1).unsqueeze(0) if self.one_set else queries).to(
            self.transposed.dtype
        )
        own, best = [], []
        for part in _pieces(rows, self.transposed.shape[-1]):
            values = part @ self.transposed
            own.append(values[..., :first].float())
            best.append(values[..., first:].amax(-1).float())
        return torch.cat(own, 1).view(*queries.shape[:2], first), torch.cat(best, 1).view(
            queries.shape[:2]
        )


class Int8Keys:
    """One set of keys in 8 bits, for CPUs that multiply those twice as fast as bf16.

    Queries are rounded to 8 bits as well, each by its own largest value, from whatever type by way of float32. As no
    value of a unit vector is over 1, each rounding moves a cosine by a step of 1 / 127 over the root of 12, 0.0023, at
    most in the root mean square, which is what bf16 loses at a cosine of 1; where the values are spread over the
    channels it is a tenth of that.

    Args:
        tokens: (1, N, C) of unit length.
    """

    def __init__(self, tokens: Tensor) -> None:
        flat = tokens[0].float().contiguous()  # the product takes no notice of strides
        step = flat.abs().max().clamp(min=TINY) / CODES
        self.packed = torch.ops.onednn.qlinear_prepack((flat / step).round().to(torch.int8), None)
        self.scales = step.repeat(len(flat))
        self.zeros = torch.zeros(len(flat), dtype=torch.int64)

    def compare(self, queries: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """See `Keys.compare`."""
        own, best = [], []
        for part in _pieces(queries.flatten(0, 1), len(self.zeros)):
            rows = part.float()  # a code has more digits than bf16
            step = (
                torch.maximum(rows.amax(-1, keepdim=True), -rows.amin(-1, keepdim=True)).clamp(
                    min=TINY
                )
                / CODES
            )
            values = self._product((rows / step).add_(CODES + 1.5).to(torch.uint8))
            own.append(values[:, :first] * step)
            best.append(values[:, first:].amax(-1) * step[:, 0])
        return torch.cat(own).view(*queries.shape[:2], first), torch.cat(best).view(
            queries.shape[:2]
        )

    def _product(self, codes: Tensor) -> Tensor:
        """float32 (R, N) of uint8 (R, C) codes around CODES + 1, accumulated without rounding."""
        return torch.ops.onednn.qlinear_pointwise(
            codes,
            1.0,
            CODES + 1,
            self.packed,
            self.scales,
            self.zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )


def as_keys(tokens: Tensor) -> Keys:
    """(B or 1, N, C) unit tokens made ready for products: in 8 bits where they are of half precision and many channels,
    serve all queries, and the CPU has instructions for it."""
    half = tokens.dtype in (torch.bfloat16, torch.float16) and tokens.device.type == "cpu"
    if half and len(tokens) == 1 and tokens.shape[-1] >= INT8_CHANNELS and has_int8():
        return Int8Keys(tokens)
    return PlainKeys(tokens)


def has_int8() -> bool:
    """Whether the CPU multiplies 8-bit integers natively, and torch brings the product."""
    return bool(torch.cpu.get_capabilities().get("avx512_vnni")) and hasattr(
        torch.ops.onednn, "qlinear_pointwise"
    )


def best_similarity(queries: Tensor, keys: Keys) -> Tensor:
    """Largest dot product of each (B, M, C) query token with any key: (B, M) float32."""
    return keys.compare(queries)[1]


def _pieces(rows: Tensor, keys: int) -> Sequence[Tensor]:
    """(..., M, C) rows in pieces so small that their products with all keys stay in the cache."""
    count = max(1, CHUNK // (rows[..., 0, 0].numel() * keys))
    return rows.split(
        count // ROWS * ROWS or count, dim=-2
    )  # products take multiples of ROWS at full speed
