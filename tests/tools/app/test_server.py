from __future__ import annotations

import csv
import io
import json
import time
import zipfile

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from datasets.annotations import read_annotation
from tests.tools.app.app_data import SIZE, answer, defect, png, read
from tools.app import server
from tools.app.results import cut_of

TAUGHT, QUERY, OTHER = defect(0), defect(1, (100, 200))[0], defect(2, (20, 20))[0]


def files(**parts):
    """Parts of a multipart request, each a name with the contents that it has."""
    return [
        (field, (f"{field}{number}.png", content, "image/png"))
        for field, contents in parts.items()
        for number, content in enumerate(contents)
    ]


def teach(client, pairs=(TAUGHT,), **fields):
    images, masks = zip(*pairs, strict=True)
    masks = [mask * 255 for mask in masks]
    parts = files(images=map(png, images), masks=map(png, masks))
    return client.post("/api/teach?wait=true", files=parts, data=fields)


def segment(client, *images):
    response = client.post("/api/segment?wait=true", files=files(images=map(png, images)))
    assert response.status_code == 200, response.text
    return response.json()["results"]


def mask_of(client, result, kind="defect", **query):
    response = client.get(f"/api/results/{result['id']}/mask", params={"type": kind} | query)
    assert response.status_code == 200, response.text
    return read(response.content) == 255


def suffixes(session):
    """Endings of the names in a session's folder; those of pictures have none."""
    return {path.suffix for path in session.folder.iterdir()}


def test_masks_are_those_of_the_predictor_pixel_for_pixel(client, predictor):
    assert teach(client).json()["job"]["state"] == "done"
    results = segment(client, QUERY, OTHER)
    for result, image in zip(results, (QUERY, OTHER), strict=True):
        expected = answer(predictor, [TAUGHT], image)
        assert expected.mask.any()
        assert np.array_equal(mask_of(client, result), expected.mask)
        about = result["types"]["defect"]
        assert about["threshold"] == expected.threshold and about["area"] == expected.mask.sum()
        address = f"/api/results/{result['id']}/score?type=defect"
        levels = np.frombuffer(client.get(address).content, "<u2").reshape(SIZE)
        np.testing.assert_allclose(levels / 65535, expected.score, atol=1.6e-5)
        assert np.array_equal(levels > cut_of(expected.threshold), expected.mask)
        for threshold in (0.0, 0.3, 0.45, 1.0):
            moved = mask_of(client, result, threshold=f"defect={threshold}")
            assert np.array_equal(moved, levels > cut_of(threshold))
            assert np.array_equal(mask_of(client, result, threshold=threshold), moved)
    for threshold in ("x", "defect=", "other=0.4", "nan", "2", "defect=-1"):
        refused = client.get("/api/defects.csv", params={"threshold": threshold})
        assert refused.status_code in (404, 422) and "Traceback" not in refused.text


def test_several_types_and_normal_images(client, predictor):
    other, normal = defect(3, (20, 200), 40), defect(4)[0]
    parts = files(images=[png(TAUGHT[0]), png(other[0])], normals=[png(normal)],
                  masks=[png(TAUGHT[1] * 255), png(other[1] * 255)])  # fmt: skip
    response = client.post("/api/teach?wait=1", files=parts, data={"types": ["a b", "ä/b"]})
    assert response.status_code == 200, response.text
    assert [t["name"] for t in client.get("/api/session").json()["types"]] == ["a b", "ä_b"]
    (result,) = segment(client, QUERY)
    for kind, pair in (("a b", TAUGHT), ("ä_b", other)):
        expected = answer(predictor, [pair, (normal, None)], QUERY)
        assert np.array_equal(mask_of(client, result, kind), expected.mask)


def test_normal_images_alone_teach_what_is_unusual(client, predictor):
    parts = files(normals=[png(TAUGHT[0])])
    assert client.post("/api/teach?wait=1", files=parts).status_code == 200
    (result,) = segment(client, QUERY)
    expected = answer(predictor, [(TAUGHT[0], None)], QUERY)
    assert np.array_equal(mask_of(client, result, "anomaly"), expected.mask)


