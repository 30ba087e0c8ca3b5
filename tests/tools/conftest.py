from __future__ import annotations

import pytest

from tests.helpers import tiny_config, untrained_predictor


@pytest.fixture(scope="module")
def predictor(surfaces, tmp_path_factory):
    """A predictor of an untrained head and of the prior on one efficientnet_lite0, windows of 64 pixels."""
    return untrained_predictor(tiny_config(surfaces, tmp_path_factory.mktemp("unused")))
