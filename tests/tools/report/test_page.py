from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tools.report.example import (
    RANGES,
    RANKS,
    Page,
    metrics,
    summary,
    write_gallery,
    write_run,
)
from tools.report import write_report
from tools.report.__main__ import main
from tools.report.page import embed_image
from utils.errors import OutputError
from utils.metrics import ANOMALY, BY_SIZE

ODD = "<b>&\"'/表面 $x_1$ %s é"
MEASURES = [measure.name for measure in ANOMALY]


def page_of(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


def alone(folder, content):
    """A run of nothing but metrics.json."""
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def shown(repeats):
    """Mean and spread as the table has them, from the single repeats."""
    return f"{100 * np.mean(repeats):.2f} ±\N{NO-BREAK SPACE}{100 * np.std(repeats):.2f}"


def test_the_table_of_a_split_test_has_the_figures_of_the_metrics(whole):
    folder, page = whole
    known = json.loads((folder / "metrics.json").read_text())["methods"]
    rows = {row[0]: row[1:] for row in page.tables[0]}
    assert rows["class"] == ["SOFS", "prior", "queries"]
    for label, key in (("mIoU", "miou"), ("FB-IoU", "fb_iou")):
        assert rows[label] == [*(shown(m[key]["repeats"]) for m in known.values()), ""]
    for name, first in known["SOFS"]["classes"].items():
        repeats = [m["classes"][name]["repeats"] for m in known.values()]
        assert rows[name] == [*map(shown, repeats), str(first["queries"])]
    assert len(rows) == 3 + len(known["SOFS"]["classes"])


def test_one_repeat_has_no_spread_and_an_undefined_class_no_figure(tmp_path):
    content = metrics(["a", "b"], repeats=1)
    content["methods"]["SOFS"]["classes"]["b"] |= {"iou": None, "std": None, "repeats": [None]}
    rows = {row[0]: row[1:] for row in page_of(alone(tmp_path, content)).tables[0]}
    assert rows["a"][0] == f"{100 * content['methods']['SOFS']['classes']['a']['iou']:.2f}"
    assert rows["b"][0] == "\N{EN DASH}"


def test_the_best_of_a_row_is_marked(tmp_path):
    content = metrics(["left", "right", "even"], repeats=1)
    for name, values in {"left": (0.5, 0.4), "right": (0.4, 0.5), "even": (0.5, 0.5)}.items():
        for method, value in zip(("SOFS", "prior"), values, strict=True):
            content["methods"][method]["classes"][name]["iou"] = value
    tags = page_of(alone(tmp_path, content)).tags
    end = next(i for i, (tag, a) in enumerate(tags) if a.get("class") == "rows")
    cells = [a.get("class") == "best" for tag, a in tags[end:] if tag == "td"][:9]
    assert cells == [True, False, False, False, True, False, False, False, False]


def test_the_table_of_an_open_domain_run(tmp_path):
    objects = {
        "steel/scratch": {
            "queries": 6,
            "iou": {"SOFS": 0.2011, "prior": None},
            "unreadable": ["7.jpg: no image"],
        },
        "tile": {"queries": 9, "iou": {}, "unreadable": []},
    }
    page = page_of(alone(tmp_path, {"objects": objects, "shot": [1, 2]}))
    assert page.tables[0] == [
        ["object", "SOFS", "prior", "queries"],
        ["steel/scratch", "20.11", "–", "6"],  # noqa: RUF001
        ["tile", "–", "–", "9"],  # noqa: RUF001
    ]
    assert "steel/scratch, left out: 7.jpg: no image" in page.text
    assert "1, 2" in page.text


def test_an_open_domain_run_without_true_labels(tmp_path):
    page = page_of(
        alone(
            tmp_path, {"objects": {"a": {"queries": 2, "iou": {}, "unreadable": []}}, "shot": [1]}
        )
    )
    assert page.tables == [[["object", "queries"], ["a", "2"]]]


def test_the_table_of_an_anomaly_run(tmp_path):
    rng = np.random.default_rng(0)
    objects = {
        n: {m: summary(rng, "mean", 2) for m in MEASURES} | {"images": 8}
        for n in ("bottle", "cable")
    }
    mean = {m: summary(rng, "mean", 2) for m in MEASURES}
    page = page_of(alone(tmp_path, {"shot": 1, "anomaly": {"objects": objects, "mean": mean}}))
    head, *rows = page.tables[0]
    assert head[1:] == ["image AUROC", "image AP", "image F1-max", "pixel AUROC", "pixel AP", "pixel F1-max", "AUPRO",
                        "images"]  # fmt: skip
    assert rows[0] == ["mean", *(shown(mean[m]["repeats"]) for m in MEASURES), ""]
    for row, (name, known) in zip(rows[1:], objects.items(), strict=True):
        assert row == [name, *(shown(known[m]["repeats"]) for m in MEASURES), "8"]
    assert "16 in 2 repeats" in page.text


def test_the_table_by_size_has_the_figures_of_the_metrics_and_marks_the_better(whole):
    folder, page = whole
    known = {
        m: v["sizes"]
        for m, v in json.loads((folder / "metrics.json").read_text())["methods"].items()
    }
    head, queries, defects, *rows = page.tables[1]
    assert (head[1:], queries[1:], defects[1:]) == (
        [name for name, *_ in RANGES],
        ["4"] * 4,
        ["9"] * 4,
    )
    lines = iter(rows)
    for key, factor in {
        "iou": 100,
        "recall": 100,
        "false_positive_area": 100,
        "found": 100,
        "false_alarms": 1,
    }.items():
        assert len(next(lines)) == 1  # the name of the measure
        for method, ranges in known.items():
            assert next(lines) == [method, *(f"{factor * r[key]:.2f}" for r in ranges)]
    alarms = np.array([[r["false_alarms"] for r in ranges] for ranges in known.values()])
    start = next(i for i, (_, a) in enumerate(page.tags) if a.get("class") == "sizes")
    marks = [a.get("class") == "best" for tag, a in page.tags[start:] if tag == "td"][: 8 + 5 * 8]
    assert marks[-8:] == (alarms == alarms.min(0)).ravel().tolist()


def test_the_head_tells_the_settings_and_what_was_left_out(whole):
    text = whole[1].text
    for part in ("VISION_V1_ND", "tiny", "54", "24 in 3 repeats", "2026-01-02 03:04 UTC", "left out: a.jpg: cut short",
                 "2 queries failed", "backbone: other", "2.0", "1 min 2 s", "cpu, 2 processes"):  # fmt: skip
        assert part in text, part


def test_when_a_run_ran_is_left_out_where_it_is_not_known(run):
    (run / "run.json").unlink()
    text = page_of(run).text.partition("config.yaml")[0]
    assert not any(label in text for label in ("finished", "duration", "device", "2026"))


def test_settings_that_the_metrics_lack_come_from_the_config(run):
    (run / "metrics.json").write_text(
        json.dumps({"objects": {"a": {"queries": 2, "iou": {}}}, "shot": [1]})
    )
    text = page_of(run).text.partition("config.yaml")[0]
    assert text.count("other") == 2 and "split" not in text


def test_nothing_outside_the_page_is_asked_for(whole):
    page = whole[1]
    asked = [
        v
        for _, a in page.tags
        for k, v in a.items()
        if k in ("src", "href", "srcset", "data", "poster", "action")
    ]
    assert len(asked) > 30
    assert all(value.startswith(("data:", "#")) for value in asked)
    assert not page.all("script") and not any(k.startswith("on") for _, a in page.tags for k in a)
    assert "url(" not in page.html and "@import" not in page.html
    policy = next(
        a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy


def test_links_within_the_page_lead_somewhere_and_ids_are_unique(whole):
    page = whole[1]
    links = [a["href"][1:] for a in page.all("a")]
    assert len(links) > 8 and set(links) <= set(page.ids())
    assert len(set(page.ids())) == len(page.ids())


def test_names_of_any_characters_arrive_as_text(tmp_path):
    run = write_run(tmp_path / "<i>&quot; \"run' é", [ODD, "_a\udcff", "x" * 300])
    content = metrics([ODD, "_a\udcff", "x" * 300]) | {"unreadable": [ODD], "backbone": ODD}
    (run / "metrics.json").write_text(json.dumps(content))
    page = page_of(run)
    assert page.tables[0][3][0] == ODD
    assert page.tables[0][4][0] == "_a?"
    assert page.text.count(ODD) == 5  # table, index and head of the gallery, warning, backbone
    assert page.text.startswith("\n\n") and "<i>&quot; \"run' é" in page.text
    assert any(ODD in a["alt"] for a in page.all("img"))
    assert not page.all("i")


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("queries.csv", "A point is a query"),
        ("curves.json", "curves-1"),
        ("history.json", "training"),
        ("gallery/index.json", "gallery-1"),
        ("config.yaml", "config.yaml"),
    ],
)
def test_a_missing_optional_file_leaves_its_part_out_and_nothing_else(run, whole, missing, gone):
    (run / missing).unlink()
    page, parts = (
        page_of(run),
        {"curves-1", "training", "gallery-1", "A point is a query", "config.yaml"},
    )
    assert {part for part in parts if part not in page.html} == {gone}
    assert all(part in whole[1].html for part in parts)
    assert {"results-1", "sizes-1", "settings"} <= set(page.ids())


