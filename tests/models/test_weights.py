from __future__ import annotations

import hashlib
import http.server
import io
import multiprocessing
import re
import socket
import threading

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models import weights
from models.weights import (
    load_backbone_weights,
    load_checked,
    load_timm,
    official_url,
    sha256_of,
    verify_recorded_sha256,
)
from tests.evil import Evil
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


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("0.weight", torch.ones(3, 4, dtype=torch.int64), r"0\.weight is of torch\.int64, expected torch\.float32"),
        ("0.weight", torch.ones(3, 4, dtype=torch.complex64), r"is of torch\.complex64"),
        ("0.weight", torch.ones(3, 4, dtype=torch.bool), r"is of torch\.bool"),
        ("1.bias", torch.tensor([0.0, float("nan")]), r"1\.bias holds values that are not finite"),
        ("1.bias", torch.tensor([0.0, -float("inf")]).half(), r"1\.bias holds values that are not finite"),
        ("0.weight", torch.zeros(1).expand(10**6, 10**6), r"\(1000000, 1000000\), expected \(3, 4\)"),
    ],
)
def test_values_that_no_parameter_can_have_are_refused(name, value, reason):
    model = tiny()
    with pytest.raises(WeightsError, match=rf"file does not fit the model: .*{reason}"):
        load_checked(model, tiny(seed=1).state_dict() | {name: value}, "file")
    assert same(model, tiny())


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_other_precisions_are_converted(kind):
    stored = {name: value.to(kind) for name, value in tiny(seed=1).state_dict().items()}
    model = tiny()
    load_checked(model, stored, "file")
    assert all(torch.equal(value, stored[name].float()) for name, value in model.state_dict().items())


@pytest.fixture
def vit():
    return VisionTransformer(img_size=28, patch_size=14, embed_dim=12, depth=1, num_heads=2, num_classes=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pos_embed", None),
        ("pos_embed", torch.zeros(1, 6, 12)),
        ("pos_embed", torch.zeros(1, 10, 8)),
        ("pos_embed", torch.zeros(10, 12)),
        ("pos_embed", torch.zeros(1, 10, 12, dtype=torch.int32)),
        ("patch_embed.proj.weight", torch.zeros(12, 3, 99, 14)),
        ("patch_embed.proj.weight", None),
    ],
)
def test_embeddings_of_a_vit_that_cannot_be_resized_are_named(vit, tmp_path, name, value):
    state = vit.state_dict() | {"mask_token": torch.zeros(1, 12), "pos_embed": torch.zeros(1, 10, 12)}
    torch.save(state, tmp_path / "good.pth")
    load_backbone_weights(vit, "dinov2_vits14", str(tmp_path / "good.pth"))
    state = {k: v for k, v in state.items() if k != name} | ({} if value is None else {name: value})
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"w\.pth: {re.escape(name)} has shape"):
        load_backbone_weights(vit, "dinov2_vits14", str(tmp_path / "w.pth"))


