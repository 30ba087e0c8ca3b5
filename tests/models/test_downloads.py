"""Official weights: fetched from an address, recorded, and checked."""

from __future__ import annotations

import hashlib
import io
import re

import pytest
import torch
from safetensors.torch import save_file

from models import package_weights, weights
from models.weights import load_backbone_weights, official_url, weights_of
from tests.models.tiny import same
from tests.models.tiny import two_layers as tiny
from utils.errors import WeightsError


def saved(seed=0):
    buffer = io.BytesIO()
    torch.save(tiny(seed).state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty torch hub cache; pip finds no package."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def fetch(cache, tmp_path, monkeypatch):
    """Load the official weights of a backbone into a fresh model, from an address of ours that
    gives a body, or nothing.
    """

    def load(file, body, name="dinov2_vits14"):
        address = tmp_path / file
        address.unlink(missing_ok=True)
        if body is not None:
            address.write_bytes(body)
        monkeypatch.setattr(weights, "official_url", lambda _: address.as_uri())
        model = tiny(9)
        load_backbone_weights(model, name, "")
        return model

    return load


def test_an_official_file_is_fetched_once_recorded_and_must_not_change(cache, fetch):
    assert same(tiny(), fetch("a.pth", saved())) and same(tiny(), fetch("a.pth", None))
    record = (cache / "a.pth.sha256").read_text()
    assert record.split() == [hashlib.sha256(saved()).hexdigest(), "a.pth"]
    (cache / "a.pth").write_bytes(saved(seed=1))
    with pytest.raises(WeightsError, match=r"a\.pth has changed since its download.*delete both"):
        fetch("a.pth", None)


def test_an_official_file_that_can_be_had_again_takes_the_place_of_a_package(cache, fetch):
    """Where it is asked for: a backbone that is loaded waits for no connection."""
    cache.mkdir(parents=True)
    save_file(tiny(1).state_dict(), cache / package_weights.FILE)
    assert same(tiny(1), fetch("a.pth", saved()))
    assert weights_of("dinov2_vits14", renew=True).path == cache / "a.pth"
    assert same(tiny(), fetch("a.pth", None))


@pytest.mark.parametrize("body", [None, saved()[:900], b"<!doctype html><html>Log in</html>"])
def test_a_failed_download_leaves_no_file_and_names_address_and_remedies(cache, fetch, body):
    """A file placed by hand needs no connection."""
    words = rf"dinov2_vits14 .*{cache} .*file:.*a\.pth .*backbone_checkpoint .*TORCH_HOME"
    with pytest.raises(WeightsError, match=words):
        fetch("a.pth", body)
    assert list(cache.iterdir()) == []
    (cache / "a.pth").write_bytes(saved())
    assert same(tiny(), fetch("a.pth", None))


def test_the_checksum_in_a_torchvision_name_is_checked(cache, fetch):
    digest = hashlib.sha256(saved()).hexdigest()[:8]
    assert same(tiny(), fetch(f"resnet50-{digest}.pth", saved(), "resnet50"))
    with pytest.raises(WeightsError, match=r"invalid hash value"):
        fetch("resnet50-00000000.pth", saved(), "resnet50")
    assert not (cache / "resnet50-00000000.pth").exists()


@pytest.mark.parametrize(
    ("name", "address"),
    [("dinov2_vitb14", "dl.fbaipublicfiles.com/.*/dinov2_vitb14/dinov2_vitb14_pretrain.pth"),
     ("dinov2_vits14_reg", "dl.fbaipublicfiles.com/.*/dinov2_vits14_reg4_pretrain.pth"),
     ("wideresnet50", "download.pytorch.org/models/wide_resnet50_2-95faca4d.pth")],
)  # fmt: skip
def test_addresses_are_those_of_the_publishers(name, address):
    assert re.fullmatch(f"https://{address}", official_url(name))
