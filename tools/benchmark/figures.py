"""What a benchmark reports: figures, each with the bound that it must keep."""

from __future__ import annotations

from dataclasses import dataclass

AT_MOST, AT_LEAST, EXACTLY = "at most", "at least", "exactly"


@dataclass(frozen=True)
class Figure:
    """One measured value.

    Attributes:
        section: part of the benchmark.
        name: what was measured.
        value: in `unit`.
        unit: empty for a ratio or a count.
        bound: what the value is held against; None: it is only reported.
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
        holds = {AT_MOST: self.value <= self.bound, AT_LEAST: self.value >= self.bound}
        return holds.get(self.kind, self.value == self.bound)

    def line(self) -> str:
        """The figure as one line of text."""
        value, bound = f"{self.value:,.4g} {self.unit}".rstrip(), ""
        if self.bound is not None:
            bound = f"{self.kind} {self.bound:g}: {'kept' if self.kept else 'MISSED'}"
        return f"{self.section:<10} {self.name:<62} {value:>16}  {bound}".rstrip()
