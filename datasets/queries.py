"""Evaluation queries: an image with its true mask and the supports of each repeat."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch.utils.data import Dataset

from datasets.episodes import EpisodeList, derive_seed, read_sample
from datasets.samples import Sample
from datasets.views import Pair, SupportSet, ViewSettings, is_windowed, support_set
from utils.errors import DataError

CROP_STREAM = 1


@dataclass(frozen=True)
class Query:
    """One evaluation query."""

    number: int  # the same in every repeat
    sample: Sample
    image: np.ndarray | None = None  # (h, w, 3) uint8 RGB; None where unreadable
    target: np.ndarray | None = None  # (h, w) uint8 {0, 1}; None likewise
    supports: dict[int, SupportSet] = field(default_factory=dict)  # by repeat, if any is readable
    faults: tuple[str, ...] = ()  # unreadable files with the reason; others replace supports


class EvaluationQueries(Dataset):
    """Queries of a test with their supports in some of its repeats; item i is a `Query`.

    Args:
        episodes: draws the supports, in repeat r with its seed + r.
        scale_by_query: choose windows or the resized image by the query's true mask, as published.
        keep_pairs: keep the support images and masks beside their views.
        numbers: of the queries; None: all.
    """

    def __init__(
        self,
        episodes: EpisodeList,
        settings: ViewSettings,
        *,
        repeats: Sequence[int] = (0,),
        scale_by_query: bool = False,
        keep_pairs: bool = False,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.episodes = {repeat: episodes.with_seed(episodes.seed + repeat) for repeat in repeats}
        self.index, self.shot, self.settings = episodes.index, episodes.shot, settings
        self.scale_by_query, self.keep_pairs = scale_by_query, keep_pairs
        self.numbers = range(len(episodes)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> Query:
        number, supports, faults = self.numbers[position], {}, {}
        drawn = {repeat: episodes.episode(number) for repeat, episodes in self.episodes.items()}
        sample = next(iter(drawn.values())).query
        try:
            image, target = read_sample(self.index, sample)
        except DataError as error:
            return Query(number, sample, faults=(str(error),))
        by_query = is_windowed([target], self.settings.resize_ratio)
        for repeat, episode in drawn.items():
            pairs: list[Pair] = []
            for candidate in episode.candidates:
                if len(pairs) == self.shot:
                    break
                try:
                    pairs.append(read_sample(self.index, candidate))
                except DataError as error:
                    faults[str(error)] = None
            if pairs:
                rng = random.Random(derive_seed(episode.seed, CROP_STREAM))
                windowed = by_query if self.scale_by_query else None
                views = support_set(pairs, self.settings, rng, windowed)
                supports[repeat] = views if self.keep_pairs else replace(views, pairs=())
        return Query(number, sample, image, target, supports, tuple(faults))
