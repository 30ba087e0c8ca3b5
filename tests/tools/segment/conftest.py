from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers import draw_defect, surface
from tests.tools.open_domain_data import save
from tools.segment.__main__ import main

SIZE = (96, 128)
REPO = Path(__file__).parents[3]
CONFIG = ["--cfg", str(REPO / "method_config" / "Demo" / "SOFS.yaml"), "--opts"]
CONFIG += ["TEST.method", "prior", "DATASET.image_size", "64", "DATASET.mask_size", "64"]
CONFIG += ["DATASET.crop_size", "64"]


def drawn(kind="spot", seed=0, size=SIZE):
    """A surface with a defect, and its mask {0, 255}."""
    rng = np.random.default_rng(seed)
    image, mask = surface(size, rng), np.zeros(size, np.uint8)
    top, bottom, left, right = draw_defect(image, kind, rng)
    mask[top:bottom, left:right] = 255
    return image, mask


@pytest.fixture
def data(tmp_path):
    """A support of a spot and one of a line, and queries in a folder and one below it."""
    for number, kind in enumerate(("spot", "line")):
        image, mask = drawn(kind, number)
        save(image, tmp_path / "support" / f"{kind}.png")
        save(mask, tmp_path / "support" / f"{kind}_mask.png")
    for number, name in enumerate(("a.png", "deep/b.bmp", "c.png")):
        save(drawn(seed=10 + number)[0], tmp_path / "queries" / name)
    return tmp_path


@pytest.fixture
def arguments(data):
    """Arguments of the command with the spot's support on the queries, or others."""

    def of(*words, queries=("queries",), out="out", support=None):
        support = support or [str(data / "support" / n) for n in ("spot.png", "spot_mask.png")]
        paths = [str(data / query) for query in queries]
        taught = [] if "--memory" in words else ["--support", *support]
        return [*taught, *paths, "--out", str(data / out), *map(str, words), *CONFIG]

    return of


@pytest.fixture
def segment(arguments):
    """Run the command with such arguments; returns the exit code."""
    return lambda *words, **places: main(arguments(*words, **places))


def contents(folder, *, journal=False):
    """Bytes of the files below a folder, by relative path, without the journal."""
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: value for name, value in named.items() if journal or name[0] != "."}