def test_metrics_alone_make_a_page(tmp_path):
    content = metrics(["a", "b"])
    for method in content["methods"].values():
        del method["sizes"]
    assert page_of(alone(tmp_path, content)).ids() == ["results-1", "settings"]


def test_a_training_that_was_never_tested_has_its_curves(run):
    for file in run.glob("metrics*"):
        file.unlink()
    assert page_of(run).ids() == ["training", "settings"]


def test_further_test_sets_follow_on_the_same_page(whole):
    page = whole[1]
    assert [row[0] for row in page.tables[2]][3:] == ["Only/here"]
    assert "Results: validation" in page.text and "validation: left out" in page.text
    assert {"gallery-1", "gallery-2", "curves-2", "sizes-2"} <= set(page.ids())


def test_the_gallery_embeds_every_picture_worst_first(whole):
    folder, page = whole
    index = json.loads((folder / "gallery" / "index.json").read_text())
    expected = [
        folder / "gallery" / panel["file"]
        for name in ("Ring/rust", "Ring/dent", "Wood/hole")
        for rank in RANKS
        for item in index if item["class"] == name and item["rank"] == rank
        for panel in item["panels"]
    ]  # fmt: skip
    images = [a for a in page.all("img") if a["src"].startswith("data:image/jpeg")][: len(expected)]
    assert [base64.b64decode(a["src"].partition(",")[2]) for a in images] == [
        f.read_bytes() for f in expected
    ]
    assert {(a["width"], a["height"]) for a in images} == {("26", "24")}
    assert images[0]["alt"] == "support, Ring/rust, worst: x.jpg"
    assert page.text.count("SOFS 12.34 %") == 12


