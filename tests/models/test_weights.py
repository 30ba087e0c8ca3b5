from __future__ import annotations

import hashlib
import http.server
import io
import re
import socket
import threading

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models import weights
from models.weights import load_backbone_weights, load_checked, official_url, read_weights, sha256_of
from utils.errors import WeightsError

KEY = "TRAIN.backbone_checkpoint"


def tiny(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def saved(model):
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getvalue()


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A web server of `files` (name to bytes, or to bytes and a declared length) and an empty torch hub cache."""
    files, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/")
            asked.append(name)
            if name not in files:
                return self.send_error(404)
            body, length = files[name] if isinstance(files[name], tuple) else (files[name], len(files[name]))
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    httpd.files, httpd.asked = files, asked
    httpd.url = f"http://127.0.0.1:{httpd.server_port}/"
    httpd.cache = tmp_path / "hub" / "checkpoints"
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def fetch(server, monkeypatch):
    """Load the official weights of a backbone, served as a file of the given name, into a fresh model."""

    def load(file, name="dinov2_vits14"):
        monkeypatch.setattr(weights, "official_url", lambda _: server.url + file)
        model = tiny(seed=9)
        load_backbone_weights(model, name, "")
        return model

    return load


def left(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def test_official_file_is_fetched_once_and_its_checksum_recorded(server, fetch):
    server.files["a.pth"] = saved(tiny())
    assert same(tiny(), fetch("a.pth"))
    assert same(tiny(), fetch("a.pth"))
    assert server.asked == ["a.pth"]
    assert left(server.cache) == ["a.pth", "a.pth.sha256"]
    digest = hashlib.sha256(server.files["a.pth"]).hexdigest()
    assert (server.cache / "a.pth.sha256").read_text().split() == [digest, "a.pth"]


def test_a_file_that_changes_after_its_download_is_refused(server, fetch):
    server.files["a.pth"] = saved(tiny())
    fetch("a.pth")
    (server.cache / "a.pth").write_bytes(saved(tiny(seed=1)))
    with pytest.raises(WeightsError, match=r"a\.pth has changed since its download.*a\.pth\.sha256.*delete both"):
        fetch("a.pth")


def test_file_placed_by_hand_is_taken_without_a_connection(server, fetch):
    server.cache.mkdir(parents=True)
    (server.cache / "a.pth").write_bytes(saved(tiny()))
    assert same(tiny(), fetch("a.pth"))
    assert server.asked == []


def test_without_a_connection_the_address_and_the_key_are_named(server, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/dinov2_vits14_pretrain.pth"
    monkeypatch.setattr(weights, "official_url", lambda _: url)
    with pytest.raises(WeightsError) as error:
        load_backbone_weights(tiny(), "dinov2_vits14", "")
    assert all(part in str(error.value) for part in (url, KEY, "dinov2_vits14", str(server.cache)))
    assert left(server.cache) == []


def test_file_that_the_server_lacks(server, fetch):
    with pytest.raises(WeightsError, match=r"404.*TRAIN\.backbone_checkpoint"):
        fetch("gone.pth")
    assert left(server.cache) == []


def test_half_a_download_leaves_no_file(server, fetch):
    body = saved(tiny())
    server.files["a.pth"] = (body[: len(body) // 2], len(body))
    with pytest.raises(WeightsError, match=re.escape(server.url + "a.pth")):
        fetch("a.pth")
    assert left(server.cache) == []
    server.files["a.pth"] = body
    assert same(tiny(), fetch("a.pth"))


def test_web_page_instead_of_weights_leaves_no_file(server, fetch):
    server.files["a.pth"] = b"<!doctype html><html><body>Please log in</body></html>"
    with pytest.raises(WeightsError, match=rf"{re.escape(server.url)}a\.pth.*{re.escape(KEY)}"):
        fetch("a.pth")
    assert left(server.cache) == []


def test_checksum_in_a_torchvision_name_is_checked(server, fetch):
    body = saved(tiny())
    digest = hashlib.sha256(body).hexdigest()
    server.files |= {f"resnet50-{digest[:8]}.pth": body, "resnet50-00000000.pth": body}
    assert same(tiny(), fetch(f"resnet50-{digest[:8]}.pth", "resnet50"))
    with pytest.raises(WeightsError, match=r"invalid hash value.*TRAIN\.backbone_checkpoint"):
        fetch("resnet50-00000000.pth", "resnet50")
    assert left(server.cache) == [f"resnet50-{digest[:8]}.pth", f"resnet50-{digest[:8]}.pth.sha256"]


@pytest.mark.parametrize(
    ("name", "tail"),
    [
        ("dinov2_vitb14", "/dinov2_vitb14/dinov2_vitb14_pretrain.pth"),
        ("dinov2_vits14_reg", "/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth"),
        ("dinov2_vitg14", "/dinov2_vitg14/dinov2_vitg14_pretrain.pth"),
        ("resnet50", "/resnet50-0676ba61.pth"),
        ("wideresnet50", "/wide_resnet50_2-95faca4d.pth"),
    ],
)
def test_addresses_of_the_publishers(name, tail):
    url = official_url(name)
    assert url.startswith(("https://dl.fbaipublicfiles.com/", "https://download.pytorch.org/"))
    assert url.endswith(tail)


def test_given_checksum(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(saved(tiny()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256_of(path) == digest
    model = tiny(seed=1)
    load_backbone_weights(model, "resnet50", str(path), digest.upper())
    assert same(tiny(), model)
    untouched = tiny(seed=1)
    with pytest.raises(WeightsError, match=rf"w\.pth has SHA-256 {digest}.*TRAIN\.backbone_sha256 expects {'0' * 64}"):
        load_backbone_weights(untouched, "resnet50", str(path), "0" * 64)
    assert same(tiny(seed=1), untouched)


def test_unfitting_file_lists_the_first_differences(tmp_path):
    state = tiny().state_dict() | {"strange": torch.zeros(5), "0.weight": torch.zeros(7, 4)}
    del state["1.bias"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as error:
        load_backbone_weights(tiny(), "resnet50", str(tmp_path / "w.pth"))
    parts = ("w.pth", "missing 1.bias (2,)", "unexpected strange (5,)", "0.weight has shape (7, 4), expected (3, 4)")
    assert all(part in str(error.value) for part in parts)


def test_a_long_list_of_differences_is_cut():
    with pytest.raises(WeightsError, match=r"missing 0\.weight.*; and 3 more$"):
        load_checked(tiny(), {f"x{i}": torch.zeros(1) for i in range(5)}, "file")


def test_classifier_of_the_file_is_left_out(tmp_path):
    state = tiny().state_dict() | {"fc.weight": torch.zeros(10, 3), "head.bias": torch.zeros(10)}
    torch.save(state, tmp_path / "w.pth")
    model = tiny(seed=1)
    load_backbone_weights(model, "resnet50", str(tmp_path / "w.pth"))
    assert same(tiny(), model)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_forms_of_file(tmp_path, wrapper):
    state = tiny().state_dict()
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pth")
    read = read_weights(tmp_path / "w.pth", KEY)
    assert all(torch.equal(read[k], v) for k, v in state.items()) and read.keys() == state.keys()


def test_safetensors(tmp_path):
    save_file(tiny().state_dict(), tmp_path / "w.safetensors")
    read = read_weights(tmp_path / "w.safetensors", KEY)
    assert all(torch.equal(read[k], v) for k, v in tiny().state_dict().items())


def test_missing_file_names_path_and_key(tmp_path):
    with pytest.raises(WeightsError, match=rf"{re.escape(KEY)}: no weights file .*none\.pth"):
        read_weights(tmp_path / "none.pth", KEY)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"<html>", b"\x80\x02]q\x00.", bytes(range(256)) * 9])
def test_damaged_file_names_path_and_key(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{re.escape(KEY)}: .*w\{suffix}"):
        read_weights(path, KEY)


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_off_file_is_refused_wherever_it_is_cut(tmp_path, zipped):
    torch.save(tiny().state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    body = (tmp_path / "w.pth").read_bytes()
    for length in range(0, len(body) - 1, len(body) // 40):
        (tmp_path / "cut.pth").write_bytes(body[:length])
        with pytest.raises(WeightsError, match=r"cut\.pth"):
            read_weights(tmp_path / "cut.pth", KEY)


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, torch.zeros(2)])
def test_file_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth holds no state dict"):
        read_weights(tmp_path / "w.pth", KEY)


class Evil:
    def __reduce__(self):
        return (eval, ("open('executed', 'w')",))


def test_code_in_a_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth is not a readable weights file"):
        read_weights("w.pth", KEY)
    assert not (tmp_path / "executed").exists()
