"""Evaluation queries: an image with its true mask and prepared supports, or the reason why there is none."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from datasets.episodes import Episode, EpisodeList, ViewSettings, derive_seed, prepare_views, read_sample, support_views
from datasets.samples import Sample
from utils.errors import DataError

CROP_STREAM = 1


@dataclass(frozen=True)
class Query:
    """One evaluation query.

    Attributes:
        sample: what is to be found, with its true mask.
        image: (h, w, 3) uint8 RGB.
        target: (h, w) uint8 {0, 1}.
        supports, support_masks: (K, 3, S, S) float32 and (K, S, S) uint8.
        windowed: seen in windows at native resolution, not in the resized image.
        faults: files that could not be used as supports, with the reason; others stood in for them.
    """

    sample: Sample
    image: np.ndarray
    target: np.ndarray
    supports: Tensor
    support_masks: Tensor
    windowed: bool
    faults: tuple[str, ...]


@dataclass(frozen=True)
class FailedQuery:
    """A query that could not be read, or has no readable support.

    Attributes:
        sample: what was to be found.
        faults: one message per unreadable file.
    """

    sample: Sample
    faults: tuple[str, ...]


class EvaluationQueries(Dataset):
    """The queries of one repeat, some of them for one process.

    Args:
        episodes: what to draw.
        settings: how samples become inputs.
        scale_by: `support`: the mean area share of the supports decides between windows and resized image; `query`:
            the query's own true mask does, as in the published protocol.
        rank, world: this process takes every `world`-th query from `rank` on.
    """

    def __init__(
        self, episodes: EpisodeList, settings: ViewSettings, *, scale_by: str = "support", rank: int = 0, world: int = 1
    ) -> None:
        self.episodes, self.settings, self.scale_by = episodes, settings, scale_by
        self.numbers = range(rank, len(episodes), world)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> Query | FailedQuery:
        episode = self.episodes.episode(self.numbers[position])
        try:
            image, target = read_sample(self.episodes.index, episode.query)
        except DataError as error:
            return FailedQuery(episode.query, (str(error),))
        supports, faults = self._readable_supports(episode)
        if not supports:
            return FailedQuery(episode.query, tuple(faults))
        rng = random.Random(derive_seed(episode.seed, CROP_STREAM))
        views = [view for pair in supports for view in support_views(*pair, self.settings, rng)]
        images, masks = prepare_views(views, self.settings.image_size)
        windowed = self._windowed([mask for _, mask in supports] if self.scale_by == "support" else [target])
        return Query(episode.query, image, target, images, masks, windowed, tuple(faults))

    def _readable_supports(self, episode: Episode) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[str]]:
        pairs, faults = [], []
        for candidate in episode.candidates:
            try:
                pairs.append(read_sample(self.episodes.index, candidate))
            except DataError as error:
                faults.append(str(error))
            if len(pairs) == self.episodes.shot:
                break
        return pairs, faults

    def _windowed(self, masks: list[np.ndarray]) -> bool:
        return is_windowed(masks, self.settings.resize_ratio)


def is_windowed(masks: list[np.ndarray], resize_ratio: float | None) -> bool:
    """Whether queries are seen in windows: the mean area share of these masks is not over `resize_ratio`."""
    if resize_ratio is None:
        return False
    return float(np.mean([(mask > 0).mean() for mask in masks])) <= resize_ratio
