"""Builders of tiny data sets and settings, and jobs that other processes can import."""

from __future__ import annotations

import json
import logging
import os
import resource
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from datasets.build import build_test_index, build_train_index
from datasets.readers import vision_v1
from datasets.samples import load_or_build
from method_config import load_config
from models.build import build_model, with_baseline
from models.weights import BACKBONES, load_backbone_weights
from tools.evaluator import SplitTest
from tools.predictor import Predictor
from tools.trainer import train_epochs
from tools.training.state import Training
from utils.distributed import is_main, rank, world_size
from utils.run_folder import create_run_folder

SIZE = (96, 128)
# height, width, grey value
DEFECTS = {"spot": (8, 8, 250), "line": (2, 36, 10), "stain": (60, 60, 200)}
# as the scripts name them
JOBS = {"train": "tools.trainer:run_training", "test": "tools.evaluator:run_test"}
TWO_CLASSES = {"spot": 4, "line": 4}
TINY = {
    "RUN_NAME": "run",
    "DATASET.train_objects": ["Plate"],
    "DATASET.test_objects": ["Disk"],
    "DATASET.image_size": 64,
    "DATASET.mask_size": 64,
    "DATASET.crop_size": 64,
    "DATASET.crop_ratio": [1.0, 1.0],
    "DATASET.s_in_shot": 2,
    "DATASET.normal_sample_sampling_prob": 0.2,
    "TRAIN.backbone": "efficientnet_lite0",
    "TRAIN.SOFS.vit_patch_size": 8,
    "TRAIN.SOFS.prior_layer_pointer": [1, 2, 3],
    "TRAIN.SOFS.reduce_dim": 16,
    "TRAIN.SOFS.transformer_embed_dim": 16,
    "TRAIN.SOFS.smooth_r": 1.0,
    "TRAIN_SETUPS.batch_size": 4,
    "TRAIN_SETUPS.num_workers": 0,
    "TRAIN_SETUPS.learning_rate": 1e-3,
    "TRAIN_SETUPS.epochs": 2,
    "TRAIN_SETUPS.TEST_SETUPS.epoch_test": 50,
    "TEST_SETUPS.batch_size": 1,
    "TEST.VISUALIZE.save_figure": False,
}
# of `tiny_config`: a head that starts as good as the score and is then spoilt by large steps
EARLY_BEST = {"TRAIN__SOFS__prior_residual": True, "TRAIN_SETUPS__learning_rate": 1.0}