def test_uploaded_images_are_named_by_their_id_and_marks_come_back(client):
    added = client.post("/api/images", files=files(images=[png(TAUGHT[0])])).json()
    (picture,) = added["pictures"]
    assert (picture["height"], picture["width"]) == SIZE
    address = f"/api/images/{picture['id']}"
    assert read(client.get(address).content).shape == (*SIZE, 3)
    marks = client.post(f"{address}/marks", files={"mask": ("m.png", png(TAUGHT[1] * 255))})
    assert client.get(f"{address}/marks").json() == {"types": {}}
    parts = files(masks=[png(TAUGHT[1] * 255)])
    assert client.post("/api/teach?wait=1", files=parts, data={"images": picture["id"]}).is_success
    for found in (marks, client.get(f"{address}/marks")):
        runs = found.json()["types"]["defect"]
        mask = np.repeat(np.arange(len(runs)) % 2, runs).reshape(SIZE)
        assert np.array_equal(mask, TAUGHT[1])
    assert client.delete(address).is_success and client.get(address).status_code == 404


def test_annotation_files_teach_their_types(client, predictor):
    x, y, side = 90, 60, 24
    square = [[x, y], [x + side - 1, y], [x + side - 1, y + side - 1], [x, y + side - 1]]
    shape = {"label": "scratch", "points": square, "shape_type": "polygon"}
    labelme = {
        "shapes": [shape],
        "imageHeight": SIZE[0],
        "imageWidth": SIZE[1],
        "imagePath": "a.png",
    }
    parts = [("images", ("a.png", png(TAUGHT[0]))), ("masks", ("a.json", json.dumps(labelme)))]
    assert client.post("/api/teach?wait=1", files=parts).is_success
    (result,) = segment(client, QUERY)
    expected = answer(predictor, [TAUGHT], QUERY)
    assert np.array_equal(mask_of(client, result, "scratch"), expected.mask)
    for annotation, message in (('{"shapes": 3}', "a.json: "), ("{", "a.json: ")):
        parts[1] = ("masks", ("a.json", annotation))
        refused = client.post("/api/teach", files=parts)
        assert refused.status_code == 422 and refused.json()["detail"].startswith(message)


def test_teaching_again_forgets_the_answers(app, client):
    teach(client)
    (before,) = segment(client, QUERY)
    client.post("/api/archive?wait=1")
    (session,) = app.state.sessions
    assert session.bytes > 0 and {".zip", ".safetensors", ".0"} <= suffixes(session)
    teach(client, [TAUGHT, defect(5, (10, 10))], types="dent")
    seen = client.get("/api/session").json()
    assert seen["results"] == [] and seen["types"] == [{"name": "dent", "loaded": False}]
    assert client.get(f"/api/results/{before['id']}/mask?type=defect").status_code == 404
    assert client.get("/api/archive").status_code == 404
    assert suffixes(session) == {"", ".safetensors"}
    assert client.delete("/api/memory?type=dent").is_success and suffixes(session) == {""}


def test_a_memory_is_taken_to_another_session(app, client):
    teach(client, [TAUGHT, defect(3, (20, 200), 40)], types=["ä b", "dent"])
    (expected,) = segment(client, QUERY)
    archive = client.get("/api/memory").content
    single = client.get("/api/memory?type=dent")
    assert "dent.safetensors" in single.headers["content-disposition"]
    other = TestClient(app, base_url="http://localhost:7860")
    assert other.get("/api/memory").status_code == 404
    for content, kinds in ((archive, ["dent", "ä b"]), (single.content, ["dent"])):
        for kind in [t["name"] for t in other.get("/api/session").json()["types"]]:
            other.delete("/api/memory", params={"type": kind})
        loaded = other.put("/api/memory", content=content)
        assert sorted(loaded.json()["types"]) == kinds
        (result,) = segment(other, QUERY)
        for kind in kinds:
            assert np.array_equal(mask_of(other, result, kind), mask_of(client, expected, kind))
    assert teach(other, types="new").is_success  # what came as a file stays
    assert other.get("/api/session").json()["types"] == [
        {"name": "dent", "loaded": True}, {"name": "new", "loaded": False}]  # fmt: skip
    for content in (single.content[:-100], b"PK\3\4 no archive", b""):
        refused = other.put("/api/memory", content=content)
        assert refused.status_code == 422 and "again" in refused.json()["detail"]


