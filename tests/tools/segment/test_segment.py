from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import tools.segment.journal
from datasets.annotations import read_annotation
from tests.helpers import largest_file
from tests.tools.open_domain_data import save, written
from tests.tools.segment.conftest import CONFIG, REPO, SIZE, contents, drawn
from tools.segment.__main__ import main, parse, take_supports
from utils.errors import ConfigError

NAMES = {"a.png", "deep/b.bmp", "c.png"}
TABLES = ("defects.csv", "defects.json")


def rows(folder):
    with (folder / "defects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_masks_table_and_coco_file_say_the_same(data, segment):
    """By an independent count of the masks; folders of the queries are kept."""
    assert segment("--scores", "--report") == 1
    out, counted = data / "out", 0
    assert {p.name for p in out.iterdir() if p.suffix} == {*TABLES, "report.html"}
    table = rows(out)
    assert [row["file"] for row in table] == sorted(row["file"] for row in table)
    for name in sorted(NAMES):
        stem = name.rpartition(".")[0]
        mask, score = written(out, "masks", stem), written(out, "scores", stem) / 65535
        assert (out / "overlays" / f"{stem}.png").is_file()
        (read,) = read_annotation(out / "defects.json", data / "queries" / name, SIZE).values()
        np.testing.assert_array_equal(read * 255, mask)
        count, labels = cv2.connectedComponents(mask, connectivity=8)
        own = [row for row in table if row["file"] == name]
        assert len(own) == count - 1 and [row["number"] for row in own] == [
            str(n) for n in range(1, count)
        ]
        counted += len(own)
        for row in own:
            x, y, width, height = (int(row[k]) for k in ("x", "y", "width", "height"))
            boxes = {n: cv2.boundingRect((labels == n).astype(np.uint8)) for n in range(1, count)}
            marked = labels == next(n for n in boxes if boxes[n] == (x, y, width, height))
            assert int(row["area_pixels"]) == marked.sum() and row["type"] == "defect"
            assert float(row["area_percent"]) == pytest.approx(100 * marked.mean(), rel=1e-5)
            assert float(row["greatest_score"]) == pytest.approx(score[marked].max(), abs=1e-4)
            assert float(row["mean_score"]) == pytest.approx(score[marked].mean(), abs=1e-4)
            down, right = np.nonzero(marked)
            assert float(row["centre_x"]) == pytest.approx(right.mean(), rel=1e-4)
            assert float(row["centre_y"]) == pytest.approx(down.mean(), rel=1e-4)
    assert counted == len(table) > 0
    page = (out / "report.html").read_text()
    assert page.count("<article>") == len({row["file"] for row in table}) and "deep/" in page


def test_what_is_left_out_is_left_out_everywhere_and_the_exit_code_tells(data, segment):
    assert segment() == 1
    table = rows(data / "out")
    most = max(float(row["greatest_score"]) for row in table)
    assert segment("--min-score", most) == 1
    assert len(rows(data / "out")) == 1 < len(table)
    assert segment("--min-area", 10**6) == 0
    assert rows(data / "out") == [] and not written(data / "out", "masks", "a").any()
    assert json.loads((data / "out" / "defects.json").read_text())["annotations"] == []


def test_the_same_command_does_only_what_is_left(data, segment):
    """What is changed, missing, of other settings or cut off is done anew; all ends as in an empty
    folder."""
    out, last = data / "out", data / "queries" / "deep" / "b.bmp"
    segment()
    fresh, done = contents(out), {p: p.stat().st_mtime_ns for p in out.glob("masks/**/*.png")}

    def redone():
        now = {path: path.stat().st_mtime_ns for path in done}
        names = {path.stem for path in done if now[path] != done[path]}
        done.update(now)
        return names

    journal = out / ".segment" / "done.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])  # of b, as it was killed
    (out / "masks" / "a.png").unlink()
    os.utime(data / "queries" / "c.png", (1, 1))  # the content is the same
    assert segment() == 1 and redone() == {"a", "b"} and contents(out) == fresh
    content = last.read_bytes()
    save(drawn(seed=77)[0], last)
    assert segment() == 1 and redone() == {"b"} and contents(out) != fresh
    last.write_bytes(content)
    assert segment("--min-area", 2) == 1 and redone() == {"a", "b", "c"}
    mask = Image.open(data / "support" / "spot_mask.png")
    mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(data / "support" / "spot_mask.png")
    segment("--min-area", 2)
    assert redone() == {"a", "b", "c"}


def test_a_part_of_the_queries_has_a_table_of_its_own(data, segment, capsys):
    segment()
    table = rows(data / "out")
    assert segment(queries=["queries/c.png"]) == 1
    assert rows(data / "out") == [row for row in table if row["file"] == "c.png"]
    assert "answers to 2 other images, such as a.png" in capsys.readouterr().out
    segment()
    assert rows(data / "out") == table


def test_types_have_names_and_come_back_from_memory(data, segment):
    """Named by the command or by labels; thresholds that are given win over those that are kept."""
    support = data / "support"
    spot, line = ([support / f"{n}.png", support / f"{n}_mask.png"] for n in ("spot", "line"))
    named = [f"{name}={image},{mask}" for name, (image, mask) in {"b": spot, "a": line}.items()]
    words = ["--support", named[1], "--normal", support / "line.png"]
    assert segment(*words, "--save-memory", data / "kept", support=[named[0]]) == 1
    first = contents(data / "out")
    assert {Path(path).parts[1] for path in first if path.startswith("masks")} == {"a", "b"}
    assert {row["type"] for row in rows(data / "out")} <= {"a", "b"}
    categories = json.loads(first["defects.json"])["categories"]
    assert [category["name"] for category in categories] == ["a", "b"]
    assert sorted(path.name for path in (data / "kept").iterdir()) == [
        "a.safetensors", "b.safetensors"]  # fmt: skip
    assert segment("--memory", data / "kept", out="again") == 1
    assert contents(data / "again") == first
    segment("--threshold", "auto", "--save-memory", data / "auto", support=[named[0]])
    assert segment("--memory", data / "auto", "--threshold", "1", out="no") == 0
    assert [path.name for path in (data / "no" / "masks").iterdir()] == ["b"]
    assert not any(path.startswith("masks/a") for path in contents(data / "out"))  # of before
    other = named[0].replace("b=", "c=")
    assert segment("--save-memory", data / "kept", out="c", support=[other]) == 2


def test_an_unreadable_query_is_named_and_the_others_are_done(data, segment, capsys):
    broken = data / "queries" / "b.png"
    broken.write_bytes((data / "queries" / "a.png").read_bytes()[:300])
    assert segment(queries=["queries", "missing.png"]) == 2
    error = capsys.readouterr().err
    assert (
        f"2 of 5 images could not be read: {broken}: " in error and "missing.png: no such" in error
    )
    assert {row["file"] for row in rows(data / "out")} <= NAMES
    assert sorted(p.stem for p in (data / "out").glob("masks/**/*.png")) == ["a", "b", "c"]
    save(drawn(seed=5)[0], broken)
    assert segment() == 1


def test_names_of_queries_never_meet(data, segment, capsys):
    """The same file twice, names that differ by the suffix, folders with the same names."""
    queries = data / "queries"
    shutil.copy(queries / "a.png", queries / "a.tif")
    save(drawn(seed=3)[0], data / "other" / "c.png")
    assert segment(queries=["queries/a.png", "queries", "queries/deep"], out="one") == 1
    masks = sorted(contents(data / "one" / "masks"))
    assert masks == ["a.png.png", "a.tif.png", "c.png.png", "deep/b.bmp.png"]
    (queries / "a.tif").unlink()
    assert segment(queries=["queries", "other"], out="two") == 1
    assert sorted(contents(data / "two" / "masks")) == [
        "other/c.png", "queries/a.png", "queries/c.png", "queries/deep/b.png"]  # fmt: skip
    save(drawn(seed=3)[0], data / "far" / "other" / "c.png")
    assert segment(queries=["other", "far/other"], out="three") == 2
    assert "would have one name" in capsys.readouterr().err and not (data / "three").exists()


def test_odd_names(data, segment):
    names = ["ü 漢字.png", "a\nb.png", "back\\slash.png", os.fsdecode(b"\xff.png"), "=1+1.png"]
    names += ["x" * 240 + ".png", "a=b,c.png"]
    for number, name in enumerate(names):
        save(drawn(seed=number)[0], data / "odd" / name)
    assert segment(queries=["odd"]) == 1
    assert len(contents(data / "out" / "masks")) == len(names)
    found = json.loads((data / "out" / "defects.json").read_text())
    assert sorted(image["file_name"] for image in found["images"]) == sorted(names)
    for name in names[:3] + names[4:]:
        read_annotation(data / "out" / "defects.json", data / "odd" / name, SIZE)


def test_answers_within_the_folder_of_queries_are_no_queries(data, segment, capsys):
    for _ in range(2):
        assert segment(out="queries/out") == 1
        assert {row["file"] for row in rows(data / "queries" / "out")} <= NAMES
    assert segment(out="queries") == 2
    assert segment(queries=["queries/out/masks"], out="queries/out") == 2
    assert segment(out=".") == 1  # which holds the folder of queries
    assert capsys.readouterr().err.count("error: ") == 2


@pytest.mark.parametrize(
    ("support", "words"),
    [
        (["spot.png"], "--support .*spot.png: expected an image and its annotation"),
        (["spot.png", "none.png"], "none.png: no such file"),
        (["spot_mask.png", "spot.png"], "spot_mask.png: black and white alone"),
        (["spot.png", "spot.png"], "spot.png: given as its own annotation"),
        (["spot.png", "small.png"], "small.png: .*48 x 64.*96 x 128"),
        (["spot.png", "empty.png"], "no support marks a defect"),
        (["spot.png", "boxes.txt"], "boxes.txt: line 1: a box"),
        (["spot.png", "text.doc"], "text.doc: cannot be read as an image"),
    ],
)
def test_supports_that_teach_nothing_are_refused(data, segment, capsys, support, words):
    folder = data / "support"
    save(np.full((48, 64), 255, np.uint8), folder / "small.png")
    save(np.zeros(SIZE, np.uint8), folder / "empty.png")
    (folder / "boxes.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (folder / "text.doc").write_text("no image")
    queries = [] if len(support) == 1 else ["queries"]
    assert segment(support=[str(folder / name) for name in support], queries=queries) == 2
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert not (data / "out").exists()


def test_mistakes_end_with_2(data, segment, capsys):
    (data / "empty").mkdir()
    (data / "file").write_text("")
    masks = [str(data / "support" / n) for n in ("line.png", "line_mask.png")]
    named = f"line={masks[0]},{masks[1]}"
    for words, options, message in (
        ([], {"queries": ["empty"]}, "empty: no images"),
        ([], {"out": "file"}, "--out: .*file cannot be written"),
        (["--support", named], {}, "types of defect in the supports: .without a name., line"),
        (["--min-area", "0"], {}, "--min-area 0"),
        (["--threshold", "much"], {}, "TEST.threshold"),
        (["--memory", data / "none"], {}, "none: no such support file"),
        (["--memory", data / "empty"], {}, "no memory in this folder"),
        (["--watch"], {"queries": ["queries/a.png"]}, "a.png is no folder"),
    ):
        assert segment(*words, **options) == 2, words
        error = capsys.readouterr().err
        assert re.search(message, error), error
        assert "Traceback" not in error


def test_a_full_disk_ends_it_and_what_is_done_stays(data, segment, capsys):
    segment(out="fresh")
    with largest_file(3000):  # of the overlays
        assert segment() == 2
    assert "overlays/a.png cannot be written" in capsys.readouterr().err
    assert segment() == 1
    assert contents(data / "out") == contents(data / "fresh")


def test_a_fault_of_the_program_does_not_look_like_a_defect(data, segment, monkeypatch, capsys):
    def broken(*_):
        raise ZeroDivisionError(errno.EIO)

    monkeypatch.setattr(tools.segment.journal, "_append", broken)
    assert segment() == 2 and "ZeroDivisionError" in capsys.readouterr().err


def test_several_processes_write_what_one_writes(data, segment, one_thread):
    """Also where another number of them goes on; their exit code tells of defects."""
    words = ["--support", *(str(data / "support" / n) for n in ("spot.png", "spot_mask.png"))]
    words += [str(data / "queries"), "--out"]
    segment("--scores", out="one")
    words += [str(data / "two"), "--scores", *CONFIG, "NUM_GPUS", "2"]
    command = [sys.executable, "-m", "tools.segment", *words]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert contents(data / "two") == contents(data / "one")
    assert not list((data / "two" / ".segment").glob("[0-9]*.jsonl"))
    stamps = {path: path.stat().st_mtime_ns for path in (data / "two").rglob("*.png")}
    assert segment("--scores", out="two") == 1
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_a_support_has_one_argument_or_two(tmp_path):
    save(np.zeros((2, 2), np.uint8), tmp_path / "a=b,c.png")
    save(np.zeros((2, 2), np.uint8), tmp_path / "x,y.png")
    odd, comma = str(tmp_path / "a=b,c.png"), str(tmp_path / "x,y.png")
    for words, supports, rest in (
        (["q", "--support", "a", "b", "r"], [("", "a", "b")], ["q", "--support=a", "r"]),
        (["--support", "n=a,b", "r"], [("n", "a", "b")], ["--support=n=a,b", "r"]),
        (
            ["--support=a", "b", "--support=n=a,b", "--x"],
            [("", "a", "b"), ("n", "a", "b")],
            ["--support=a", "--support=n=a,b", "--x"],
        ),
        (["--support", odd, "b", "r"], [("", odd, "b")], [f"--support={odd}", "r"]),
        (
            ["--support", f"n={comma},{odd}", "r"],
            [("n", comma, odd)],
            [f"--support=n={comma},{odd}", "r"],
        ),
    ):
        found, left = take_supports(words)
        assert left == rest and [(k, str(i), str(a)) for k, i, a in found] == supports
    for words in (["--support"], ["--support", "a"], ["--support", "a", "--out"]):
        with pytest.raises(ConfigError, match="--support"):
            take_supports(words)
    args = parse(["q", "--support", "a", "b", "--normal", "n", "r", "--out", "o"])
    assert [str(path) for path in args.queries] == ["q", "r"] and args.normal == [Path("n")]
    args = parse(["--cfg", "f", "g", "--support", "a", "b", "q", "r", "--out", "o"])
    assert (args.cfg, [str(path) for path in args.queries]) == (["f", "g"], ["q", "r"])
    with pytest.raises(ConfigError, match="nothing says what a defect is"):
        parse(["q", "--out", "o"])


def test_help_needs_nothing(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["--help"])
    assert not ending.value.code and "--support IMG ANNOTATION" in capsys.readouterr().out
