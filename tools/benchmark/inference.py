"""How much more than the bare backbone an image costs, from file to mask file, and how many passes it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from models.sofs import SOFS, SupportMemory
from models.support_tokens import SupportTokens
from torch import Tensor, nn
from yacs.config import CfgNode

from datasets.images import read_image
from datasets.views import prepare_image
from datasets.windows import tile
from models.backbone import Backbone
from models.build import build_model
from models.comparison import Comparison
from models.priors import unit_tokens
from tools.benchmark.figures import AT_LEAST, AT_MOST, EXACTLY, Figure
from tools.predictor import Predictor
from utils.precision import arithmetic, autocast
from utils.visualize import write_image

SECTION = "inference"
BOUNDED = 512  # background tokens of the bounded memory
PUBLISHED_SHOTS = 4  # support views that the published code encodes beside every window
PUBLISHED_BATCH = 4  # windows of its batch
TINY = 1e-12
Size = tuple[int, int]


def random_predictor(cfg: CfgNode) -> Predictor:
    """A predictor with a random head, which takes as long as a trained one; the baseline is left out."""
    torch.manual_seed(cfg.RNG_SEED)
    return Predictor.from_config(cfg, {"SOFS": build_model(cfg)})


def with_memory(predictor: Predictor, cfg: CfgNode, tokens: int) -> Predictor:
    """A predictor of the same method that keeps so many background tokens; 0: all."""
    changed = cfg.clone()
    changed.defrost()
    changed.TEST.memory_tokens = tokens
    return Predictor.from_config(changed, predictor.methods)


def background_tokens(memory: SupportMemory) -> int:
    """How many tokens without a marked pixel a memory holds."""
    return memory.known.keys[0].shape[1] - memory.known.share.shape[1]


def random_image(size: Size, seed: int = 0) -> np.ndarray:
    """Smooth random pixels (h, w, 3) uint8, which compress about as photographs do."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(1, size[0] // 8), max(1, size[1] // 8), 3), np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def teach(predictor: Predictor, supports: int = 1) -> None:
    """Show the predictor a small square in each of `supports` images of four windows' size."""
    side = 2 * predictor.settings.crop_size
    mask = np.zeros((side, side), np.uint8)
    mask[side // 3 : side // 3 + side // 20, side // 2 : side // 2 + side // 20] = 1
    predictor.set_support(
        [random_image((side, side), seed=1 + i) for i in range(supports)], [mask] * supports
    )


def measure_inference(
    cfg: CfgNode, sizes: list[Size], *, repeats: int, most: tuple[float, float]
) -> list[Figure]:
    """Figures of whole images beside the bare backbone on the same windows, in turn within one run.

    Args:
        cfg: the config; weights may be random.
        sizes: (h, w) of the images.
        repeats: of each measurement. Each time is held against the bare backbone right before and after it, as the
            speed of a machine drifts, and the median of these ratios is what counts.
        most: bounds of the time in backbones, with all support tokens and with `BOUNDED` of them.
    """
    predictor, figures = random_predictor(cfg), []
    asked = {
        "exact": with_memory(predictor, cfg, 0),
        f"{BOUNDED} tokens": with_memory(predictor, cfg, BOUNDED),
    }
    for one in asked.values():
        teach(one)
    kept = background_tokens(asked[f"{BOUNDED} tokens"].memory)
    figures.append(
        Figure(
            SECTION, "background tokens of the bounded memory", kept, bound=BOUNDED, kind=EXACTLY
        )
    )
    with TemporaryDirectory(prefix="sofs_benchmark_") as folder:
        for size in sizes:
            file = Path(folder) / f"{size[0]}x{size[1]}.jpg"
            cv2.imwrite(str(file), random_image(size))
            figures += _one_size(asked, file, size, repeats, most)
    return figures


def _one_size(
    asked: dict[str, Predictor], file: Path, size: Size, repeats: int, most: tuple[float, float]
) -> list[Figure]:
    predictor = next(iter(asked.values()))
    windows = _windows(predictor, read_image(file))
    ratios: dict[str, list[float]] = {name: [] for name in asked}
    bare, passes = [_seconds(lambda: _bare(predictor, windows), predictor.device)], []
    for _ in range(repeats):
        for name, taught in asked.items():
            with counted_passes(taught.backbone) as count:
                taken = _seconds(lambda taught=taught: _file_to_file(taught, file), taught.device)
            bare.append(_seconds(lambda: _bare(predictor, windows), predictor.device))
            ratios[name].append(2 * taken / (bare[-2] + bare[-1]))
            passes.append(sum(count))
    label = f"{size[0]} x {size[1]}"
    precision = arithmetic(predictor.device, predictor.precision)
    return [
        Figure(SECTION, f"{label}: windows", len(windows)),
        Figure(
            SECTION,
            f"{label}: backbone passes",
            max(passes, key=lambda p: abs(p - len(windows))),
            bound=len(windows),
            kind=EXACTLY,
        ),
        Figure(
            SECTION,
            f"{label}: bare backbone, {precision}",
            len(windows) / median(bare),
            "windows/s",
        ),
        *(
            Figure(
                SECTION,
                f"{label}: file to mask file, {name}, in backbones",
                median(ratios[name]),
                bound=bound,
                kind=AT_MOST,
            )
            for name, bound in zip(asked, most, strict=True)
        ),
    ]


def measure_published(cfg: CfgNode, size: Size, *, repeats: int, least: float) -> list[Figure]:
    """Our time for an image beside that of the published schedule, in turn within one run.

    The published schedule encodes the supports again for every window of each batch of four, runs all blocks of the
    backbone, takes two products with all support tokens per layer, has all of them take part in the fusion, and
    computes in fp32.

    Args:
        cfg: the config; weights may be random.
        size: (h, w) of the image.
        repeats: of each measurement; the least times are compared.
        least: bound of published over ours.
    """
    predictor = random_predictor(cfg)
    model = build_model(cfg).to(predictor.device).eval()
    image = random_image(size)
    windows = torch.stack(_windows(predictor, image))
    teach(predictor)
    side = predictor.settings.image_size
    supports = torch.randn(
        1, PUBLISHED_SHOTS, 3, side, side, generator=torch.Generator().manual_seed(0)
    )
    masks = torch.zeros(1, PUBLISHED_SHOTS, side, side)
    masks[..., side // 3 : side // 3 + side // 10, side // 3 : side // 3 + side // 10] = 1
    ways = {
        "ours": lambda: predictor.predict(image),
        "published": lambda: published_schedule(
            model,
            windows.to(predictor.device),
            *(t.to(predictor.device) for t in (supports, masks)),
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    predictor.predict(
        image
    )  # the first time is dearer; so is that of the others, but by little beside their length
    for _ in range(repeats):
        for name, way in ways.items():
            times[name].append(_seconds(way, predictor.device))
    label = f"{size[0]} x {size[1]}, {len(windows)} windows"
    return [
        Figure(SECTION, f"{label}: ours", min(times["ours"]), "s"),
        Figure(SECTION, f"{label}: published schedule", min(times["published"]), "s"),
        Figure(
            SECTION,
            f"{label}: published schedule / ours",
            min(times["published"]) / min(times["ours"]),
            bound=least,
            kind=AT_LEAST,
        ),
    ]


class _AllBlocks(nn.Module):
    """A backbone that runs to its end, as the published code does."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.stride = backbone, backbone.stride

    def forward(self, images: Tensor) -> list[Tensor]:
        own = self.backbone
        return own.model.forward_intermediates(
            images,
            indices=own.layers,
            norm=False,
            stop_early=False,
            output_fmt="NCHW",
            intermediates_only=True,
        )


class _TwoProducts(Comparison):
    """Priors as the published code computes them: a product with all support tokens for either of the two.

    Args:
        features: per layer (B, C_l, h, w) of the windows.
        supports: per layer (B * K, C_l, h, w), those of each window.
        share: (B, K, h, w).
    """

    def __init__(self, features: list[Tensor], supports: list[Tensor], share: Tensor) -> None:
        share = share.flatten(1)
        super().__init__(features, SupportTokens([], share, [], share > 0, [], None))
        self.supports = supports

    def priors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        share, semantic, abnormal = self.known.share, [], []
        for query, support in zip(self.features, self.supports, strict=True):
            q, s = (
                unit_tokens(query),
                unit_tokens(support).unflatten(0, (len(query), -1)).flatten(1, 2),
            )
            alike = (q @ (s * (share > 0).unsqueeze(-1)).transpose(1, 2)).unflatten(
                -1, (weight.shape[1], -1)
            )
            semantic.append(alike.amax(-1).mean(-1))
            abnormal.append(1 - (q @ (s * (1 - share).unsqueeze(-1)).transpose(1, 2)).amax(-1))
        return torch.stack(semantic, 1).unflatten(-1, self.grid), torch.stack(
            abnormal, 1
        ).unflatten(-1, self.grid)


@torch.inference_mode()
def published_schedule(model: SOFS, windows: Tensor, supports: Tensor, masks: Tensor) -> Tensor:
    """Probabilities (B, H, W) of windows (B, 3, H, W), the supports (1, K, 3, H, W) encoded anew for each of them."""
    whole, share, answers = _AllBlocks(model.backbone), model.shares(masks), []
    for part in windows.split(PUBLISHED_BATCH):
        views = supports.expand(len(part), -1, -1, -1, -1).flatten(0, 1)
        features = [
            torch.cat(layer)
            for layer in zip(*map(whole, views.split(PUBLISHED_BATCH)), strict=True)
        ]
        shares = share.expand(len(part), -1, -1, -1)
        summary = model.summarise(
            features, shares.clamp(min=TINY)
        )  # so all tokens take part in the fusion
        answers.append(
            model.answer(_TwoProducts(whole(part), features, shares), summary, part.shape[-2:])
        )
    return torch.cat(answers)


def _windows(predictor: Predictor, image: np.ndarray) -> list[Tensor]:
    """Network inputs (3, S, S) of the windows of an image."""
    boxes = tile(*image.shape[:2], predictor.settings.crop_size, predictor.overlap)
    return [prepare_image(image[t:b, le:r], predictor.settings.image_size) for t, b, le, r in boxes]


@torch.inference_mode()
def _bare(predictor: Predictor, windows: list[Tensor]) -> None:
    with autocast(predictor.device, predictor.precision):
        for start in range(0, len(windows), predictor.window_batch):
            predictor.backbone(
                torch.stack(windows[start : start + predictor.window_batch]).to(predictor.device)
            )


def _file_to_file(predictor: Predictor, file: Path) -> None:
    (prediction,) = predictor.predict_many([file])
    write_image(file.with_suffix(".mask.png"), prediction.mask.astype(np.uint8) * 255)


@contextmanager
def counted_passes(backbone: nn.Module) -> Iterator[list[int]]:
    """Images of each pass through a backbone, in order."""
    sizes: list[int] = []
    hook = backbone.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    try:
        yield sizes
    finally:
        hook.remove()


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, all that it started on the device included."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
