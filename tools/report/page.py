"""Write report.html, a page that shows what a run found and needs nothing else."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from tools.report.figures import TEST_FIGURES, TRAINING_FIGURES, pictures
from tools.report.read import (
    Test,
    optional,
    read_config,
    read_history,
    read_run,
    read_test,
    reading,
)
from utils.errors import DataError
from utils.metrics import BY_SIZE
from utils.output_files import write_text

GALLERY_BYTES = 12 << 20  # of the pictures of a page together; a third more as base64
SIDES = (360, 270, 200, 150, 110)  # pixels, tried in turn for a picture above its share of that
OPEN_CLASSES = 12  # of a gallery; those after are folded
# label of a fact: its key in metrics.json or run.json, and in config.yaml if those lack it
FACTS = {
    "data set": ("data_set", "DATASET.name"), "split": ("split", ""), "shot": ("shot", ""),
    "seed": ("seed", "RNG_SEED"), "backbone": ("backbone", "TRAIN.backbone"),
    "epochs": ("epochs", ""), "finished": ("finished", ""), "duration": ("duration", ""),
    "device": ("device", ""),
}  # fmt: skip


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html: one file that needs neither a connection nor a script.

    Its size is bounded: the pictures of the gallery take 16 MiB together at most (larger ones are
    shrunk; only above some two thousand pictures does the page grow with them, by 8 KiB each), a
    figure some 0.1 MiB, that of ten thousand queries 1.5 MiB.

    Returns:
        The file.

    Raises:
        DataError: the folder is none of a run, or a file in it is broken.
        OutputError: the page cannot be written.
    """
    files = sorted(folder.glob("metrics*.json"), key=lambda file: file.stem)
    history = optional(folder / "history.json", read_history)
    if not files and history is None:
        raise DataError(
            f"{folder}: no metrics.json; give the folder of a finished run of train.py or test.py"
        )
    tests = [read_test(folder, file.stem.removeprefix("metrics")) for file in files]
    config, tree = optional(folder / "config.yaml", read_config) or ("", {})
    record = tests[0].record if tests else {}
    record = record | (optional(folder / "run.json", read_run) or {})
    panels = [
        panel
        for test in tests
        for items in test.gallery.values()
        for item in items
        for panel in item["panels"]
    ]
    for panel in panels:
        panel["image"] = embed_image(panel["file"], GALLERY_BYTES // len(panels))
    page = _template().render(
        name=folder.resolve().name,
        facts=_facts(record, tree, tests),
        versions={k: v for k, v in record.items() if k not in {key for key, _ in FACTS.values()}},
        warnings=[f"{t.name}: {w}" if t.name else w for t in tests for w in t.warnings],
        tests=[
            (test, {section: pictures(draws, test) for section, draws in TEST_FIGURES.items()})
            for test in tests
        ],
        training=pictures(TRAINING_FIGURES, history) if history else [],
        config=config,
    )
    # "replace", as file names may hold what UTF-8 cannot
    write_text(folder / "report.html", page.encode("utf-8", "replace").decode())
    return folder / "report.html"


def _template() -> Any:
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"breakable": breakable, "shown": shown}
    environment.globals |= {"by_size": BY_SIZE, "open_classes": OPEN_CLASSES, "is_best": is_best}
    return environment.get_template("template.html")


def _facts(record: dict[str, str], tree: dict[str, Any], tests: list[Test]) -> dict[str, str]:
    facts = {}
    for label, (key, setting) in FACTS.items():
        value: Any = tree
        for part in setting.split("."):
            value = value.get(part, "") if isinstance(value, dict) else ""
        facts[label] = record.get(key) or str(value)
    if tests:
        repeats = f" in {tests[0].repeats} repeats" if tests[0].repeats > 1 else ""
        label = "images" if tests[0].kind == "anomaly" else "queries"
        facts[label] = f"{tests[0].queries}{repeats}"
    return {label: value for label, value in facts.items() if value}


def breakable(name: str) -> Markup:
    """A name, escaped, that may go on in the next line after each / and _."""
    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[/_])", name))


def shown(value: float | None, unit: str = "%") -> str:
    """A fraction in percent, or with another unit the value as it is; a dash for None."""
    factor = 100 if unit == "%" else 1
    return "\N{EN DASH}" if value is None else f"{factor * value:.2f}"


def is_best(value: float | None, values: Sequence[float | None], higher: bool = True) -> bool:
    """Whether a value is the best of several that differ."""
    defined = {v for v in values if v is not None}
    return len(defined) > 1 and value == (max if higher else min)(defined)


def embed_image(file: Path, most: int) -> dict[str, Any]:
    """A JPEG or PNG file as data URI, made a smaller JPEG where it has over `most` bytes.

    Returns:
        uri, width and height in pixels; the smallest has a longer side of 110 pixels.

    Raises:
        DataError: the file is no such picture.
    """
    with reading(file):
        data = file.read_bytes()
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            (width, height), mime = image.size, Image.MIME[image.format or ""]
            for side in SIDES:
                if len(data) <= most:
                    break
                small, target = image.convert("RGB"), io.BytesIO()
                small.thumbnail((side, side))
                small.save(target, "JPEG", quality=80)
                data, (width, height), mime = target.getvalue(), small.size, "image/jpeg"
    uri = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    return {"uri": uri, "width": width, "height": height}
