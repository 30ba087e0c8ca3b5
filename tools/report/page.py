"""Write report.html, a page that shows what a run found and needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape
from PIL import Image

from method_config.values import leaves
from tools.report.figures import TEST_FIGURES, TRAINING_FIGURES, pictures
from tools.report.read import panels_of, parsed, read_test
from utils.errors import DataError
from utils.metrics import BY_SIZE, SECONDS
from utils.output_files import write_text
from utils.tables import reading

GALLERY_BYTES = 12 << 20  # of the pictures of a page together; a third more as base64
SIDES = (360, 270, 200, 150, 110)  # pixels, tried in turn for a picture above its share of that
OPEN_CLASSES = 12  # of a gallery; those after are folded
# keys of metrics.json, run.json and timing.json at the head of the page, and where config.yaml has
# the like
FACTS = ("data_set", "split", "shot", "seed", "backbone", "backbone_weights",
         "epochs", "finished", "duration", "device", SECONDS.name)  # fmt: skip
SETTINGS = {"data_set": "DATASET.name", "seed": "RNG_SEED", "backbone": "TRAIN.backbone"}


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html, one file that needs neither a connection nor a script, and
    return its path.

    Its pictures take 16 MiB together at most (beyond some two thousand, 8 KiB each), a figure some
    0.1 MiB, that of ten thousand queries 1.5 MiB.

    Raises:
        DataError: the folder is none of a run, or a file in it is broken.
        OutputError: the page cannot be written.
    """
    files = sorted(folder.glob("metrics*.json"), key=lambda file: file.stem)
    history = parsed(folder / "history.json", json.loads)
    if not files and history is None:
        raise DataError(
            f"{folder}: no metrics.json; give the folder of a finished run of train.py or test.py"
        )
    tests = [read_test(folder, file.stem.removeprefix("metrics")) for file in files]
    config, settings = parsed(
        folder / "config.yaml", lambda text: (text, dict(leaves(yaml.safe_load(text)))), ("", {})
    )
    record = {key: str(settings[name]) for key, name in SETTINGS.items() if name in settings}
    record |= (tests[0].record if tests else {}) | parsed(folder / "run.json", _read_run, {})
    facts = {key.replace("_", " "): record[key] for key in FACTS if record.get(key)}
    if tests:
        repeats = f" in {tests[0].repeats} repeats" if tests[0].repeats > 1 else ""
        label = "images" if tests[0].kind == "anomaly" else "queries"
        facts[label] = f"{sum(row.queries or 0 for row in tests[0].rows)}{repeats}"
    panels = [panel for test in tests for panel in panels_of(test)]
    for panel in panels:
        panel["image"] = embed_image(panel["file"], GALLERY_BYTES // len(panels))
    page = _template().render(
        name=folder.resolve().name,
        facts=facts,
        versions={key: value for key, value in record.items() if key not in FACTS},
        warnings=[f"{t.name}: {w}" if t.name else w for t in tests for w in t.warnings],
        tests=[(t, {part: pictures(draws, t) for part, draws in TEST_FIGURES.items()})
               for t in tests],
        training=pictures(TRAINING_FIGURES, history) if history else [],
        config=config,
    )  # fmt: skip
    # "replace", as file names may hold what UTF-8 cannot
    write_text(folder / "report.html", page.encode("utf-8", "replace").decode())
    return folder / "report.html"


def _template() -> Template:
    environment = Environment(
        autoescape=True, loader=FileSystemLoader(Path(__file__).parent), lstrip_blocks=True,
        trim_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"breakable": breakable, "shown": shown}
    environment.globals |= {"by_size": BY_SIZE, "open_classes": OPEN_CLASSES, "is_best": is_best}
    return environment.get_template("template.html")


def _read_run(text: str) -> dict[str, str]:
    """run.json: when, how long and on what a run ran, as text."""
    run = json.loads(text)
    minutes, seconds = divmod(round(run["seconds"]), 60)
    processes = f", {run['processes']} processes" if run["processes"] > 1 else ""
    return {
        "finished": f"{datetime.fromisoformat(run['finished']):%Y-%m-%d %H:%M %Z}".strip(),
        "duration": f"{minutes} min {seconds} s" if minutes else f"{seconds} s",
        "device": f"{run['device']}{processes}",
    }


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
    """A JPEG or PNG file as data `uri` with its `width` and `height`, made a smaller JPEG, with a
    longer side of 110 pixels at the least, where it has over `most` bytes."""
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
