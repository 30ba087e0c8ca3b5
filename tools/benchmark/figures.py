"""What a benchmark reports: figures, each with the bound it must keep."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

AT_MOST, AT_LEAST, EXACTLY = "at most", "at least", "exactly"


@dataclass(frozen=True)
class Figure:
    """One measured value.

    Attributes:
        section: part of the benchmark.
        name: what was measured.
        value: in `unit`.
        unit: empty for a ratio.
        bound: what the value is held against; None: only reported.
        kind: how, one of `at most`, `at least`, `exactly`.
    """

    section: str
    name: str
    value: float
    unit: str = ""
    bound: float | None = None
    kind: str = AT_MOST

    @property
    def kept(self) -> bool:
        """Whether the value keeps its bound."""
        if self.bound is None:
            return True
        return {AT_MOST: self.value <= self.bound, AT_LEAST: self.value >= self.bound}.get(
            self.kind, self.value == self.bound
        )

    def line(self) -> str:
        """The figure as one line of text."""
        value = f"{self.value:,.4g}{' ' + self.unit if self.unit else ''}"
        bound = (
            ""
            if self.bound is None
            else f"{self.kind} {self.bound:g}: {'kept' if self.kept else 'MISSED'}"
        )
        return f"{self.section:<10} {self.name:<62} {value:>16}  {bound}".rstrip()

    def json(self) -> dict[str, Any]:
        """The figure as plain values."""
        return asdict(self) | {"kept": self.kept}
