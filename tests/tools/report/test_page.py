from __future__ import annotations

import base64
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.tools.report.example import RANGES, RANKS, Page, metrics, summary, write_run
from tools.report import write_report
from tools.report.__main__ import main
from tools.report.page import embed_image
from utils.errors import DataError, OutputError
from utils.metrics import ANOMALY, BY_SIZE

ODD = "<b>&\"'/表面 $x_1$ %s é"
DASH = "\N{EN DASH}"


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


def test_the_table_of_a_split_test_has_the_values_of_the_metrics(whole):
    folder, page = whole
    methods = json.loads((folder / "metrics.json").read_text())["methods"]
    rows = {row[0]: row[1:] for row in page.tables[0]}
    assert rows["class"] == ["SOFS", "prior", "queries"]
    for label, key in (("mIoU", "miou"), ("FB-IoU", "fb_iou")):
        assert rows[label] == [*(shown(m[key]["repeats"]) for m in methods.values()), ""]
    for name, first in methods["SOFS"]["classes"].items():
        repeats = [m["classes"][name]["repeats"] for m in methods.values()]
        assert rows[name] == [*map(shown, repeats), str(first["queries"])]
    assert len(rows) == 3 + len(methods["SOFS"]["classes"])


def test_one_repeat_has_no_spread_and_an_undefined_class_no_value(tmp_path):
    content = metrics(["a", "b"], repeats=1)
    classes = content["methods"]["SOFS"]["classes"]
    classes["b"] |= {"iou": None, "std": None, "repeats": [None]}
    rows = {row[0]: row[1:] for row in page_of(alone(tmp_path, content)).tables[0]}
    assert rows["a"][0] == f"{100 * classes['a']['iou']:.2f}"
    assert rows["b"][0] == DASH


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
    scratch = {"queries": 6, "iou": {"SOFS": 0.2011, "prior": None}}
    objects = {
        "steel/scratch": scratch | {"unreadable": ["7.jpg: no image"]},
        "tile": {"queries": 9, "iou": {}, "unreadable": []},
    }
    page = page_of(alone(tmp_path, {"objects": objects, "shot": [1, 2]}))
    head, *rows = page.tables[0]
    assert head == ["object", "SOFS", "prior", "queries"]
    assert rows == [["steel/scratch", "20.11", DASH, "6"], ["tile", DASH, DASH, "9"]]
    assert "steel/scratch, left out: 7.jpg: no image" in page.text and "1, 2" in page.text
    page = page_of(alone(tmp_path, {"objects": {"tile": objects["tile"]}, "shot": [1]}))
    assert page.tables == [[["object", "queries"], ["tile", "9"]]], "without true labels"


def test_the_table_of_an_anomaly_run(run):
    rng = np.random.default_rng(0)
    objects = {
        name: {m.name: summary(rng, "mean", 2) for m in ANOMALY} | {"images": 8}
        for name in ("bottle", "cable")
    }
    mean = {m.name: summary(rng, "mean", 2) for m in ANOMALY}
    page = page_of(alone(run, {"shot": 1, "anomaly": {"objects": objects, "mean": mean}}))
    head, *rows = page.tables[0]
    assert head == ["object", *(measure.label for measure in ANOMALY), "images"]
    for row, name, values, images in zip(
        rows, ("mean", *objects), (mean, *objects.values()), ("", "8", "8"), strict=True
    ):
        assert row == [name, *(shown(values[m.name]["repeats"]) for m in ANOMALY), images]
    assert "16 in 2 repeats" in page.text
    assert "SOFS 0.12" in page.text and "12.34" not in page.text, "scores are no percentages"


def test_the_table_by_size_has_the_values_of_the_metrics_and_marks_the_better(whole):
    folder, page = whole
    content = json.loads((folder / "metrics.json").read_text())
    sizes = {method: results["sizes"] for method, results in content["methods"].items()}
    head, queries, defects, *rows = page.tables[1]
    assert head[1:] == [name for name, *_ in RANGES]
    assert (queries[1:], defects[1:]) == (["4"] * 4, ["9"] * 4)
    lines = iter(rows)
    for measure in BY_SIZE:
        assert next(lines) == [", ".join(filter(None, (measure.label, measure.unit)))]
        for method, ranges in sizes.items():
            factor = 100 if measure.unit == "%" else 1
            assert next(lines) == [method, *(f"{factor * r[measure.name]:.2f}" for r in ranges)]
    alarms = np.array([[r["false_alarms"] for r in ranges] for ranges in sizes.values()])
    start = next(i for i, (_, a) in enumerate(page.tags) if a.get("class") == "sizes")
    marks = [a.get("class") == "best" for tag, a in page.tags[start:] if tag == "td"][: 8 + 5 * 8]
    assert marks[-8:] == (alarms == alarms.min(0)).ravel().tolist(), "fewer alarms are better"


def test_the_head_shows_the_settings_and_what_was_left_out(whole):
    text = whole[1].text
    for part in ("VISION_V1_ND", "tiny", "54", "24 in 3 repeats", "2026-01-02 03:04 UTC", "2.0",
                 "left out: a.jpg: cut short", "2 queries failed", "backbone: other", "1 min 2 s",
                 "cpu, 2 processes"):  # fmt: skip
        assert part in text, part


