from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from PIL import Image

from tests.tools.report.example import (
    RANGES,
    Page,
    metrics,
    summary,
    write_gallery,
    write_metrics,
    write_run,
)
from tools.report import write_report
from tools.report.__main__ import main
from tools.report.page import embed_image
from utils.errors import OutputError
from utils.metrics import ANOMALY, BY_SIZE, NORMAL, SEGMENTATION

ODD = "<b>&\"'/表面 $x_1$ %s é"
DASH = "\N{EN DASH}"


def page_of(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a run with everything and two test sets, and its page; to look at only."""
    folder = write_run(tmp_path_factory.mktemp("whole"))
    write_run(folder, ["Only/here"], suffix="_validation")
    return folder, page_of(folder)


def methods_of(folder):
    return json.loads((folder / "metrics.json").read_text())["methods"]


def shown(repeats):
    """Mean and spread as the table has them, from the single repeats."""
    return f"{100 * np.mean(repeats):.2f} ±\N{NO-BREAK SPACE}{100 * np.std(repeats):.2f}"


def best(page, kind, count):
    """Which of the first cells after the first element of a class are marked as the best."""
    start = next(i for i, (_, a) in enumerate(page.tags) if a.get("class") == kind)
    return [a.get("class") == "best" for tag, a in page.tags[start:] if tag == "td"][:count]


def test_the_table_of_a_split_test_has_the_values_of_the_metrics(whole):
    folder, page = whole
    methods = methods_of(folder)
    rows = {row[0]: row[1:] for row in page.tables[0]}
    assert rows["class"] == ["SOFS", "prior", "queries"]
    for measure in (*SEGMENTATION, *NORMAL):
        figures = [(m | m["normal"])[measure.name]["repeats"] for m in methods.values()]
        assert rows[measure.label] == [*map(shown, figures), ""]
    areas = [m["normal"]["normal_area"]["mean"] for m in methods.values()]
    start = 3 * ([*rows].index("marked area of normal images") - 1)  # three cells a row
    marks = best(page, "totals", start + 3)[start:]
    assert marks == [areas[0] < areas[1], areas[1] < areas[0], False], "less is better"
    for name in methods["SOFS"]["classes"]:
        values = [shown(m["classes"][name]["repeats"]) for m in methods.values()]
        assert rows[name] == [*values, "7"]
    assert len(rows) == 1 + 8 + len(methods["SOFS"]["classes"])


def test_metrics_alone_make_a_page_with_the_best_of_each_row_marked(tmp_path):
    """An undefined class has no value."""
    values = {"left": (0.5, 0.4), "right": (0.4, 0.5), "even": (0.5, 0.5), "lost": (None, 0.5)}
    content = metrics(values, repeats=1)
    for i, method in enumerate(content["methods"].values()):
        del method["sizes"]
        for name, pair in values.items():
            method["classes"][name] |= {"iou": pair[i]}
    page = page_of(write_metrics(tmp_path, content))
    rows = {row[0]: row[1:] for row in page.tables[0]}
    assert rows["left"] == ["50.00", "40.00", "7"] and rows["lost"] == [DASH, "50.00", "7"]
    assert best(page, "rows", 9) == [True, False, False, False, True, *[False] * 4]
    assert page.ids() == ["results-1", "settings"]


def test_a_training_alone_makes_a_page(whole, tmp_path):
    for name in ("history.json", "config.yaml"):
        (tmp_path / name).write_text((whole[0] / name).read_text())
    page = page_of(tmp_path)
    assert page.ids() == ["training", "settings"]
    head = page.text.partition("config.yaml")[0]
    assert head.count("other") == 2 and "split" not in head, "settings come from config.yaml"


def test_the_table_of_an_open_domain_run(tmp_path):
    scratch = {"queries": 6, "iou": {"SOFS": 0.2011, "prior": None}, "unreadable": ["7.jpg: bad"]}
    objects = {"steel/scratch": scratch, "tile": {"queries": 9, "iou": {}, "unreadable": []}}
    page = page_of(write_metrics(tmp_path, {"objects": objects, "shot": [1, 2]}))
    head, *rows = page.tables[0]
    assert head == ["object", "SOFS", "prior", "queries"]
    assert rows == [["steel/scratch", "20.11", DASH, "6"], ["tile", DASH, DASH, "9"]]
    assert "steel/scratch, left out: 7.jpg: bad" in page.text and "1, 2" in page.text
    page = page_of(write_metrics(tmp_path, {"objects": {"tile": objects["tile"]}, "shot": [1]}))
    assert page.tables == [[["object", "queries"], ["tile", "9"]]], "without true labels"


def test_the_table_of_an_anomaly_run(tmp_path):
    write_gallery(tmp_path / "gallery", ["bottle"])
    values = {m.name: summary("mean", 0.1, 0.01 * i) for i, m in enumerate(ANOMALY)}
    objects = {name: values | {"images": 8} for name in ("bottle", "cable")}
    page = page_of(
        write_metrics(tmp_path, {"shot": 1, "anomaly": {"objects": objects, "mean": values}})
    )
    cells = [shown(values[m.name]["repeats"]) for m in ANOMALY]
    assert page.tables[0] == [
        ["object", *(measure.label for measure in ANOMALY), "images"],
        *(["mean", *cells, ""], ["bottle", *cells, "8"], ["cable", *cells, "8"]),
    ]
    assert "16 in 2 repeats" in page.text
    assert "SOFS 0.12" in page.text and "12.34" not in page.text, "scores are no percentages"


def test_the_table_by_size_has_the_values_of_the_metrics_and_marks_the_better(whole):
    folder, page = whole
    methods = methods_of(folder)
    head, queries, defects, *rows = page.tables[1]
    assert head[1:] == [name for name, *_ in RANGES]
    assert (queries[1:], defects[1:]) == (["4"] * 3, ["9"] * 3)
    expected = []
    for measure in BY_SIZE:
        expected.append([", ".join(filter(None, (measure.label, measure.unit)))])
        factor = 100 if measure.unit == "%" else 1
        for name, method in methods.items():
            cells = [f"{factor * part[measure.name]:.2f}" for part in method["sizes"]]
            expected.append([name, *cells])
    assert rows == expected
    alarms = np.array([[r["false_alarms"] for r in m["sizes"]] for m in methods.values()])
    marks = best(page, "sizes", 6 + 6 * len(BY_SIZE))[-6:]
    assert marks == (alarms == alarms.min(0)).ravel().tolist(), "fewer alarms are better"


def test_the_head_and_further_test_sets_are_on_the_page(whole):
    page = whole[1]
    assert [row[0] for row in page.tables[2]][9:] == ["Only/here"]
    ids = {f"{part}-{i}" for part in ("results", "gallery", "curves", "sizes") for i in (1, 2)}
    assert {*ids, "training", "settings"} <= set(page.ids())
    for part in ("VISION_V1_ND", "tiny", "54", "21 in 3 repeats", "2026-01-02 03:04 UTC", "2.0",
                 "left out: a.jpg: cut short", "the figures: 2", "backbone: other", "1 min 2 s",
                 "cpu, 2 processes", "Results: validation", "validation: left out",
                 "0.222"):  # fmt: skip
        assert part in page.text, part


def test_the_page_loads_nothing_from_outside_and_its_links_lead_somewhere(whole):
    page = whole[1]
    names = ("src", "href", "srcset", "data", "poster", "action")
    loaded = [value for _, a in page.tags for name, value in a.items() if name in names]
    assert len(loaded) > 30 and all(value.startswith(("data:", "#")) for value in loaded)
    assert not page.all("script") and not any(k.startswith("on") for _, a in page.tags for k in a)
    assert "url(" not in page.html and "@import" not in page.html
    policies = [a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policies[0]["content"]
    links = [a["href"][1:] for a in page.all("a")]
    assert len(links) > 8 and set(links) <= set(page.ids())
    assert len(set(page.ids())) == len(page.ids())


def test_names_of_any_characters_arrive_as_text(tmp_path):
    names = [ODD, "_a\udcff", "x" * 300]
    run = write_metrics(
        tmp_path / "<i>&quot; \"run' é", metrics(names) | {"unreadable": [ODD], "backbone": ODD}
    )
    write_gallery(run / "gallery", names)
    page = page_of(run)
    assert [row[0] for row in page.tables[0][9:11]] == [ODD, "_a?"]
    assert page.text.count(ODD) == 5  # table, index and head of the gallery, warning, backbone
    assert "<i>&quot; \"run' é" in page.text and not page.all("i")
    assert any(ODD in a["alt"] for a in page.all("img"))


def test_the_gallery_embeds_every_picture_worst_first(whole):
    folder, page = whole
    index = json.loads((folder / "gallery" / "index.json").read_text())
    items = [index[3 * place + rank] for place in range(3) for rank in (2, 1, 0)]
    files = [folder / "gallery" / panel["file"] for item in items for panel in item["panels"]]
    images = [a for a in page.all("img") if a["src"].startswith("data:image/jpeg")][: len(files)]
    contents = [base64.b64decode(a["src"].partition(",")[2]) for a in images]
    assert contents == [file.read_bytes() for file in files]
    assert {(a["width"], a["height"]) for a in images} == {("26", "24")}
    assert images[0]["alt"] == "support, Ring/rust, worst: x.jpg"
    assert page.text.count("SOFS 12.34 %") == 12
    assert all(a["alt"] for a in page.all("img"))


def test_many_classes_with_large_pictures_make_a_page_of_bounded_size(tmp_path):
    """Pictures above their share of the limit are shrunk in proportion."""
    classes, folder = [f"Object_{i:02d}/defect" for i in range(30)], tmp_path / "gallery"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (340, 680, 3), np.uint8)
    Image.fromarray(noise).save(folder / "large.png")
    panels = [{"caption": "query", "file": "large.png"}]
    item = {"rank": "worst", "caption": "", "scores": {}, "panels": panels}
    (folder / "index.json").write_text(json.dumps([item | {"class": name} for name in classes]))
    page = page_of(write_metrics(tmp_path, metrics(classes)))
    assert 30 * (folder / "large.png").stat().st_size > 18 << 20 > len(page.html)
    images = [a for a in page.all("img") if a["src"].startswith("data:image/jpeg")]
    assert [(a["width"], a["height"]) for a in images] == [("360", "180")] * 30
    assert len([a for a in page.all("details") if a.get("class") == "class"]) == 18
    assert {f"gallery-1-{i}" for i in range(1, 31)} <= set(page.ids())
    least = embed_image(folder / "large.png", 1)
    assert (least["width"], least["height"]) == (110, 55)


def test_the_command_rebuilds_reports_to_the_byte(tmp_path, capsys):
    runs = [write_metrics(tmp_path / name, metrics(name)) for name in ("ab", "c")]
    assert main([str(run) for run in runs]) == 0
    assert capsys.readouterr().out.split() == [str(run / "report.html") for run in runs]
    before = (runs[0] / "report.html").read_bytes()
    assert b"svg" in before and write_report(runs[0]).read_bytes() == before


def test_a_folder_that_is_no_run_or_cannot_be_written_is_named(tmp_path, capsys):
    assert main([str(tmp_path / "gone")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(tmp_path / "gone") in error
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match=r"report\.html cannot be written"):
        write_report(write_metrics(tmp_path, metrics(["a"])))