def test_every_picture_has_its_size_and_words(whole):
    images = whole[1].all("img")
    assert len(images) > 40
    assert all(int(a["width"]) and int(a["height"]) and a["alt"] for a in images)


def test_scores_of_an_anomaly_run_are_no_percentages(run):
    rng = np.random.default_rng(0)
    entry = {m: summary(rng, "mean", 1) for m in MEASURES}
    alone(run, {"anomaly": {"objects": {"a": entry | {"images": 8}}, "mean": entry}})
    text = page_of(run).text
    assert "SOFS 0.12" in text and "0.12 %" not in text and "12.34" not in text


def test_sixty_classes_with_large_pictures_make_a_page_of_bounded_size(tmp_path):
    classes = [f"Object_{i:02d}/defect" for i in range(60)]
    run = alone(tmp_path / "run", metrics(classes))
    write_gallery(run / "gallery", classes[:1])
    noise = np.random.default_rng(0).integers(0, 255, (480, 480, 3), np.uint8)
    Image.fromarray(noise).save(run / "gallery" / "large.png")
    item = {
        "rank": "worst",
        "caption": "",
        "scores": {},
        "panels": [{"caption": "query", "file": "large.png"}],
    }
    (run / "gallery" / "index.json").write_text(
        json.dumps([item | {"class": name} for name in classes])
    )
    assert 60 * (run / "gallery" / "large.png").stat().st_size > 32 << 20
    file = write_report(run)
    assert file.stat().st_size < 17 << 20
    page = Page(file.read_text(encoding="utf-8"))
    assert [row[0] for row in page.tables[0]][3:] == classes
    assert sum(a["src"].startswith("data:image/jpeg") for a in page.all("img")) == 60
    assert len([a for a in page.all("details") if a.get("class") == "class"]) == 48
    assert {f"gallery-1-{i}" for i in range(1, 61)} <= set(page.ids())


def test_the_command_rebuilds_reports_to_the_byte(tmp_path, capsys):
    runs = [alone(tmp_path / name, metrics(["a", "b"])) for name in ("one", "two")]
    assert main([str(run) for run in runs]) == 0
    assert capsys.readouterr().out.split() == [str(run / "report.html") for run in runs]
    before = (runs[0] / "report.html").read_bytes()
    assert b"svg" in before
    assert main([str(runs[0])]) == 0
    assert (runs[0] / "report.html").read_bytes() == before


@pytest.mark.parametrize("name", ["", "gone"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys, name):
    assert main([str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(tmp_path / name) in error
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_is_an_error_with_its_name(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match=r"report\.html cannot be written"):
        write_report(alone(tmp_path, metrics(["a"])))


def test_reports_need_neither_torch_nor_a_display():
    code = "import sys, tools.report.__main__; print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert done.stdout.strip() == "set()"
