"""What an image costs beside the bare backbone: time, passes and memory, from file to mask file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from datasets.images import read_image
from datasets.views import prepare_image
from datasets.windows import tile
from models.build import build_method
from models.comparison import Comparison
from models.memory import Memory, label
from models.methods.sofs import SOFS
from models.priors import unit_tokens
from tools.benchmark.figures import AT_LEAST, EXACTLY, Figure, clock, counted_passes
from tools.open_domain import write_answers
from tools.predictor import Predictor
from utils.precision import arithmetic, autocast
from utils.visualize import write_image

BOUNDED = 512  # background tokens of the bounded memory
WINDOWS = 4  # of a pass
PUBLISHED_VIEWS = 4  # support views that the published code encodes beside every window
PUBLISHED_BATCH = 4  # windows of its batch
TINY = 1e-12
MOST_MEMORY, MOST_TIME, MOST_SUPPORTS = 200, 1.10, 1.3
Size = tuple[int, int]


def random_predictor(cfg: CfgNode, memory_tokens: int | None = None) -> Predictor:
    """A predictor of a random head alone, which takes as long as a trained one.

    It keeps `memory_tokens` background tokens; None: as many as the config says.
    """
    torch.manual_seed(cfg.RNG_SEED)
    cfg = cfg.clone()
    cfg.defrost()
    if memory_tokens is not None:
        cfg.TEST.memory_tokens = memory_tokens
    return Predictor.from_config(cfg, {SOFS.name: build_method(cfg, SOFS.name)})


def random_image(size: Size, seed: int = 0) -> np.ndarray:
    """Smooth random pixels (h, w, 3) uint8, which compress about as photographs do."""
    small = (max(1, size[0] // 8), max(1, size[1] // 8), 3)
    pixels = np.random.default_rng(seed).integers(0, 256, small, np.uint8)
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_CUBIC)


def teach(predictor: Predictor, supports: int = 1) -> Memory:
    """Show the predictor a small square in each of `supports` images of four windows' size."""
    side = 2 * predictor.settings.crop_size
    mask = np.zeros((side, side), np.uint8)
    mask[side // 3 : side // 3 + side // 20, side // 2 : side // 2 + side // 20] = 1
    images = [random_image((side, side), seed=1 + i) for i in range(supports)]
    return predictor.set_support(images, [mask] * supports)


def measure_inference(
    cfg: CfgNode, size: Size, *, repeats: int, most: tuple[float, float]
) -> list[Figure]:
    """Figures of an image of `size` (h, w) beside the bare backbone on the same windows.

    Each time is held against the bare backbone right before and after it, as the speed of a machine
    drifts, and the median of these ratios counts. `most` bounds it with all support tokens and with
    `BOUNDED` of them.
    """
    exact, bounded = random_predictor(cfg, 0), random_predictor(cfg, BOUNDED)
    teach(exact)
    kept = teach(bounded).background[0].shape[1]
    asked = {"exact": exact, f"{BOUNDED} tokens": bounded}
    ratios: dict[str, list[float]] = {name: [] for name in asked}
    passes: list[int] = []
    with TemporaryDirectory(prefix="sofs_benchmark_") as folder:
        file = Path(folder) / "image.jpg"
        cv2.imwrite(str(file), random_image(size))
        windows = windows_of(exact, read_image(file))
        bare = [_seconds(lambda: encode_windows(exact, windows), exact)]
        for _ in range(repeats):
            for name, predictor in asked.items():
                with counted_passes(predictor.backbone) as count:
                    taken = _seconds(lambda p=predictor: file_to_file(p, file), predictor)
                bare.append(_seconds(lambda: encode_windows(exact, windows), exact))
                ratios[name].append(2 * taken / (bare[-2] + bare[-1]))
                passes.append(sum(count))
    number = len(windows)
    worst = max(passes, key=lambda count: abs(count - number))
    speed, precision = number / median(bare), arithmetic(exact.device, exact.precision)
    figures = [
        ("background tokens kept", kept, "", BOUNDED, EXACTLY),
        ("windows", number),
        ("backbone passes", worst, "", number, EXACTLY),
        (f"bare backbone, {precision}", speed, "windows/s"),
    ]
    for (name, values), bound in zip(ratios.items(), most, strict=True):
        figures.append((f"file to mask file, {name}, in backbones", median(values), "", bound))
    about = f"{size[0]} x {size[1]}"
    return [Figure("inference", f"{about}: {name}", *rest) for name, *rest in figures]


@torch.inference_mode()
def measure_windows(cfg: CfgNode, *, repeats: int, most: float) -> list[Figure]:
    """A pass of windows with comparing and head, beside its own time in the backbone; the median of
    the ratios is bounded by `most`. `TEST.support_tokens` background tokens are kept.
    """
    predictor = random_predictor(cfg)
    (method,) = predictor.methods.values()
    memory, side = teach(predictor), predictor.settings.image_size
    windows = torch.randn(WINDOWS, 3, side, side).to(predictor.device)
    ratios = []
    for _ in range(1 + repeats):
        with autocast(predictor.device, predictor.precision):
            start = clock(predictor.device)
            features = predictor.backbone(windows)
            bare = clock(predictor.device) - start
            method.answer(Comparison(features, memory), (side, side))
        ratios.append((clock(predictor.device) - start) / bare)
    kept, asked = memory.background[0].shape[1], cfg.TEST.support_tokens
    return [
        Figure("inference", "general head: background tokens kept", kept, "", asked, EXACTLY),
        Figure("inference", "general head: windows, in backbones", median(ratios[1:]), "", most),
    ]


def measure_published(cfg: CfgNode, size: Size, *, repeats: int, least: float) -> list[Figure]:
    """Our time for an image of `size` (h, w) beside that of the published schedule, in turn.

    The published schedule encodes the supports again for every window of each batch of four, runs
    all blocks of the backbone, takes two products with all support tokens per layer, has all of
    them take part in the fusion, and computes in fp32. The least times are compared.
    """
    predictor, image = random_predictor(cfg), random_image(size)
    model = build_method(cfg, SOFS.name).to(predictor.device).eval()
    teach(predictor)
    windows = torch.stack(windows_of(predictor, image)).to(predictor.device)
    side = predictor.settings.image_size
    supports = torch.randn(1, PUBLISHED_VIEWS, 3, side, side).to(windows.device)
    masks = torch.zeros(1, PUBLISHED_VIEWS, side, side, device=windows.device)
    masks[..., side // 3 : side // 3 + side // 10, side // 3 : side // 3 + side // 10] = 1
    predictor.predict(image)  # the first time is dearer
    ours, published = [], []
    for _ in range(repeats):
        ours.append(_seconds(lambda: predictor.predict(image), predictor))
        schedule = lambda: published_schedule(model, windows, supports, masks)  # noqa: E731
        published.append(_seconds(schedule, predictor))
    figures = [
        ("ours", min(ours), "s"),
        ("published schedule", min(published), "s"),
        ("published schedule / ours", min(published) / min(ours), "", least, AT_LEAST),
    ]
    about = f"{size[0]} x {size[1]}, {len(windows)} windows"
    return [Figure("published", f"{about}: {name}", *rest) for name, *rest in figures]


class _TwoProducts(Comparison):
    """Priors as the published code computes them: either by a product with all support tokens.

    Per layer, features are (B, C_l, h, w) of the windows and supports (B * K, C_l, h, w) those of
    each window; share is (B, K, h, w).
    """

    def __init__(self, features: list[Tensor], supports: list[Tensor], share: Tensor) -> None:
        super().__init__(features, label(supports, share))
        self.supports, self.share = supports, share.flatten(1)

    def semantic_prior(self, weight: Tensor) -> Tensor:
        marked, maps = (self.share > TINY).unsqueeze(-1), []
        for query, support in self._tokens():
            alike = query @ (support * marked).transpose(1, 2)
            maps.append(alike.unflatten(-1, (weight.shape[1], -1)).amax(-1).mean(-1))
        return torch.stack(maps, 1).unflatten(-1, self.grid)

    @property
    def abnormal_prior(self) -> Tensor:
        normal = (1 - self.share).unsqueeze(-1)
        maps = [1 - (q @ (s * normal).transpose(1, 2)).amax(-1) for q, s in self._tokens()]
        return torch.stack(maps, 1).unflatten(-1, self.grid)

    def _tokens(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Per layer those of the windows and of the supports of each."""
        for query, support in zip(self.features, self.supports, strict=True):
            stacked = unit_tokens(support).unflatten(0, (len(query), -1)).flatten(1, 2)
            yield unit_tokens(query), stacked


@torch.inference_mode()
def published_schedule(model: SOFS, windows: Tensor, supports: Tensor, masks: Tensor) -> Tensor:
    """Log-odds (B, h, w) of windows (B, 3, H, W) with supports (1, K, 3, H, W) and their masks
    (1, K, H, W)."""
    share, answers = model.shares(masks).clamp(min=TINY), []

    def whole(images: Tensor) -> list[Tensor]:
        return model.backbone.model.forward_intermediates(
            images, indices=model.backbone.layers, norm=False, output_fmt="NCHW",
            intermediates_only=True, stop_early=False,
        )  # fmt: skip

    for part in windows.split(PUBLISHED_BATCH):
        views = supports.expand(len(part), -1, -1, -1, -1).flatten(0, 1)
        encoded = map(whole, views.split(PUBLISHED_BATCH))
        features = [torch.cat(layer) for layer in zip(*encoded, strict=True)]
        shares = share.expand(len(part), -1, -1, -1)  # above 0: all tokens take part in the fusion
        compared = _TwoProducts(whole(part), features, shares)
        answers.append(model.token_logits(compared, model.encode(features, shares)))
    return torch.cat(answers)


def measure_supports(cfg: CfgNode, supports: int, windows: int, *, slack: float) -> list[Figure]:
    """Time per window with many supports beside that with one, both with bounded memory, in turn.

    `slack` is a factor on the bound.
    """
    predictor = random_predictor(cfg)
    memories = [teach(predictor, count) for count in (1, supports)]
    image = random_image((memories[0].window, windows * memories[0].window))
    times: list[list[float]] = [[], []]
    for _ in range(3):
        for seconds, predictor.memory in zip(times, memories, strict=True):
            seconds.append(_seconds(lambda: predictor.predict(image), predictor))
    kept, ratio = memories[1].background[0].shape[1], min(times[1]) / min(times[0])
    name, tokens = f"time per window, {supports} supports over 1", cfg.TEST.memory_tokens
    return [
        Figure("growth", f"background tokens, {supports} supports", kept, "", tokens),
        Figure("growth", name, ratio, "", MOST_SUPPORTS * slack),
    ]


def measure_growth(cfg: CfgNode, counts: tuple[int, int, int], *, slack: float) -> list[Figure]:
    """Peak memory from one batch to many windows, and time per window, in a process of its own.

    `counts` are the windows of three images: the memory of the first is the reference, the time per
    window of the second. `slack` is a factor on the bound of the time. Needs Linux.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        first, some, many = process.submit(_segment_images, cfg.dump(), counts).result()
    more, name = (many["peak"] - first["peak"]) / 1e6, f"{counts[2]} windows"
    ratio = many["seconds"] / counts[2] / (some["seconds"] / counts[1])
    figures = [
        (f"peak memory, {counts[0]} windows", first["peak"] / 1e6, "MB"),
        (f"peak memory, {name}, more than that", more, "MB", MOST_MEMORY),
        (f"backbone passes, {name}", many["passes"], "", counts[2], EXACTLY),
        (f"time per window, {name} over {counts[1]}", ratio, "", MOST_TIME * slack),
    ]
    return [Figure("growth", *figure) for figure in figures]


def _segment_images(config: str, counts: tuple[int, ...]) -> list[dict[str, float]]:
    """Peak memory (bytes), seconds and passes of images of so many windows, one after the other."""
    predictor = random_predictor(CfgNode.load_cfg(config))
    memory, measured = teach(predictor), []

    def segment(file: Path) -> None:
        (outcome,) = predictor.segment([(file, [memory])])
        answers = {"": outcome.answers[0][SOFS.name]}
        write_answers(file.parent, file.stem, outcome.image, answers)

    with TemporaryDirectory(prefix="sofs_benchmark_") as folder:
        for count in counts:
            rows = next(n for n in range(int(count**0.5), 0, -1) if count % n == 0)
            file, side = Path(folder) / f"{count}.jpg", memory.window
            cv2.imwrite(str(file), random_image((rows * side, count // rows * side)))
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            with counted_passes(predictor.backbone) as passes:
                seconds = _seconds(lambda f=file: segment(f), predictor)
            status = Path("/proc/self/status").read_text()
            peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
            measured.append({"peak": peak, "seconds": seconds, "passes": sum(passes)})
    return measured


def windows_of(predictor: Predictor, image: np.ndarray) -> list[Tensor]:
    """Network inputs (3, S, S) of the windows of an image, as the predictor's memory asks for."""
    boxes = tile(*image.shape[:2], predictor.memory.window, predictor.overlap)
    return [prepare_image(image[t:b, le:r], predictor.settings.image_size) for t, b, le, r in boxes]


@torch.inference_mode()
def encode_windows(predictor: Predictor, windows: list[Tensor]) -> None:
    with autocast(predictor.device, predictor.precision):
        for start in range(0, len(windows), predictor.window_batch):
            batch = torch.stack(windows[start : start + predictor.window_batch])
            predictor.backbone(batch.to(predictor.device))


def file_to_file(predictor: Predictor, file: Path) -> None:
    (prediction,) = predictor.predict_many([file])
    write_image(file.with_suffix(".mask.png"), prediction.mask.astype(np.uint8) * 255)


def _seconds(call: Callable[[], object], predictor: Predictor) -> float:
    start = clock(predictor.device)
    call()
    return clock(predictor.device) - start