def test_tables_and_coco_files_hold_the_defects_of_the_masks(client, tmp_path):
    teach(client)
    results = segment(client, QUERY, OTHER)
    threshold, counts = {"threshold": "defect=0.45"}, []
    lines = list(csv.DictReader(client.get("/api/defects.csv", params=threshold).text.splitlines()))
    coco = tmp_path / "defects.json"
    coco.write_bytes(client.get("/api/defects.json", params=threshold).content)
    for result in results:
        mask = mask_of(client, result, **threshold)
        table = client.get(f"/api/results/{result['id']}/defects", params=threshold).json()
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        counts.append(len(rows))
        assert len(rows) == cv2.connectedComponents(mask.astype(np.uint8))[0] - 1
        assert sum(row["area_pixels"] for row in rows) == mask.sum()
        assert [line["x"] for line in lines if line["file"] == result["name"]] == [
            str(row["x"]) for row in rows]  # fmt: skip
        (read_again,) = read_annotation(coco, result["name"], SIZE).values()
        assert np.array_equal(read_again, mask)
    assert min(counts) > 0 and len(lines) == sum(counts)


def test_the_archive_holds_what_the_open_domain_job_writes(client, predictor):
    assert client.post("/api/archive").status_code == 422
    teach(client)
    results = segment(client, QUERY, OTHER)
    assert client.post("/api/archive?wait=1&threshold=defect=0.4").status_code == 200
    with zipfile.ZipFile(io.BytesIO(client.get("/api/archive").content)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    for result, image in zip(results, (QUERY, OTHER), strict=True):
        expected, name = answer(predictor, [TAUGHT], image), result["name"]
        levels = read(content[f"scores/defect/{name}"])
        np.testing.assert_allclose(levels / 65535, expected.score, atol=1.6e-5)
        marked = read(content[f"masks/defect/{name}"]) == 255
        assert np.array_equal(marked, levels > cut_of(0.4))
        assert read(content[f"overlays/{name}"]).ndim == 3
    for name in ("defects.csv", "defects.json"):
        address = f"/api/{name}?threshold=defect=0.4"
        assert content[name].decode() == client.get(address).text
    assert content["memory/defect.safetensors"] == client.get("/api/memory").content


def test_sessions_do_not_see_each_other(app, client):
    teach(client)
    (result,) = segment(client, QUERY)
    (cookie,) = (c for c in client.cookies.jar)
    assert cookie.name == "sofs-7860" and len(cookie.value) > 40
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") == "strict"
    other = TestClient(app, base_url="http://localhost:7860", cookies={"sofs-7860": "guess"})
    seen = other.get("/api/session").json()
    assert seen["pictures"] == seen["types"] == seen["results"] == []
    address = f"/api/images/{result['id']}"
    assert client.get(address).is_success and other.get(address).status_code == 404
    assert other.get(f"/api/results/{result['id']}/mask?type=defect").status_code == 404
    assert other.post("/api/segment", files=files(images=[png(QUERY)])).status_code == 422
    assert client.delete("/api/session").is_success
    assert client.get("/api/session").json()["pictures"] == []


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Origin": "null"},
                                     {"Sec-Fetch-Site": "cross-site"}])  # fmt: skip
