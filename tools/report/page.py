"""Write report.html."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from tools.report.content import Report, read_report
from utils.errors import DataError
from utils.output_files import write_text

OPEN_CLASSES = 12  # of a gallery; those after are folded


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html: one file that needs nothing else, neither a connection nor a script.

    Its size is bounded: the pictures of the gallery take 16 MiB together at most (where there are many, the larger ones
    are shrunk; only above some two thousand pictures, of about 8 KiB each then, does the page grow with them), a
    figure some 0.1 MiB, that of ten thousand queries 1.5 MiB.

    Returns:
        The file.

    Raises:
        DataError: the folder is none of a run, a file in it is broken, or the page cannot be written.
    """
    target = folder / "report.html"
    page = (
        render(read_report(folder)).encode("utf-8", "replace").decode()
    )  # file names may hold what UTF-8 cannot
    try:
        write_text(target, page)
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror})") from error
    return target


def render(report: Report) -> str:
    """The page as text."""
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["breakable"] = breakable
    return environment.get_template("template.html").render(
        report=report, open_classes=OPEN_CLASSES
    )


def breakable(name: str) -> Markup:
    """A name, escaped, that may go on in the next line after each / and _."""
    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[/_])", name))
