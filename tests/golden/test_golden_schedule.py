"""The learning rate, that of the original implementation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tools.training.steps import polynomial_factor

GOLDEN = Path(os.environ.get("SOFS_GOLDEN", Path(__file__).parents[2] / ".." / "shared" / "golden"))
if not GOLDEN.is_dir():
    pytest.skip(f"no golden figures in {GOLDEN}; set SOFS_GOLDEN", allow_module_level=True)


def test_polynomial_decay_of_both_groups(golden):
    case = golden("lr_schedule")
    base = 1e-5
    assert float(case["base_lr"]) == np.float32(base)
    for iteration, transformer, rest in case["rows_f64"]:
        factor = polynomial_factor(int(iteration), int(case["max_iter"]), power=0.9)
        np.testing.assert_allclose(
            [base * factor, 2 * base * factor], [transformer, rest], rtol=1e-12, atol=1e-20
        )
