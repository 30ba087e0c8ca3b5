"""A page that shows what a run found: `write_report`, or `python -m tools.report RUN ...`."""

from tools.report.page import write_report

__all__ = ["write_report"]
