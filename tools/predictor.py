"""Supports and query images in, masks and scores at the original size out.

predictor = Predictor.from_config(load_config("method_config/Open_Domain/SOFS.yaml"))
predictor.set_support(["scratch.png"], ["scratch_mask.png"])
for prediction in predictor.predict_many(paths): ...
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from io import IOBase
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from yacs.config import CfgNode

from datasets.build import view_settings
from datasets.episodes import derive_seed
from datasets.images import shown
from datasets.images import Picture, limit_pixels, read_image
from datasets.masks import read_mask
from datasets.orientation import turned_back
from datasets.views import SupportSet, ViewSettings, is_windowed, normal_views, support_set
from models.comparison import Comparison
from models.sofs import SupportMemory
from models.support_tokens import LabelledTokens
from tools.methods import test_methods
from tools.prediction.answers import Answering, Outcome, Prediction
from tools.prediction.pipeline import Window, WindowFeed, shared
from tools.prediction.support_encoder import SupportEncoder
from tools.prediction.support_file import fingerprint, load_memory, save_memory, widths
from tools.prediction.thresholds import choose_thresholds
from utils.errors import ConfigError, DataError
from utils.precision import autocast, half_type, pick_device

AUTO = "auto"  # value of TEST.threshold
DEFAULT_THRESHOLD = 0.5


class Predictor:
    """Asks one or more methods that share a backbone: every support and window is encoded once for all of them.

    Args:
        methods: by name; the backbone is that of the first, whose answer `predict` gives.
        settings: how supports and queries become network inputs.
        device: where the methods are.
        window_batch: windows per pass.
        overlap: share of a window's side in common with the next.
        memory_tokens: background tokens kept of the supports; 0: all.
        mirrored: compare windows with the supports' mirror images, too.
        merge: `probability`, or `reference` for the published stitching.
        threshold: probability above which a pixel is defect; None: chosen on the supports, see
            `tools.prediction.thresholds.choose_thresholds`.
        precision: `fp32`, `bf16`, `fp16` or `auto`.
        seed: of the crops of the supports.
    """

    def __init__(
        self,
        methods: dict[str, nn.Module],
        settings: ViewSettings,
        device: torch.device,
        *,
        window_batch: int = 4,
        overlap: float = 0.0,
        memory_tokens: int = 0,
        mirrored: bool = False,
        merge: str = "probability",
        threshold: float | None = 0.5,
        precision: str = "fp32",
        seed: int = 0,
    ) -> None:
        self.methods = {name: method.to(device).eval() for name, method in methods.items()}
        self.main = next(iter(methods))
        self.backbone = self.methods[self.main].backbone
        self.settings, self.device, self.seed = settings, device, seed
        self.window_batch, self.overlap = window_batch, overlap
        self.merge, self.precision = merge, precision
        self.auto_threshold, self.threshold = (
            threshold is None,
            DEFAULT_THRESHOLD if threshold is None else threshold,
        )
        self.encoder = SupportEncoder(
            list(self.methods.values()),
            device,
            precision=precision,
            batch=window_batch,
            memory_tokens=memory_tokens,
            mirrored=mirrored,
        )
        self.memory: SupportMemory | None = None

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        methods: dict[str, nn.Module] | None = None,
        device: torch.device | None = None,
    ) -> Predictor:
        """A predictor as the config asks for.

        Args:
            cfg: the config.
            methods: those to ask; None: TEST.method with its weights, or the prior where no checkpoint is given.
            device: None: the one of the config.
        """
        limit_pixels(cfg.DATASET.max_pixels)
        methods, device = methods or test_methods(cfg), device or pick_device(cfg.DEVICE)
        if half := half_type(device, cfg.TRAIN.precision):
            next(iter(methods.values())).backbone.hold_weights(half)
        return cls(
            methods,
            view_settings(cfg),
            device,
            window_batch=cfg.TEST_SETUPS.ND_batch_size,
            overlap=cfg.TEST.window_overlap,
            memory_tokens=cfg.TEST.memory_tokens,
            mirrored=cfg.TEST.mirrored_supports,
            merge=cfg.TEST.merge,
            threshold=None if cfg.TEST.threshold == AUTO else cfg.TEST.threshold,
            precision=cfg.TRAIN.precision,
            seed=cfg.RNG_SEED,
        )

    def set_support(
        self, images: Sequence[Picture], masks: Sequence[Picture | None]
    ) -> SupportMemory:
        """Teach a defect: one mask per image, of its size, not 0 where the defect is; None, or a mask without a marked
        pixel, for an image of the normal surface. Without any defect the answer is how abnormal a pixel looks.

        Args:
            images: what `datasets.images.read_image` takes: paths, PIL images, arrays.
            masks: what `datasets.masks.read_mask` takes, or None.

        Raises:
            DataError: there is no image, one cannot be read or meant, or a mask has another size than its image.
        """
        pairs, end = [], object()
        for image, mask in zip_longest(
            _several(images, "images"), _several(masks, "masks"), fillvalue=end
        ):
            if image is end or mask is end:
                more, fewer = ("masks", "images") if image is end else ("images", "masks")
                raise DataError(
                    f"there are {len(pairs)} {fewer}, but more {more}; give one mask per image, None for one of the "
                    "normal surface"
                )
            pairs.append(_support(len(pairs), image, mask))
        if not pairs:
            raise DataError(
                "no support image is given; give at least one, of the defect or of the normal surface"
            )
        return self.teach(pairs)

    def teach(self, pairs: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> SupportMemory:
        """As `set_support`, from images (h, w, 3) uint8 RGB and masks (h, w) uint8 {0, 1} or None, at least one."""
        defects = [(image, mask) for image, mask in pairs if mask is not None and mask.any()]
        windowed = is_windowed([mask for _, mask in defects], self.settings.resize_ratio)
        images = [image for image, mask in pairs if mask is None or not mask.any()]
        normal = self.normality(images, windowed=windowed)
        if defects:
            rng = random.Random(derive_seed(self.seed))
            self.memory = self.remember(support_set(defects, self.settings, rng, windowed), normal)
        else:
            self.memory = self.encoder.remember([], normal, windowed=windowed)
        return self.memory

    def normality(self, images: Iterable[np.ndarray], *, windowed: bool) -> list[LabelledTokens]:
        """What images (h, w, 3) uint8 RGB without defect look like; `windowed` as their queries are seen."""
        size = self.settings.image_size
        return [
            self.encoder.encode_normal(normal_views(i, self.settings, windowed), size)
            for i in images
        ]

    def save_support(self, path: str | Path) -> None:
        """Write what is known of the defect as safetensors."""
        save_memory(Path(path).expanduser(), self._known(), self._fingerprint())

    def load_support(self, path: str | Path) -> SupportMemory:
        """Read what `save_support` wrote with the same settings and weights, in whatever precision.

        Thresholds that were chosen on the supports come with it and hold, whatever the predictor's own.

        Raises:
            WeightsError: missing, unreadable, or written with other settings.
        """
        known, dtype = (
            widths(self.methods[self.main]),
            half_type(self.device, self.precision) or torch.float32,
        )
        joint = self.encoder.needs_joint
        self.memory = load_memory(
            Path(path).expanduser(),
            self._fingerprint(),
            known,
            self.device,
            dtype=dtype,
            joint=joint,
        )
        return self.memory

    def predict(self, image: Picture) -> Prediction:
        """Segment one image, whatever `datasets.images.read_image` takes. Raises DataError where it cannot be read."""
        (outcome,) = self.segment([image], self._known())
        return self._answer_of(outcome)

    def predict_many(self, images: Iterable[Picture]) -> Iterator[Prediction]:
        """Segment images in order; files are read, decoded and cut by threads, and windows of several images share a
        pass.

        Raises:
            DataError: an image cannot be read; `segment` goes on after one.
        """
        memory = self._known()
        for outcome in self.segment(_several(images, "images"), memory):
            yield self._answer_of(outcome)

    def remember(
        self, supports: SupportSet, normal: Sequence[LabelledTokens] = ()
    ) -> SupportMemory:
        """A memory of supports with a defect and of normal images, see `normality`; where the threshold is chosen on
        them, with it."""
        count = (
            len(supports.images) // len(supports.pairs)
            if self.auto_threshold
            else len(supports.images)
        )
        views = zip(supports.images.split(count), supports.masks.split(count), strict=True)
        parts = [self.encoder.encode(images, masks) for images, masks in views]
        memory = self.encoder.remember(parts, normal, windowed=supports.windowed)
        if not self.auto_threshold:
            return memory
        return replace(
            memory,
            thresholds=choose_thresholds(self, supports.pairs, parts, normal, memory.windowed),
        )

    def segment(self, images: Iterable[Picture], memory: SupportMemory) -> Iterator[Outcome]:
        """Segment images with all methods, in order; an image that cannot be read is reported in its outcome."""
        for (outcome,) in self.segment_all(images, [memory]):
            yield outcome

    def segment_all(
        self, images: Iterable[Picture], memories: Sequence[SupportMemory]
    ) -> Iterator[list[Outcome]]:
        """As `segment`, for several sets of supports at once: each window is encoded once for all that look at the
        image at the same scale."""
        scales = {
            m.windowed: [i for i, n in enumerate(memories) if n.windowed == m.windowed]
            for m in memories
        }
        order = [place for places in scales.values() for place in places]
        streams = [
            self._segment_at(scale, seen, [memories[i] for i in places])
            for (scale, places), seen in zip(
                scales.items(), shared(images, len(scales)), strict=True
            )
        ]
        for parts in zip(*streams, strict=True):
            found = dict(zip(order, (outcome for part in parts for outcome in part), strict=True))
            yield [found[i] for i in range(len(memories))]

    @torch.inference_mode()
    def _segment_at(
        self, windowed: bool, images: Iterable[Picture], memories: Sequence[SupportMemory]
    ) -> Iterator[list[Outcome]]:
        feed = WindowFeed(
            self.settings.image_size, self.settings.crop_size if windowed else None, self.overlap
        )
        thresholds = [
            {name: m.thresholds.get(name, self.threshold) for name in self.methods}
            for m in memories
        ]
        open_images: list[Answering] = []
        batch: list[tuple[Answering, Window]] = []
        for part in feed.stream(images, self.window_batch):
            if isinstance(part, Window):
                open_images[-1].taken += 1
                batch.append((open_images[-1], part))
            elif part.error is not None and open_images and not open_images[-1].all_taken:
                open_images[-1].error = part.error
                batch = [entry for entry in batch if entry[0] is not open_images[-1]]
            else:
                open_images.append(Answering(part, thresholds, merge=self.merge))
            if len(batch) == self.window_batch:
                self._answer(batch, memories)
                batch = []
            while open_images and open_images[0].finished:
                yield open_images.pop(0).outcomes()
        if batch:
            self._answer(batch, memories)
        yield from (image.outcomes() for image in open_images)

    def _answer(
        self, batch: list[tuple[Answering, Window]], memories: Sequence[SupportMemory]
    ) -> None:
        windows = torch.stack([window.pixels for _, window in batch]).to(
            self.device, non_blocking=True
        )
        size, maps = windows.shape[-2:], []
        with autocast(self.device, self.precision):
            features = self.backbone(windows)
            for memory in memories:
                compared = Comparison(features, memory.known)
                answers = {
                    n: m.answer(compared, memory.summary, size).float()
                    for n, m in self.methods.items()
                }
                maps.append({name: answer.cpu() for name, answer in answers.items()})
        for number, (image, window) in enumerate(batch):
            image.add(
                window.box,
                [{name: answer[number] for name, answer in answers.items()} for answers in maps],
            )

    def _answer_of(self, outcome: Outcome) -> Prediction:
        if outcome.error is not None:
            raise outcome.error
        return outcome.answers[self.main]

    def _known(self) -> SupportMemory:
        if self.memory is None:
            raise ConfigError("no support is known yet; call set_support or load_support first")
        return self.memory

    def _fingerprint(self) -> dict[str, str]:
        return fingerprint(self.methods[self.main], self.settings)


def _several(pictures: Any, name: str) -> Iterable[Any]:
    """The same pictures. Raises DataError for a single one, which would be taken apart, and for what holds none."""
    taken_apart = isinstance(pictures, str | bytes | os.PathLike | IOBase | Image.Image)
    taken_apart |= isinstance(pictures, np.ndarray) and pictures.ndim in (0, 2, 3)
    if taken_apart or not isinstance(pictures, Iterable):
        raise DataError(
            f"{name} is {shown(pictures)}; expected a list of paths, PIL images or arrays, [...] around it"
        )
    return pictures


def _support(
    number: int, image: Picture, mask: Picture | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels (h, w, 3) uint8 RGB of a support and its mask (h, w) uint8; copies, as what is given may change."""
    pixels = read_image(image, f"support image {number}").copy()
    if mask is None:
        return pixels, None
    name = f"mask {number}"
    marked = turned_back(read_mask(mask, name), image, mask)
    if pixels.shape[:2] != marked.shape:
        raise DataError(f"{shown(mask, name)} has {marked.shape[0]} x {marked.shape[1]} pixels (h x w), its image "
                        f"{pixels.shape[0]} x {pixels.shape[1]}; give a mask of the image's size")  # fmt: skip
    return pixels, marked
