"""Dot products of query tokens with many support tokens, at full speed and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

PRODUCTS = 3 << 20  # values of a product that stay in the cache
ROWS = 256  # products take multiples of so many rows at full speed
ROWS_OF_TABLE = 8  # in which the largest products are looked for


class Keys:
    """Tokens (B or 1, N, C) of unit length that queries are compared with, in their type;
    `repeated` (B, N) bool marks what is there twice, None: nothing is."""

    def __init__(self, tokens: Tensor, repeated: Tensor | None = None) -> None:
        self.tokens, self.repeated = tokens, repeated

    def products(self, queries: Tensor) -> Tensor:
        """Dot products of tokens (B, M, C) of any length with all keys: (B, M, N) float32."""
        parts = [products.float() for products in self._products(queries)]
        return torch.cat(parts, 1).view(*queries.shape[:2], -1)

    def largest(self, queries: Tensor, count: int) -> Tensor:
        """The largest dot products of tokens (B, M, C) of any length, in descending order, -inf
        where there are fewer keys that are not repeated: (B, M, count) float32."""
        largest = []
        for products in self._products(queries):
            if count == 1:
                largest.append(products.amax(-1, keepdim=True).float())
                continue
            if self.repeated is not None:
                products = products.masked_fill(self.repeated.unsqueeze(1), -torch.inf)
            largest.append(_largest(products, min(count, products.shape[-1])).float())
        joined = torch.cat(largest, 1).view(*queries.shape[:2], -1)
        return F.pad(joined, (0, count - joined.shape[-1]), value=-torch.inf)

    def _products(self, queries: Tensor) -> Iterator[Tensor]:
        """Dot products with all keys, some rows at a time; with one set of keys the rows of all
        queries together, as one large product runs faster than several."""
        one_set = len(self.tokens) == 1
        rows = queries.flatten(0, 1).unsqueeze(0) if one_set else queries
        keys = self.tokens[0].T if one_set else self.tokens.transpose(-2, -1)
        parts = [rows]
        if not torch.compiler.is_exporting():  # a graph has as many parts, whatever the sizes
            count = max(1, PRODUCTS // (len(rows) * keys.shape[-1]))
            parts = rows.split(count // ROWS * ROWS or count, dim=1)
        for part in parts:
            yield part.to(keys.dtype) @ keys


def mean_of(largest: Tensor) -> Tensor:
    """Mean of dot products (..., count) as of `Keys.largest`, of those that there are: (...)."""
    counts = largest.isfinite()
    return largest.where(counts, 0).sum(-1) / counts.sum(-1)


def _largest(values: Tensor, count: int) -> Tensor:
    """The `count` largest of (..., N), in descending order. With the values laid out in rows of a
    table, they stand in those columns whose largest values are the `count` largest, so that few
    have to be sorted."""
    width = values.shape[-1] // ROWS_OF_TABLE
    if width > count and not torch.compiler.is_exporting():
        split = width * ROWS_OF_TABLE
        table = values[..., :split].unflatten(-1, (ROWS_OF_TABLE, width))
        columns = table.amax(-2, keepdim=True).topk(count, dim=-1).indices
        theirs = table.gather(-1, columns.expand(*table.shape[:-1], count)).flatten(-2)
        values = torch.cat([theirs, values[..., split:]], dim=-1)
    return values.topk(count, dim=-1).values
