from __future__ import annotations

import json
import re
import resource
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from models.weight_files import read_torch, read_weights, without_code
from tests.evil import Evaluated, Evil
from utils.errors import WeightsError

KEY = "TRAIN.backbone_checkpoint"


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


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
@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 64, b"<html>", b"\x80\x02]q\x00.", bytes(range(256)) * 9]
)
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


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, {3: torch.zeros(2)}, torch.zeros(2)])
def test_file_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth holds no state dict"):
        read_weights(tmp_path / "w.pth", KEY)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("payload", "wanted"), [(Evil, r"\w+\.mkdir"), (Evaluated, "eval")])
def test_code_in_a_file_is_named_and_not_run(tmp_path, monkeypatch, payload, wanted, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save(
        tiny().state_dict() | {"a": payload()}, "w.pth", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(
        WeightsError, match=rf"{KEY}: w\.pth was not loaded: it asks for {wanted}, .*would run code"
    ):
        read_weights("w.pth", KEY)
    assert not (tmp_path / "executed").exists()


def test_no_library_unpickles_freely_within_the_block(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Evil(), "w.pth")
    with without_code(), pytest.raises(Exception, match="mkdir"):
        torch.hub.load_state_dict_from_url(
            (tmp_path / "w.pth").as_uri(), tmp_path / "hub", weights_only=False
        )
    assert not (tmp_path / "executed").exists()


def test_an_object_of_another_library_is_named(tmp_path):
    torch.save({"a": zipfile.ZipInfo()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"asks for zipfile\.ZipInfo"):
        read_torch(tmp_path / "w.pth", KEY, "training state")


ODD = {
    "expanded": (
        lambda: torch.zeros(1).expand(10**6, 10**6),
        "claims 4000000000000 bytes, and the file holds 4;",
    ),
    "meta": (lambda: torch.zeros(3, device="meta"), "has a shape and no values"),
    "sparse": (lambda: torch.eye(3).to_sparse(), r"stored as torch\.sparse_coo"),
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
        r"stored as torch\.qint8",
    ),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_plain_are_refused(tmp_path, kind):
    make, reason = ODD[kind]
    torch.save({"fine": torch.zeros(2), "odd": make()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"{KEY}: .*w\.pth: odd .*{reason}"):
        read_weights(tmp_path / "w.pth", KEY)


def rezip(path, compression, change=lambda name, content: content):
    """Write a file of torch.save anew."""
    with zipfile.ZipFile(path) as archive:
        content = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, part in content.items():
            archive.writestr(name, part)


def peak():
    """Most memory so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_file_that_would_unfold_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1 << 26)}, tmp_path / "w.pth")
    rezip(tmp_path / "w.pth", zipfile.ZIP_DEFLATED)
    before = peak()
    with pytest.raises(WeightsError, match=r"w\.pth is a compressed archive"):
        read_weights(tmp_path / "w.pth", KEY)
    assert peak() - before < 1 << 26


def test_a_storage_that_is_shorter_than_it_says_is_refused(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "w.pth")
    rezip(
        tmp_path / "w.pth",
        zipfile.ZIP_STORED,
        lambda name, part: part[:8] if "/data/" in name else part,
    )
    with pytest.raises(WeightsError, match=r"w\.pth is not a readable weights file"):
        read_weights(tmp_path / "w.pth", KEY)


def with_header(header, body):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    "content",
    [
        save({"a": torch.ones(1000)})[:-100],
        save({"a": torch.ones(1000)})[:20],
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 1 << 40) + b"{}" * 100,
        with_header(entry(shape=[1 << 40]), bytes(8)),
        with_header(entry(shape=[1 << 62, 1 << 62]), bytes(8)),
        with_header(entry(shape=[1 << 40], data_offsets=[0, 1 << 42]), bytes(8)),
        with_header(entry(data_offsets=[8, 0]), bytes(8)),
        with_header(entry(dtype="X9"), bytes(8)),
        with_header({"a": {"dtype": "F32"}}, bytes(8)),
        with_header([1, 2], bytes(8)),
    ],
)
def test_safetensors_that_promise_what_they_do_not_hold_are_refused(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    before = peak()
    with pytest.raises(
        WeightsError, match=rf"{KEY}: .*w\.safetensors is not a readable weights file"
    ):
        read_weights(tmp_path / "w.safetensors", KEY)
    assert peak() - before < 1 << 26
