"""Official weights: fetched from a web server of ours, recorded, and checked."""

from __future__ import annotations

import hashlib
import http.server
import io
import re
import threading

import pytest
import torch

from models import weights
from models.weights import load_backbone_weights, official_url
from tests.models.tiny import same
from tests.models.tiny import two_layers as tiny
from utils.errors import WeightsError

KEY = "TRAIN.backbone_checkpoint"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A web server of `files` (name to bytes and declared length) and an empty torch hub cache."""
    files, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path[1:])
            if self.path[1:] not in files:
                return self.send_error(404)
            body, length = files[self.path[1:]]
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    httpd.files, httpd.asked = files, asked
    httpd.url, httpd.cache = f"http://127.0.0.1:{httpd.server_port}/", tmp_path / "hub/checkpoints"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(httpd.cache.parent))
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def fetch(server, monkeypatch):
    """Load the official weights of a backbone, served under a name, into a fresh model."""

    def load(file, body=None, name="dinov2_vits14", length=None):
        if body is not None:
            server.files[file] = body, length or len(body)
        monkeypatch.setattr(weights, "official_url", lambda _: server.url + file)
        model = tiny(9)
        load_backbone_weights(model, name, "")
        return model

    return load


def saved(seed=0):
    buffer = io.BytesIO()
    torch.save(tiny(seed).state_dict(), buffer)
    return buffer.getvalue()


def files_in(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def test_an_official_file_is_fetched_once_recorded_and_must_not_change(server, fetch):
    assert same(tiny(), fetch("a.pth", saved())) and same(tiny(), fetch("a.pth"))
    assert server.asked == ["a.pth"] and files_in(server.cache) == ["a.pth", "a.pth.sha256"]
    record = server.cache / "a.pth.sha256"
    whole = record.read_text()
    assert whole.split() == [hashlib.sha256(saved()).hexdigest(), "a.pth"]
    record.write_bytes(b"\xe9")
    assert same(tiny(), fetch("a.pth")) and record.read_text() == whole, "it is written anew"
    (server.cache / "a.pth").write_bytes(saved(seed=1))
    with pytest.raises(WeightsError, match=r"a\.pth has changed since its download.*delete both"):
        fetch("a.pth")


def test_a_file_placed_by_hand_needs_no_connection_and_a_record_may_fail(server, fetch, caplog):
    (server.cache / "a.pth.sha256").mkdir(parents=True)
    (server.cache / "a.pth").write_bytes(saved())
    assert same(tiny(), fetch("a.pth")) and server.asked == []
    assert "a.pth cannot be noticed" in caplog.text


@pytest.mark.parametrize("body", [None, saved()[:900], b"<!doctype html><html>Log in</html>"])
def test_a_failed_download_leaves_no_file_and_names_address_and_remedies(server, fetch, body):
    words = rf"dinov2_vits14 .*{server.cache} .*{server.url}a\.pth .*{KEY} .*TORCH_HOME"
    with pytest.raises(WeightsError, match=words):
        fetch("a.pth", body, length=len(saved()))
    assert files_in(server.cache) == []
    assert same(tiny(), fetch("a.pth", saved()))


def test_without_a_connection_the_remedies_are_named(server, fetch):
    server.shutdown()
    server.server_close()
    with pytest.raises(WeightsError, match=rf"{server.url}a\.pth .*{KEY} .*TORCH_HOME"):
        fetch("a.pth")


def test_the_checksum_in_a_torchvision_name_is_checked(server, fetch):
    digest = hashlib.sha256(saved()).hexdigest()[:8]
    assert same(tiny(), fetch(f"resnet50-{digest}.pth", saved(), "resnet50"))
    with pytest.raises(WeightsError, match=rf"invalid hash value.*{KEY}"):
        fetch("resnet50-00000000.pth", saved(), "resnet50")
    assert files_in(server.cache) == [f"resnet50-{digest}.pth", f"resnet50-{digest}.pth.sha256"]


@pytest.mark.parametrize(
    ("name", "address"),
    [("dinov2_vitb14", "dl.fbaipublicfiles.com/.*/dinov2_vitb14/dinov2_vitb14_pretrain.pth"),
     ("dinov2_vits14_reg", "dl.fbaipublicfiles.com/.*/dinov2_vits14_reg4_pretrain.pth"),
     ("dinov2_vitg14", "dl.fbaipublicfiles.com/.*/dinov2_vitg14_pretrain.pth"),
     ("resnet50", "download.pytorch.org/models/resnet50-0676ba61.pth"),
     ("wideresnet50", "download.pytorch.org/models/wide_resnet50_2-95faca4d.pth")],
)  # fmt: skip
def test_addresses_are_those_of_the_publishers(name, address):
    assert re.fullmatch(f"https://{address}", official_url(name))
