from __future__ import annotations

import pytest
import torch

from datasets.views import SupportSet
from tests.helpers import tiny_config, untrained_predictor


@pytest.fixture(scope="module")
def predictor(surfaces, tmp_path_factory):
    """A predictor of an untrained head and of the prior, with windows of 64 pixels."""
    return untrained_predictor(tiny_config(surfaces, tmp_path_factory.mktemp("unused")))


@pytest.fixture
def supports():
    """Five views (5, 3, 64, 64) and their masks."""
    masks = torch.zeros(5, 64, 64, dtype=torch.uint8)
    masks[:, 10:30, 20:50] = 1
    images = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return SupportSet(images, masks, 64)


@pytest.fixture
def passes(predictor):
    """Batch sizes of the backbone's forward passes, in their order."""
    sizes = []
    hook = predictor.backbone.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    yield sizes
    hook.remove()
