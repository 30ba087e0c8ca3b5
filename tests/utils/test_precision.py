from __future__ import annotations

import logging

import pytest
import torch

from utils import warn_once
from utils.precision import arithmetic

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("unit", "fastest", "imitated"),
    [
        ("avx2", "fp32", {"bf16", "fp16"}),
        ("avx512_bf16", "bf16", {"fp16"}),
        ("amx_fp16", "fp32", {"bf16"}),
    ],
)
def test_auto_is_what_a_cpu_computes_itself_and_a_warning_names_what_it_imitates(
    monkeypatch, caplog, unit, fastest, imitated
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {unit: True, "amx_bf16": False})
    monkeypatch.setattr(warn_once, "_given", set())
    with caplog.at_level(logging.WARNING):
        assert arithmetic(CPU, "auto") == fastest
        for precision in ("fp32", "bf16", "fp16", "bf16", "fp16"):
            assert arithmetic(CPU, precision) == precision
    assert [m.split()[2].rstrip(",") for m in caplog.messages] == sorted(imitated)
