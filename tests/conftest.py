from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from models.backbone import Backbone
from models.head import Head
from models.methods.sofs import SOFS
from models.weights import resize_position_embedding
from tests.helpers import own_logging, write_product
from tools.checkpoint import head_state

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(scope="session")
def golden():
    """Arrays of one golden file, by its name."""
    folder = Path(__file__).parent / "golden" / "arrays"

    def read(name):
        with np.load(folder / f"{name}.npz") as arrays:
            return dict(arrays)

    return read


@pytest.fixture(scope="session")
def tensors(golden):
    """As `golden`, as tensors; texts stay numpy arrays."""

    def read(name):
        return {k: v if v.dtype.kind == "U" else torch.tensor(v) for k, v in golden(name).items()}

    return read


@pytest.fixture(scope="session")
def golden_vit(tensors):
    """The tiny ViT of the golden figures for square images of a given side."""

    def build(image_size=70):
        sizes = {"patch_size": 14, "embed_dim": 48, "depth": 12, "num_heads": 3}
        vit = VisionTransformer(image_size, **sizes, init_values=1e-5, num_classes=0)
        vit.pretrained_cfg = IMAGENET
        state = {k.removeprefix("backbone."): v for k, v in tensors("state_dict").items()
                 if k.startswith("backbone.") and k != "backbone.mask_token"}  # fmt: skip
        grid = vit.patch_embed.grid_size
        state["pos_embed"] = resize_position_embedding(state["pos_embed"], grid)
        vit.load_state_dict(state)
        return vit.eval()

    return build


@pytest.fixture(scope="session")
def golden_model(tensors, golden_vit):
    """The tiny SOFS of the golden figures, in eval mode; options go to SOFS."""

    def build(meta_cls=True, **options):
        state = tensors("state_dict")
        if not meta_cls:
            state = {k: v for k, v in state.items() if ".support_prototype." not in k}
            state |= tensors("state_dict_metacls0_extra")
        head = Head(6 * 48, 12, reduce_dim=32, embed_dim=32, meta_cls=meta_cls)
        head.load_state_dict(head_state(state))
        return SOFS(Backbone(golden_vit(), range(5, 11), 14), head, **options).eval()

    return build


@pytest.fixture(scope="session", autouse=True)
def _fork_server():
    """Processes that tests start have PyTorch from the beginning, which takes seconds to import."""
    multiprocessing.set_forkserver_preload(["tests.helpers"])
    forkserver.ensure_running()


@pytest.fixture(autouse=True)
def _own_logging():
    with own_logging():
        yield


@pytest.fixture(scope="session")
def surfaces(tmp_path_factory):
    """Root of two products, Plate and Disk, in the layout of VISION V1; only to be read."""
    root = tmp_path_factory.mktemp("surfaces")
    for name in ("Plate", "Disk"):
        write_product(root, name)
    return root


@pytest.fixture
def one_thread(monkeypatch):
    """One thread per process, however many there are: sums over several threads round otherwise."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