def test_timm_loads_a_file_of_tensors_alone(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    torch.save(state, tmp_path / "w.pth")
    loaded = load_timm("test_resnet", str(tmp_path / "w.pth")).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())
    torch.save(state | {"x": Evil()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"TRAIN\.backbone_checkpoint: .*w\.pth was not loaded: it asks for .*mkdir"):
        load_timm("test_resnet", str(tmp_path / "w.pth"))
    name, value = next(iter(state.items()))
    torch.save(state | {name: torch.full_like(value, float("nan"))}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"w\.pth: {re.escape(name)} holds values that are not finite"):
        load_timm("test_resnet", str(tmp_path / "w.pth"))


@pytest.mark.parametrize("left_out", ["conv1", ""])
def test_timm_refuses_a_file_that_leaves_weights_random(tmp_path, left_out):
    """timm itself passes over what is missing where a model is made without its classifier."""
    state = {k: v for k, v in timm.create_model("test_resnet").state_dict().items() if k.startswith("fc.")}
    whole = timm.create_model("test_resnet", num_classes=0).state_dict()
    if left_out:
        state |= {k: v for k, v in whole.items() if not k.startswith(f"{left_out}.")}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth does not fit timm model test_resnet: it gives no .*weight"):
        load_timm("test_resnet", str(tmp_path / "w.pth"))


def vit_state(**changes):
    torch.manual_seed(3)
    vit = VisionTransformer(img_size=42, patch_size=14, embed_dim=12, depth=2, num_heads=2, num_classes=0)
    return vit.state_dict() | {"mask_token": torch.zeros(1, 12)} | changes


WAYS = {
    "DDP": lambda s: {"model": {f"module.{n}": v for n, v in s.items()}},
    "Lightning": lambda s: {"state_dict": {f"backbone.{n}": v for n, v in s.items()}, "epoch": 3},
    "compiled": lambda s: {f"_orig_mod.{n}": v for n, v in s.items()},
    "DINOv2's teacher": lambda s: {
        "teacher": {f"backbone.{n}": v for n, v in s.items()} | {"dino_head.last_layer.weight": torch.zeros(3, 3)}
    },
    "teacher and student": lambda s: {
        f"{who}.backbone.{n}": v + (who == "student") for who in ("student", "teacher") for n, v in s.items()
    },
    "chunks": lambda s: {re.sub(r"blocks\.(\d)\.", r"blocks.0.\1.", n): v for n, v in s.items()},
    "chunks of a teacher": lambda s: {
        "teacher": {re.sub(r"blocks\.(\d)\.", r"backbone.blocks.0.\1.", n)
                    if "blocks" in n else f"backbone.{n}": v for n, v in s.items()}
    },
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("official", [True, False])
def test_a_file_of_the_same_weights_under_a_prefix_is_read(tmp_path, way, official):
    """As trainings save it; also of a file in timm's names, and without what belongs to no backbone."""
    state = vit_state()
    if not official:
        del state["mask_token"]
    torch.save(state, tmp_path / "plain.pth")
    torch.save(WAYS[way](state), tmp_path / "w.pth")
    models = [VisionTransformer(img_size=42, patch_size=14, embed_dim=12, depth=2, num_heads=2, num_classes=0)
              for _ in range(2)]  # fmt: skip
    for model, name in zip(models, ("plain", "w"), strict=True):
        load_backbone_weights(model, "dinov2_vits14", str(tmp_path / f"{name}.pth"))
    assert same(*models) and all(torch.equal(v, state[n]) for n, v in models[0].state_dict().items())


def test_names_of_transformers_are_refused_with_what_to_take(vit, tmp_path):
    torch.save({"embeddings.patch_embeddings.projection.weight": torch.zeros(12, 3, 14, 14)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"TRAIN\.backbone_checkpoint: .*w\.pth has the names of .* transformers"):
        load_backbone_weights(vit, "dinov2_vits14", str(tmp_path / "w.pth"))


def test_a_refusal_shows_names_of_either_side_and_the_key(vit, tmp_path):
    torch.save({f"encoder.{n}": torch.zeros(1) for n in range(20)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as error:
        load_backbone_weights(vit, "dinov2_vits14", str(tmp_path / "w.pth"))
    words = (KEY, "w.pth", "missing cls_token", "unexpected encoder.0 (1,)", "unexpected encoder.2 (1,)", "more")
    assert [word for word in words if word not in str(error.value)] == []
    assert str(error.value).count("missing") == str(error.value).count("unexpected") == 3


@pytest.mark.parametrize("content", ["", "\n", "<html>", "abc  a.pth", "\udce9"])
def test_a_record_that_is_none_is_written_anew_and_that_is_said(server, fetch, caplog, content):
    server.files["a.pth"] = saved(tiny())
    fetch("a.pth")
    record = server.cache / "a.pth.sha256"
    whole = record.read_text()
    record.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert same(tiny(), fetch("a.pth"))
    assert record.read_text() == whole and "a.pth.sha256 holds no SHA-256" in caplog.text


def test_a_record_that_cannot_be_written_is_told_and_the_weights_are_used(server, fetch, caplog):
    server.files["a.pth"] = saved(tiny())
    server.cache.mkdir(parents=True)
    (server.cache / "a.pth.sha256").mkdir()
    assert same(tiny(), fetch("a.pth"))
    assert "a.pth: whether it changes later cannot be told" in caplog.text


def test_a_cache_that_cannot_be_made_names_what_moves_it(server, fetch, tmp_path):
    (tmp_path / "file").write_text("")
    torch.hub.set_dir(str(tmp_path / "file" / "hub"))
    words = r"file/hub/checkpoints for downloaded weights cannot be made .*TORCH_HOME.*TRAIN\.backbone_checkpoint"
    with pytest.raises(WeightsError, match=words):
        fetch("a.pth")


def _verified(path):
    for _ in range(20):
        verify_recorded_sha256(path)
        path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)


def test_processes_that_record_at_the_same_time_do_not_read_half_a_record(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"weights")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(_verified, [tmp_path / "a.pth"] * 8, chunksize=1)