def test_settings_that_the_metrics_lack_come_from_the_config(run):
    alone(run, {"objects": {"a": {"queries": 2, "iou": {}}}, "shot": [1]})
    text = page_of(run).text.partition("config.yaml")[0]
    assert text.count("other") == 2 and "split" not in text


def test_the_page_loads_nothing_from_outside(whole):
    page = whole[1]
    names = ("src", "href", "srcset", "data", "poster", "action")
    loaded = [value for _, a in page.tags for name, value in a.items() if name in names]
    assert len(loaded) > 30 and all(value.startswith(("data:", "#")) for value in loaded)
    assert not page.all("script") and not any(k.startswith("on") for _, a in page.tags for k in a)
    assert "url(" not in page.html and "@import" not in page.html
    policies = [a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policies[0]["content"]


def test_links_within_the_page_lead_somewhere_and_ids_are_unique(whole):
    page = whole[1]
    links = [a["href"][1:] for a in page.all("a")]
    assert len(links) > 8 and set(links) <= set(page.ids())
    assert len(set(page.ids())) == len(page.ids())


def test_names_of_any_characters_arrive_as_text(tmp_path):
    names = [ODD, "_a\udcff", "x" * 300]
    run = write_run(tmp_path / "<i>&quot; \"run' é", names)
    alone(run, metrics(names) | {"unreadable": [ODD], "backbone": ODD})
    page = page_of(run)
    assert [row[0] for row in page.tables[0][3:5]] == [ODD, "_a?"]
    assert page.text.count(ODD) == 5  # table, index and head of the gallery, warning, backbone
    assert "<i>&quot; \"run' é" in page.text and not page.all("i")
    assert any(ODD in a["alt"] for a in page.all("img"))


@pytest.mark.parametrize(
    ("missing", "part"),
    [
        ("queries.csv", "A point is a query"),
        ("curves.json", "curves-1"),
        ("history.json", "training"),
        ("gallery/index.json", "gallery-1"),
        ("config.yaml", "config.yaml"),
        ("run.json", "duration"),
    ],
)
def test_a_missing_optional_file_leaves_its_part_out_and_nothing_else(run, whole, missing, part):
    (run / missing).unlink()
    page = page_of(run)
    parts = {"A point is a query", "curves-1", "training", "gallery-1", "config.yaml", "duration"}
    assert {part for part in parts if part not in page.html} == {part}
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
    items = {(item["class"], item["rank"]): item for item in index}
    expected = [
        (folder / "gallery" / panel["file"]).read_bytes()
        for name in ("Ring/rust", "Ring/dent", "Wood/hole")
        for rank in RANKS
        for panel in items[name, rank]["panels"]
    ]
    images = [a for a in page.all("img") if a["src"].startswith("data:image/jpeg")][: len(expected)]
    assert [base64.b64decode(a["src"].partition(",")[2]) for a in images] == expected
    assert {(a["width"], a["height"]) for a in images} == {("26", "24")}
    assert images[0]["alt"] == "support, Ring/rust, worst: x.jpg"
    assert page.text.count("SOFS 12.34 %") == 12
    assert all(int(a["width"]) and int(a["height"]) and a["alt"] for a in page.all("img"))


def test_sixty_classes_with_large_pictures_make_a_page_of_bounded_size(tmp_path):
    classes = [f"Object_{i:02d}/defect" for i in range(60)]
    run = alone(tmp_path / "run", metrics(classes))
    noise = np.random.default_rng(0).integers(0, 255, (480, 480, 3), np.uint8)
    (run / "gallery").mkdir()
    Image.fromarray(noise).save(run / "gallery" / "large.png")
    panels = [{"caption": "query", "file": "large.png"}]
    item = {"rank": "worst", "caption": "", "scores": {}, "panels": panels}
    index = [item | {"class": name} for name in classes]
    (run / "gallery" / "index.json").write_text(json.dumps(index))
    assert 60 * (run / "gallery" / "large.png").stat().st_size > 32 << 20
    file = write_report(run)
    assert file.stat().st_size < 17 << 20
    page = Page(file.read_text(encoding="utf-8"))
    assert [row[0] for row in page.tables[0]][3:] == classes
    assert sum(a["src"].startswith("data:image/jpeg") for a in page.all("img")) == 60
    assert len([a for a in page.all("details") if a.get("class") == "class"]) == 48
    assert {f"gallery-1-{i}" for i in range(1, 61)} <= set(page.ids())


def test_a_picture_above_the_limit_is_shrunk_in_proportion(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (240, 480, 4), np.uint8)
    file = tmp_path / "a.png"
    Image.fromarray(noise, "RGBA").save(file)
    whole, small, least = (embed_image(file, n) for n in (file.stat().st_size, 30_000, 1))
    assert (whole["width"], whole["height"], whole["uri"][:15]) == (480, 240, "data:image/png;")
    assert small["uri"].startswith("data:image/jpeg;")
    assert 30_000 > len(small["uri"]) * 3 / 4 > 5_000
    assert small["width"] == pytest.approx(2 * small["height"], abs=2)
    assert (least["width"], least["height"]) == (110, 55)


def test_a_picture_of_another_kind_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", "GIF")
    with pytest.raises(DataError, match=r"a\.jpg"):
        embed_image(tmp_path / "a.jpg", 1000)


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
    code = "import sys, tools.report.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "matplotlib.pyplot"} & set(done.stdout.split())
