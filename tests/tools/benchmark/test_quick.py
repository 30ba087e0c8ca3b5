from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.benchmark.__main__ import hold
from tools.benchmark.figures import AT_LEAST, AT_MOST, EXACTLY, Figure

REPO = Path(__file__).parents[3]


def run(*arguments):
    command = [sys.executable, "-m", "tools.benchmark", *arguments]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True)


def test_quick_keeps_every_bound(tmp_path):
    done = run("--quick", "--json", str(tmp_path / "figures.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert {f["section"] for f in figures} == {"inference", "growth", "training", "index"}
    assert len(done.stdout.splitlines()) == len(figures) + 1, "a line each, and the sum"
    assert sum(f["kind"] == EXACTLY and f["bound"] is not None for f in figures) >= 5
    assert all(f["kept"] for f in figures) and "MISSED" not in done.stdout


def test_a_missed_bound_exits_with_one_when_all_is_written(tmp_path, capsys):
    def sections(*values):
        return [
            lambda value=value: [Figure("index", "files", value, bound=3, kind=EXACTLY)]
            for value in values
        ]

    with pytest.raises(SystemExit) as ended:
        hold(sections(3, 4, 3), tmp_path / "new" / "f.json")
    assert ended.value.code == 1
    assert [
        f["kept"] for f in json.loads((tmp_path / "new" / "f.json").read_text())["figures"]
    ] == [True, False, True]
    lines = capsys.readouterr().out.splitlines()
    assert ["MISSED" in line for line in lines] == [
        False,
        True,
        False,
        False,
    ] and "1 bounds missed" in lines[3]
    hold(sections(3), tmp_path / "f.json")


def test_an_unknown_section_is_named():
    done = run("--only", "inference", "speed")
    assert (
        done.returncode == 2 and "no section speed; there are inference, published," in done.stderr
    )


@pytest.mark.parametrize(("kind", "kept"), [(AT_MOST, [2, 3]), (AT_LEAST, [3, 4]), (EXACTLY, [3])])
def test_figures_are_held_against_their_bounds(kind, kept):
    values = [2, 3, 4]
    assert [v for v in values if Figure("a", "b", v, bound=3, kind=kind).kept] == kept
    assert all(Figure("a", "b", v).kept for v in values)
    assert ("MISSED" in Figure("a", "b", 4, "s", 3, AT_MOST).line()) and "kept" in Figure(
        "a", "b", 3, "s", 3
    ).line()
