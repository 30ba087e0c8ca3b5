"""Supports and query images in, masks and scores at the original size out.

predictor = Predictor.from_config(load_config("method_config/Open_Domain/SOFS.yaml"))
predictor.set_support(["scratch.png"], ["scratch_mask.png"])
for prediction in predictor.predict_many(paths): ...
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from yacs.config import CfgNode

from datasets.build import view_settings
from datasets.episodes import ViewSettings, derive_seed, prepare_views, support_views
from datasets.images import read_image, read_mask
from datasets.queries import is_windowed
from models.comparison import Comparison
from models.sofs import SOFS, SupportMemory, SupportSummary, join_summaries
from models.support_tokens import LabelledTokens, join, label, ready, thin
from tools.answers import Answering, Outcome, Prediction
from tools.methods import test_methods
from tools.pipeline import Window, WindowFeed
from tools.support_file import fingerprint, load_memory, save_memory
from utils.errors import ConfigError, DataError
from utils.precision import autocast, half_type, pick_device

LOG = logging.getLogger(__name__)
Picture = str | Path | Image.Image | np.ndarray
MIRRORS = ((), (-1,), (-2,), (-2, -1))  # axes turned round


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
        threshold: probability above which a pixel is defect.
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
        threshold: float = 0.5,
        precision: str = "fp32",
        seed: int = 0,
    ) -> None:
        self.methods = {name: method.to(device).eval() for name, method in methods.items()}
        self.main = next(iter(methods))
        self.backbone = self.methods[self.main].backbone
        self.settings, self.device, self.seed = settings, device, seed
        self.window_batch, self.overlap, self.memory_tokens = window_batch, overlap, memory_tokens
        self.mirrors = MIRRORS if mirrored else MIRRORS[:1]
        self.merge, self.threshold, self.precision = merge, threshold, precision
        self.summarise = next((m.summarise for m in self.methods.values() if isinstance(m, SOFS)), None)
        self.memory: SupportMemory | None = None
        self.told = False

    @classmethod
    def from_config(
        cls, cfg: CfgNode, methods: dict[str, nn.Module] | None = None, device: torch.device | None = None
    ) -> Predictor:
        """A predictor as the config asks for.

        Args:
            cfg: the config.
            methods: those to ask; None: TEST.method with its weights, or the prior where no checkpoint is given.
            device: None: the one of the config.
        """
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
            threshold=cfg.TEST.threshold,
            precision=cfg.TRAIN.precision,
            seed=cfg.RNG_SEED,
        )

    def set_support(self, images: Sequence[Picture], masks: Sequence[Picture]) -> SupportMemory:
        """Teach a defect: one mask per image, of its size, not 0 where the defect is.

        Raises:
            DataError: a file cannot be read, or a mask has another size than its image.
        """
        pairs = [(_pixels(i), _marks(m)) for i, m in zip(images, masks, strict=True)]
        for number, (image, mask) in enumerate(pairs):
            if image.shape[:2] != mask.shape:
                raise DataError(f"support {number} has {image.shape[0]} x {image.shape[1]} pixels, its mask "
                                f"{mask.shape[0]} x {mask.shape[1]}; give a mask of the image's size")  # fmt: skip
        rng = random.Random(derive_seed(self.seed))
        views = [view for pair in pairs for view in support_views(*pair, self.settings, rng)]
        windowed = is_windowed([mask for _, mask in pairs], self.settings.resize_ratio)
        self.memory = self.remember(*prepare_views(views, self.settings.image_size), windowed=windowed)
        return self.memory

    def save_support(self, path: str | Path) -> None:
        """Write what is known of the defect as safetensors."""
        save_memory(Path(path), self._known(), self._fingerprint())

    def load_support(self, path: str | Path) -> SupportMemory:
        """Read what `save_support` wrote with the same settings and weights.

        Raises:
            WeightsError: missing, unreadable, or written with other settings.
        """
        self.memory = load_memory(Path(path), self._fingerprint(), self.device, joint=self._joint)
        return self.memory

    def predict(self, image: Picture) -> Prediction:
        """Segment one image: a path, a PIL image or (h, w, 3) uint8 RGB pixels."""
        return next(self.predict_many([image]))

    def predict_many(self, images: Iterable[Picture]) -> Iterator[Prediction]:
        """Segment images in order; files are read, decoded and cut by threads, and windows of several images share a
        pass.

        Raises:
            DataError: an image cannot be read; `segment` goes on after one.
        """
        for outcome in self.segment(images, self._known()):
            if outcome.error is not None:
                raise outcome.error
            yield outcome.answers[self.main]

    @torch.inference_mode()
    def remember(self, supports: Tensor, masks: Tensor, *, windowed: bool = True) -> SupportMemory:
        """Encode supports once, equal views but once: (K, 3, S, S) float32 and (K, S, S) {0, 1}.

        Args:
            supports, masks: the views.
            windowed: the queries are seen in windows at native resolution; False: each resized whole.
        """
        kept, counts = _distinct(supports, masks)
        summaries: list[SupportSummary] = []
        tokens: list[LabelledTokens] = []
        with autocast(self.device, self.precision):
            for views, number in zip(kept.split(self.window_batch), counts.split(self.window_batch), strict=True):
                images, marks = supports[views].to(self.device), masks[views].unsqueeze(0).to(self.device)
                seen = [(self.backbone(images.flip(m)), self._shares(marks.flip(m))) for m in self.mirrors]
                number = number.unsqueeze(0).to(self.device)
                tokens.append(label(*_one_below_the_other(seen), number))
                if self.summarise is not None:
                    summaries.append(self.summarise(*seen[0], number))
                tokens = self._thinned(tokens, 2 * self.memory_tokens)
            known = ready(join(self._thinned(tokens, self.memory_tokens)), joint=self._joint)
        return SupportMemory(known, join_summaries(summaries) if summaries else None, windowed)

    @torch.inference_mode()
    def segment(self, images: Iterable[Picture], memory: SupportMemory) -> Iterator[Outcome]:
        """Segment images with all methods, in order; an image that cannot be read is reported in its outcome."""
        feed = WindowFeed(self.settings.image_size, self.settings.crop_size if memory.windowed else None, self.overlap)
        sources = (np.asarray(i.convert("RGB")) if isinstance(i, Image.Image) else i for i in images)
        open_images: list[Answering] = []
        batch: list[tuple[Answering, Window]] = []
        for part in feed.stream(sources, self.window_batch):
            if isinstance(part, Window):
                open_images[-1].taken += 1
                batch.append((open_images[-1], part))
            elif part.error is not None and open_images and not open_images[-1].all_taken:
                open_images[-1].error = part.error
                batch = [entry for entry in batch if entry[0] is not open_images[-1]]
            else:
                open_images.append(Answering(part, list(self.methods), merge=self.merge, threshold=self.threshold))
            if len(batch) == self.window_batch:
                self._answer(batch, memory)
                batch = []
            while open_images and open_images[0].finished:
                yield open_images.pop(0).outcome()
        if batch:
            self._answer(batch, memory)
        yield from (image.outcome() for image in open_images)

    def _answer(self, batch: list[tuple[Answering, Window]], memory: SupportMemory) -> None:
        windows = torch.stack([window.pixels for _, window in batch]).to(self.device, non_blocking=True)
        with autocast(self.device, self.precision):
            compared = Comparison(self.backbone(windows), memory.known)
            maps = {
                name: method.answer(compared, memory.summary, windows.shape[-2:]).float().cpu()
                for name, method in self.methods.items()
            }
        for number, (image, window) in enumerate(batch):
            image.add(window.box, {name: answers[number] for name, answers in maps.items()})

    def _shares(self, masks: Tensor) -> Tensor:
        return self.methods[self.main].shares(masks)

    def _thinned(self, tokens: list[LabelledTokens], limit: int) -> list[LabelledTokens]:
        """The tokens as they are up to `limit` background tokens, else joined and thinned to `memory_tokens`."""
        if not self.memory_tokens or sum(t.background[0].shape[1] for t in tokens) <= limit:
            return tokens
        if not self.told:
            LOG.info("of the supports' background %d tokens are kept (TEST.memory_tokens)", self.memory_tokens)
            self.told = True
        return [thin(join(tokens), self.memory_tokens)]

    @property
    def _joint(self) -> bool:
        return any(method.needs_joint for method in self.methods.values())

    def _known(self) -> SupportMemory:
        if self.memory is None:
            raise ConfigError("no support is known yet; call set_support or load_support first")
        return self.memory

    def _fingerprint(self) -> dict[str, str]:
        return fingerprint(self.methods[self.main], self.settings)


def _pixels(image: Picture) -> np.ndarray:
    if isinstance(image, str | Path):
        return read_image(image)
    return np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image


def _marks(mask: Picture) -> np.ndarray:
    if isinstance(mask, str | Path):
        return read_mask(mask)
    values = np.asarray(mask) != 0
    return (values.any(2) if values.ndim == 3 else values).astype(np.uint8)


def _one_below_the_other(seen: list[tuple[list[Tensor], Tensor]]) -> tuple[list[Tensor], Tensor]:
    """Features and shares of the same views, joined to taller maps."""
    features, shares = zip(*seen, strict=True)
    return [torch.cat(layer, dim=-2) for layer in zip(*features, strict=True)], torch.cat(shares, dim=-2)


def _distinct(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (K',) of the views without repetitions, and how often each was given, (K',) float32."""
    kept: list[int] = []
    counts: list[float] = []
    for number in range(len(images)):
        same = (
            i
            for i, k in enumerate(kept)
            if torch.equal(masks[k], masks[number]) and torch.equal(images[k], images[number])
        )
        position = next(same, None)
        if position is None:
            kept.append(number)
            counts.append(1.0)
        else:
            counts[position] += 1
    return torch.tensor(kept), torch.tensor(counts)
