"""Dot products of query tokens with many support tokens, at full speed and in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

PRODUCTS = 3 << 20  # values of a product that stay in the cache
ROWS = 256  # products take multiples of so many rows at full speed


class Keys:
    """Tokens (B or 1, N, C) of unit length that queries are compared with, in their type."""

    def __init__(self, tokens: Tensor) -> None:
        self.one_set = len(tokens) == 1  # one large product runs faster than several
        self.transposed = tokens[0].T if self.one_set else tokens.transpose(-2, -1)
        self.count = tokens.shape[1]

    def compare(self, queries: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """Dot products of tokens (B, M, C) of any length with the first keys, (B, M, first), and
        the largest with the others, of which there is at least one, (B, M): float32.
        """
        rows = queries.flatten(0, 1).unsqueeze(0) if self.one_set else queries
        parts = [rows]
        if not torch.compiler.is_exporting():  # a graph has as many parts, whatever the sizes
            count = max(1, PRODUCTS // (len(rows) * self.count))
            parts = rows.split(count // ROWS * ROWS or count, dim=1)
        some, best = [], []
        for part in parts:
            values = part.to(self.transposed.dtype) @ self.transposed
            some.append(values[..., :first].float())
            best.append(values[..., first:].amax(-1).float())
        shape = queries.shape[:2]
        return torch.cat(some, 1).view(*shape, first), torch.cat(best, 1).view(shape)
