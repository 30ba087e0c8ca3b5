"""Supports and query images in, masks and scores at the original size out:

predictor = Predictor.from_config(load_config("method_config/Open_Domain/SOFS.yaml"))
predictor.set_support(["scratch.png"], ["scratch_mask.png"])
for prediction in predictor.predict_many(paths): ...
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from datasets.build import view_settings
from datasets.episodes import derive_seed
from datasets.images import Picture, limit_pixels
from datasets.large_images import ImageStrips
from datasets.picture_lists import read_supports, several
from datasets.refinement import Seen, as_seen, offset_of_masks, refine
from datasets.views import (
    SupportSet,
    ViewSettings,
    denormalise,
    normal_views,
    prepare_image,
    support_set,
    window_sides,
)
from datasets.windows import Blender, PublishedStitching, averaged
from models.comparison import Comparison
from models.encoder import SupportEncoder
from models.memory import Memory
from models.methods import Method
from tools.auto_threshold import choose_thresholds
from tools.methods import load_methods
from tools.normal_gates import choose_gates
from tools.pixel_probes import fit_probes
from tools.support_file import load_memory, save_memory
from tools.window_stream import THREADS, PendingQuery, Window, ahead, joined_features, windows
from utils.errors import ConfigError, DataError
from utils.precision import autocast, half_type, pick_device

AUTO = "auto"  # value of TEST.threshold
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Prediction:
    """The answer of a method to one image; arrays of a very large one lie in temporary files.

    Attributes:
        label: (h, w) uint8 {0, 1}; with the published stitching float32 votes, defect where 1.
        score: (h, w) float32 in [0, 1]; in [0, 2] where all supports are normal images.
        windows: how many windows the image took.
        threshold: the score above which a pixel is defect.
    """

    label: np.ndarray
    score: np.ndarray
    windows: int
    threshold: float

    @property
    def mask(self) -> np.ndarray:
        """(h, w) bool."""
        return self.label == 1


@dataclass(frozen=True)
class Outcome:
    """An opened image with, for each of its memories, the answers by method; or why it could not
    be read."""

    image: ImageStrips | None
    answers: list[dict[str, Prediction]]
    error: DataError | None = None


class Predictor:
    """Has methods on one backbone segment images by supports; every job uses it.

    Each support and window is encoded once for all methods.

    Args:
        methods: by name; the backbone is that of the first, whose answer `predict` gives.
        settings: how supports and queries become network inputs.
        device: where the methods run.
        window_batch: windows per pass.
        overlap: share of a window's side in common with the next.
        memory_tokens: background tokens kept of the supports; 0: all.
        support_tokens: of these, kept for each support image; 0: no bound.
        published_stitching: join windows as published, not blended.
        threshold: score above which a pixel is defect; None: chosen on the supports.
        normal_gate: share of images without defect that shall stay empty, in [0, 1), where normal
            images were taught beside a defect: an image whose highest score is not above a bar has
            none, see `tools.normal_gates`; 0: there is no bar.
        refined: masks follow the pixels of the image, see `datasets.refinement`.
        pixel_probe: where several supports are taught, refined masks are corrected by what they
            tell, see `models.pixel_probe`; does nothing without `refined`.
        precision: `fp32`, `bf16`, `fp16` or `auto`.
        seed: of the crops of the supports.
    """

    def __init__(
        self,
        methods: dict[str, Method],
        settings: ViewSettings,
        device: torch.device,
        *,
        window_batch: int = 4,
        overlap: float = 0.0,
        memory_tokens: int = 0,
        support_tokens: int = 0,
        published_stitching: bool = False,
        threshold: float | None = DEFAULT_THRESHOLD,
        normal_gate: float = 0.9,
        refined: bool = False,
        pixel_probe: bool = False,
        precision: str = "fp32",
        seed: int = 0,
    ) -> None:
        self.methods = {name: method.to(device).eval() for name, method in methods.items()}
        self.main = next(iter(methods))
        self.backbone = self.methods[self.main].backbone
        self.settings, self.device, self.seed = settings, device, seed
        self.window_batch, self.overlap, self.precision = window_batch, overlap, precision
        self.merger = PublishedStitching if published_stitching else Blender
        self.auto_threshold, self.refined = threshold is None, refined
        self.normal_gate, self.pixel_probe = normal_gate, refined and pixel_probe
        self.threshold = DEFAULT_THRESHOLD if threshold is None else threshold
        tokens = {"memory_tokens": memory_tokens, "support_tokens": support_tokens}
        options = {"precision": precision, "batch": window_batch} | tokens
        self.encoder = SupportEncoder(list(self.methods.values()), device, **options)
        self.memory: Memory | None = None

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        methods: dict[str, Method] | None = None,
        device: torch.device | None = None,
    ) -> Predictor:
        """A predictor as the config asks for; without `methods` of TEST.method with its weights,
        and the baseline; without `device` on DEVICE of the config."""
        limit_pixels(cfg.DATASET.max_pixels)
        methods, device = methods or load_methods(cfg), device or pick_device(cfg.DEVICE)
        if half := half_type(device, cfg.TRAIN.precision):
            next(iter(methods.values())).backbone.hold_weights(half)
        return cls(
            methods,
            view_settings(cfg),
            device,
            window_batch=cfg.TEST_SETUPS.ND_batch_size,
            overlap=cfg.TEST.window_overlap,
            memory_tokens=cfg.TEST.memory_tokens,
            support_tokens=cfg.TEST.support_tokens,
            published_stitching=cfg.TEST.protocol == "published",
            threshold=None if cfg.TEST.threshold == AUTO else cfg.TEST.threshold,
            normal_gate=cfg.TEST.normal_gate,
            refined=cfg.TEST.refine,
            pixel_probe=cfg.TEST.pixel_probe,
            precision=cfg.TRAIN.precision,
            seed=cfg.RNG_SEED,
        )

    def needs_pairs(self, shot: int, normal: int = 0) -> bool:
        """Whether so many supports, beside so many normal images, are taught with their images and
        masks, and not with their views alone."""
        gated = self.normal_gate > 0 and normal > 0
        return self.auto_threshold or (self.pixel_probe and shot > 1) or gated

    def set_support(self, images: Sequence[Picture], masks: Sequence[Picture | None]) -> Memory:
        """Teach a defect by images and masks of the same sizes, which are not 0 at the defect.

        An image of the normal surface has the mask None, or one without a marked pixel. Where no
        pixel is marked at all, the answer is how abnormal a pixel looks.

        Args:
            images: what `datasets.images.read_image` takes: paths, PIL images, arrays.
            masks: what `datasets.masks.read_mask` takes, or None.

        Raises:
            DataError: there is no image, an argument is no image, or a mask has another size.
        """
        return self.teach(read_supports(images, masks))

    def teach(self, pairs: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> Memory:
        """`set_support` of images (h, w, 3) uint8 RGB and masks (h, w) uint8 {0, 1} or None."""
        defects = [(image, mask) for image, mask in pairs if mask is not None and mask.any()]
        others = [image for image, mask in pairs if mask is None or not mask.any()]
        if defects:
            views = support_set(defects, self.settings, random.Random(derive_seed(self.seed)))
            self.memory = self.remember(
                views, lambda window: self.encode_normal(others, window=window), others
            )
        else:
            (window,) = window_sides([], self.settings)
            normal = self.encode_normal(others, window=window)
            self.memory = self.encoder.remember([], normal, window=window)
        return self.memory

    def encode_normal(self, images: Iterable[np.ndarray], *, window: int) -> list[Memory]:
        """Encode images (h, w, 3) uint8 RGB without defect, as queries in windows of this side."""
        size, step = self.settings.image_size, self.window_batch

        def batches(image: np.ndarray) -> Iterator[torch.Tensor]:
            views = normal_views(image, window)
            for at in range(0, len(views), step):
                yield torch.stack([prepare_image(view, size) for view in views[at : at + step]])

        return [self.encoder.encode_normal(batches(image)) for image in images]

    def remember(
        self,
        supports: SupportSet,
        encode_normal: Callable[[int], Sequence[Memory]] = lambda _: (),
        normal_images: Sequence[np.ndarray] = (),
        encode: Callable[[Tensor, Tensor], Memory] | None = None,
    ) -> Memory:
        """A memory of supports with a defect, for each of their scales, and of normal images, which
        `encode_normal` gives for windows of a side; on `normal_images`, the same, gates are chosen.
        `encode` stands for that of the encoder, where supports come again and again.

        With `TEST.threshold auto` the thresholds are chosen on the supports, with
        `TEST.pixel_probe` pixel probes are fitted to them.
        """
        apart = self.needs_pairs(len(supports.counts)) or self.encoder.support_tokens > 0
        scales, encode = [supports], encode or self.encoder.encode
        scales += [] if supports.coarse is None else [supports.coarse]
        parts, normal = [], [encode_normal(scale.window) for scale in scales]
        for scale in scales:
            counts = list(scale.counts) if apart else [len(scale.images)]
            views = zip(scale.images.split(counts), scale.masks.split(counts), strict=True)
            parts.append([encode(images, masks) for images, masks in views])
        offset = self._border_offset(supports) if self.refined else 0.0

        def memory_without(image: np.ndarray | None) -> Memory:
            memory = None
            for scale, views, others in zip(scales[::-1], parts[::-1], normal[::-1], strict=True):
                if image is not None:
                    given = zip(scale.pairs, views, strict=True)
                    views = [view for (own, _), view in given if not np.array_equal(own, image)]
                coarse, memory = memory, self.encoder.remember(views, others, window=scale.window)
                memory = replace(memory, coarse=coarse)
            return replace(memory, border_offset=offset)

        memory = memory_without(None)
        if self.auto_threshold:
            chosen = choose_thresholds(self, supports.pairs, memory_without)
            memory = replace(memory, thresholds=chosen)
        if self.pixel_probe:
            probes = fit_probes(
                self, supports.pairs, supports.window, memory_without, memory.thresholds
            )
            memory = replace(memory, pixel_probes=probes)
        if self.normal_gate and normal_images:
            gates = choose_gates(self, memory, normal_images, supports.pairs)
            memory = replace(memory, gates=gates)
        return memory

    def _border_offset(self, supports: SupportSet) -> float:
        """See `datasets.refinement.offset_of_masks`."""
        shown = zip(supports.images, supports.masks.numpy(), strict=True)
        views = ((denormalise(image), mask) for image, mask in shown if mask.any())
        return offset_of_masks(views, self.backbone.stride)

    def predict(self, image: Picture) -> Prediction:
        """Segment one image, whatever `datasets.images.read_image` takes.

        Raises:
            DataError: it cannot be read.
        """
        return next(self.predict_many([image]))

    def predict_many(self, images: Iterable[Picture]) -> Iterator[Prediction]:
        """Segment images in order; threads read ahead, and windows of several images share a pass.

        Raises:
            DataError: an image cannot be read.
        """
        memory = self._require_memory()
        for outcome in self.segment((image, [memory]) for image in several(images, "images")):
            if outcome.error is not None:
                raise outcome.error
            yield outcome.answers[0][self.main]

    @torch.inference_mode()
    def segment(
        self,
        queries: Iterable[tuple[Picture | ImageStrips, Sequence[Memory]]],
        *,
        reproducible: bool = False,
        refined: bool = True,
    ) -> Iterator[Outcome]:
        """Segment images with all methods, in order, each by one or several memories.

        A window is encoded once for all memories that ask for its side, and windows of several
        images share a pass. The outcome of an image that cannot be read holds the error.

        Args:
            queries: images with the memories that answer them.
            reproducible: no answer depends on the other images, not by a rounding, so figures are
                the same however the images are dealt to processes: a window that is left alone for
                the last pass is encoded twice, as a pass of one window is rounded in another way.
            refined: False: masks are left as wide as tokens make them, whatever the predictor does.
        """
        batch: list[Window] = []
        waiting: deque[PendingQuery] = deque()
        size = self.settings.image_size
        with ThreadPoolExecutor(THREADS) as pool:
            stream = windows(queries, waiting, pool, size=size, overlap=self.overlap)
            for window in ahead(stream, self.window_batch):
                batch.append(window)
                if len(batch) == self.window_batch:
                    self._encode(batch)
                    batch = []
                while waiting and waiting[0].is_answered:
                    yield self._outcome(waiting.popleft(), self.refined and refined)
            if batch:
                self._encode(batch, twice=reproducible and len(batch) == 1)
            while waiting:
                yield self._outcome(waiting.popleft(), self.refined and refined)

    def _encode(self, batch: list[Window], twice: bool = False) -> None:
        """Encode windows in one pass, and answer those of each image in groups that do not depend
        on the pass."""
        pixels = torch.stack([window.pixels.result() for window in batch * (1 + twice)])
        with autocast(self.device, self.precision):
            features = self.backbone(pixels.to(self.device, non_blocking=True))
            for place, window in enumerate(batch):
                query = window.query
                query.encoded.append((window, features, place))
                query.left[window.side] -= 1
                if len(query.encoded) == self.window_batch or not query.left[window.side]:
                    self._answer(query, window.side, pixels.shape[-2:])
                    query.encoded.clear()

    def _answer(self, query: PendingQuery, side: int, size: tuple[int, int]) -> None:
        """Have every method answer the encoded windows of a query by its memories of one side."""
        if not query.mergers:
            shape, default = query.image.size, dict.fromkeys(self.methods, self.threshold)
            for memory in query.scales:
                thresholds = {name: memory.thresholds.get(name, t) for name, t in default.items()}
                query.mergers.append({n: self.merger(*shape, t) for n, t in thresholds.items()})
        features = joined_features(query.encoded)
        for memory, mergers in zip(query.scales, query.mergers, strict=True):
            if memory.window == side:
                compared = Comparison(features, memory)
                for name, method in self.methods.items():
                    answers = method.answer(compared, size).float().cpu()
                    for (window, _, _), answer in zip(query.encoded, answers, strict=True):
                        mergers[name].add(answer, window.box)

    def _outcome(self, query: PendingQuery, refined: bool) -> Outcome:
        if query.error is None:
            finished = iter(zip(query.scales, query.mergers, strict=True))
            parts = [[next(finished) for _ in memory.scales] for memory in query.memories]
            try:
                return Outcome(query.image, [self._joined(query, p, refined) for p in parts])
            except DataError as error:  # a large file is read once more to refine its masks
                query.error = error
        return Outcome(None, [], query.error)

    def _joined(
        self, query: PendingQuery, parts: Sequence[tuple[Memory, dict[str, Any]]], refined: bool
    ) -> dict[str, Prediction]:
        """By method, the prediction of the scales of one memory, each with what joined its
        windows."""
        memory, predictions = parts[0][0], {}
        windows = sum(len(query.boxes[scale.window]) for scale, _ in parts)
        for name, method in self.methods.items():
            label, score = averaged([mergers[name] for _, mergers in parts])
            gate, threshold = memory.gates.get(name), memory.thresholds.get(name, self.threshold)
            if gate is not None and score.max() <= gate:
                label[:] = 0
            elif refined and method.gives_log_odds and memory.is_marked:
                seen = self.seen(score, query.image, threshold, memory.window)
                probe = memory.pixel_probes.get(name)
                if seen is not None:
                    correct = probe and probe.correct
                    refine(label, score, seen, threshold, correct, memory.border_offset)
            predictions[name] = Prediction(label, score, windows, threshold)
        return predictions

    def seen(
        self, score: np.ndarray, image: ImageStrips, threshold: float, window: int
    ) -> Seen | None:
        """An answer in windows of a side, see `datasets.refinement.as_seen`."""
        return as_seen(
            score, image, threshold=threshold, window=window,
            image_size=self.settings.image_size, stride=self.backbone.stride,
        )  # fmt: skip

    def save_support(self, path: str | Path) -> None:
        """Write the memory as safetensors."""
        save_memory(path, self._require_memory(), self)

    def load_support(self, path: str | Path) -> Memory:
        """Read what `save_support` wrote with the same settings and weights, in whatever precision.

        Thresholds that were chosen on the supports come with it, in place of the predictor's.

        Raises:
            WeightsError: missing, unreadable, damaged, or written with other settings.
        """
        self.memory = load_memory(path, self)
        return self.memory

    def _require_memory(self) -> Memory:
        if self.memory is None:
            raise ConfigError("there is no support yet; call set_support or load_support first")
        return self.memory