def test_the_pages_of_other_sites_are_refused(client, headers):
    parts = files(images=[png(QUERY)])
    assert client.post("/api/images", files=parts, headers=headers).status_code == 403
    own = {"Origin": "http://localhost:7860", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/images", files=parts, headers=own).is_success
    assert client.get("/api/session", headers={"Host": "evil.example"}).status_code == 400


def test_bad_uploads_are_told_and_the_session_lives_on(app, client):
    folder = str(app.state.sessions.folder)
    mask, small = png(TAUGHT[1] * 255), png(TAUGHT[1][:50] * 255)
    image, empty = png(TAUGHT[0]), png(TAUGHT[1] * 0)
    cases = [
        (files(images=[b"no image"], masks=[mask]), "images0.png: cannot be read as an image"),
        (files(images=[image[:5000]], masks=[mask]), "images0.png: cannot be read as an image"),
        (files(images=[image], masks=[small]), "masks0.png: is of 50 x 300 pixels"),
        (files(images=[image], masks=[empty]), "defect: no pixel is marked"),
        (files(images=[image], masks=[b"{}"]), "masks0.png: "),
        (files(images=[image]), "1 images, 0 masks"),
        (files(masks=[mask]), "0 images, 1 masks"),
        ([("images", (None, "no-id")), *files(masks=[mask])], "no image 'no-id'"),
        ([("x", (None, "y"))], "nothing to teach"),
    ]
    for parts, message in cases:
        response = client.post("/api/teach", files=parts)
        assert response.status_code in (404, 422), response.text
        assert message in response.json()["detail"] and folder not in response.text
    assert "nothing is taught" in client.post("/api/segment", files=files(images=[image])).text
    assert teach(client).json()["job"]["state"] == "done"


def test_names_of_uploads_stay_in_their_folder(app, client):
    names = ["../../../evil.png", "C:\\evil.png", "..", "", "a/\0b.png", "ü 🙂.png"]
    for name in names:
        response = client.post("/api/images", files={"images": (name or "x", png(QUERY))})
        assert response.is_success, response.text
    root = app.state.sessions.folder
    (session,) = app.state.sessions
    assert {p.name for p in root.parent.iterdir()} == {root.name}
    assert all(p.file.resolve().parents[2] == session.folder for p in session.pictures.values())
    assert len({p.name for p in session.pictures.values()}) == len(names)


def test_a_job_is_stopped_between_passes_and_one_runs_at_a_time(client):
    large = defect(6, size=(700, 900))[0]
    teach(client)
    parts = files(images=[png(QUERY), png(large), png(large)])
    assert client.post("/api/segment", files=parts).json()["job"]["state"] in ("waiting", "running")
    assert client.post("/api/segment", files=parts).status_code == 409
    assert client.delete("/api/session").status_code == 409
    while client.get("/api/job").json()["job"]["done"] < 1:
        time.sleep(0.01)
    client.delete("/api/job")
    while (job := client.get("/api/job").json()["job"])["state"] == "running":
        time.sleep(0.01)
    assert job["state"] == "stopped" and 1 <= job["done"] < 3
    assert len(client.get("/api/session").json()["results"]) == job["done"]
    assert len(segment(client, OTHER)) == 1


def test_an_image_that_breaks_later_is_a_fault_and_the_others_are_done(app, client):
    teach(client)
    parts = files(images=[png(QUERY), png(OTHER)])
    first, second = client.post("/api/images", files=parts).json()["pictures"]
    (session,) = app.state.sessions
    session.pictures[first["id"]].file.write_bytes(b"gone")
    ids = {"images": [first["id"], second["id"]]}
    response = client.post("/api/segment?wait=1", data=ids, files=[("x", (None, ""))]).json()
    assert [result["id"] for result in response["results"]] == [second["id"]]
    (fault,) = response["job"]["faults"]
    assert fault.startswith("images0.png: cannot be read")


def test_what_readers_warn_of_is_told(client):
    grey = np.full((*SIZE, 3), 7, np.uint8)
    added = client.post("/api/images", files=files(images=[png(grey)])).json()
    warning = "every pixel is 7 7 7; is this the image?"
    assert added["warnings"] == [f"images0.png: {warning}"]
    teach(client)
    parts = files(images=[png(grey)])
    job = client.post("/api/segment?wait=1", files=parts).json()["job"]
    assert job["warnings"] == [f"images0.png: {warning}"]


def test_large_requests_are_refused(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "MOST_UPLOAD", 10_000)
    app = server.create_app(predictor, tmp_path)
    with TestClient(app) as client:
        for content in (bytes(20_000), iter([bytes(6000)] * 3)):
            assert client.put("/api/memory", content=content).status_code == 413


def test_the_page_needs_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    for name in ("", "app.js", "api.js", "layers.js", "view.js", "style.css"):
        response = client.get(f"/{name}")
        assert response.is_success and "://" not in response.text.replace("http://www.w3.org", "")
    assert client.get("/../server.py").status_code == 404
    assert client.get("/%2e%2e/server.py").status_code == 404