def surface(shape, rng):
    """A textured grey image, (h, w, 3) uint8."""
    grain = rng.normal(0, 12, shape)
    return np.repeat(np.clip(120 + grain, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def draw_defect(image, kind, rng):
    """Draw a defect into an image; return its box (top, bottom, left, right)."""
    height, width, value = DEFECTS[kind]
    top, left = (int(rng.integers(0, n)) for n in np.subtract(image.shape[:2], (height, width)))
    image[top : top + height, left : left + width] = value
    return top, top + height, left, left + width


def write_product(root, name, counts=None, size=SIZE):
    """Write a product in the layout of VISION V1: per category `counts` images, each with one
    defect, the last in val/; returns their paths."""
    rng, paths = np.random.default_rng(zlib.crc32(name.encode())), []
    counts = counts or TWO_CLASSES
    names = [(kind, i) for kind, count in counts.items() for i in range(count)]
    for part in ("train", "val"):
        members = [n for n in names if (n[1] == counts[n[0]] - 1) == (part == "val")]
        folder = Path(root) / name / part
        folder.mkdir(parents=True)
        categories = [{"id": i, "name": kind} for i, kind in enumerate(counts)]
        content = {"images": [], "annotations": [], "categories": categories}
        for number, (kind, i) in enumerate(members):
            image = surface(size, rng)
            top, bottom, left, right = draw_defect(image, kind, rng)
            paths.append(folder / f"{kind}_{i}.png")
            Image.fromarray(image).save(paths[-1])
            corners = [left, top, right - 1, top, right - 1, bottom - 1, left, bottom - 1]
            entry = {"id": number, "file_name": paths[-1].name}
            content["images"].append(entry | {"height": size[0], "width": size[1]})
            mark = {"category_id": list(counts).index(kind), "segmentation": [corners]}
            content["annotations"].append({"id": number, "image_id": number} | mark)
        (folder / vision_v1.ANNOTATIONS).write_text(json.dumps(content))
    return paths


def read_index(root, *objects):
    """Index of products below a root in the layout of VISION V1."""
    return load_or_build(vision_v1, "VISION_V1", root, objects, "unused", save=False, load=False)


def tiny_config(root, output, **changes):
    """A small config over a root with the products Plate and Disk; keys of changes with `__` for
    the dots."""
    values = TINY | dict.fromkeys(("TRAIN.dataset_path", "TEST.dataset_path"), str(root))
    values |= {"OUTPUT_DIR": str(output)} | {
        key.replace("__", "."): value for key, value in changes.items()
    }
    return load_config([], [part for pair in values.items() for part in pair])


@contextmanager
def own_logging():
    """Keep the log handlers of the tests from those that a job sets up."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in [h for h in root.handlers if h not in handlers]:
            root.removeHandler(handler)
            handler.close()
        for handler in [h for h in handlers if h not in root.handlers]:
            root.addHandler(handler)
        root.setLevel(level)


def untrained_predictor(cfg):
    """A predictor of a randomly initialised head, always the same, and of the prior."""
    torch.manual_seed(0)
    return Predictor.from_config(cfg, with_baseline(cfg, build_model(cfg)), torch.device("cpu"))


def write_other_weights(path):
    """Weights of the tiny configs' backbone, of which one tensor is larger; returns the path."""
    model = timm.create_model(BACKBONES[TINY["TRAIN.backbone"]], num_classes=0)
    load_backbone_weights(model, TINY["TRAIN.backbone"], "")
    with torch.no_grad():
        model.conv_stem.weight.mul_(1.01)
    torch.save(model.state_dict(), path)
    return str(path)


def training_of(root, folder, **changes):
    """The training of a small config, in its own folder."""
    cfg = tiny_config(root, folder, **changes)
    return Training(cfg, build_train_index(cfg), folder)


def loss_of(run, batch):
    """Loss of a training on a batch, without dropout and without a step."""
    run.model.eval()
    with torch.no_grad():
        return float(run.loss(batch)[0])


def train_without_dropout(cfg, folder):
    """Job: train and test; keep the gradients of the last step in grads.pth."""
    run = Training(cfg, build_train_index(cfg), folder)
    for module in run.model.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.0
    create_run_folder(folder, cfg)
    train_epochs(run, [SplitTest(cfg, build_test_index(cfg), folder, "original")])
    if is_main():
        grads = {n: p.grad for n, p in run.model.head.named_parameters()}
        torch.save(grads, folder / "grads.pth")


def signalled(cfg, folder, number, step):
    """Job: resume or begin a training whose last process gets a signal in one of its steps."""
    run = Training(cfg, build_train_index(cfg), folder)

    def note(module, args):
        if run.epoch * run.batches.per_epoch + run.step == step and rank() == world_size() - 1:
            os.kill(os.getpid(), number)

    run.loss.register_forward_pre_hook(note)
    train_epochs(run)


@contextmanager
def largest_file(size):
    """A block in which the system refuses to write larger files, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def picture(height, width, seed=0):
    """A random image, (h, w, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def spotted(size, seed, spots, side=6):
    """A random image with bright spots at (top, left), and its mask."""
    image, mask = picture(*size, seed=seed) // 2, np.zeros(size, np.uint8)
    for top, left in spots:
        image[top : top + side, left : left + side] = 250
        mask[top : top + side, left : left + side] = 1
    return image, mask


def variant(predictor, **changes):
    """A predictor of the same methods with other options."""
    return Predictor(predictor.methods, predictor.settings, torch.device("cpu"), **changes)


def ask(predictor, image, memory=None):
    """Answers by method, by the predictor's memory or another one."""
    return next(predictor.segment([(image, [memory or predictor.memory])])).answers[0]
