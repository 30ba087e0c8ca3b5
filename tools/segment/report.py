"""A page to look at what a command found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tools.defects import COLUMNS
from tools.report.page import GALLERY_BYTES, breakable, embed_image
from tools.segment.journal import CSV, Journal
from utils.output_files import write_text

SHOWN = 200  # images


def write_page(
    journal: Journal, files: Sequence[str], about: str, faults: Sequence[str], config: str
) -> None:
    """Write report.html, one file that opens offline: the images with defects, the highest scores
    first, with their overlays and rows of the table.

    Raises:
        OutputError: it cannot be written.
    """
    greatest = {}
    for file in files:
        if rows := journal.entry(file)["rows"]:
            greatest[file] = max(row[COLUMNS.index("greatest_score")] for row in rows)
    images, shown = [], sorted(greatest, key=lambda file: -greatest[file])[:SHOWN]
    for entry in map(journal.entry, shown):
        (overlay,) = (name for name in entry["answers"] if name.startswith("overlays/"))
        picture = embed_image(journal.out / overlay, GALLERY_BYTES // len(shown))
        images.append({"file": entry["file"], "rows": entry["rows"], "picture": picture})
    environment = Environment(
        autoescape=True, loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
        lstrip_blocks=True, trim_blocks=True,
    )  # fmt: skip
    environment.filters["breakable"] = breakable
    page = environment.get_template("report.html").render(
        about=about, columns=COLUMNS, config=config, faults=faults, images=images, table=CSV,
        left_out=len(greatest) - len(shown), name=journal.out.resolve().name,
    )  # fmt: skip
    # "replace", as file names may hold what UTF-8 cannot
    write_text(journal.out / "report.html", page.encode("utf-8", "replace").decode())
