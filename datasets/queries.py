"""Evaluation queries: an image with its true mask and the supports of each repeat, or the reason why there is none."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset

from datasets.episodes import Episode, EpisodeList, derive_seed, read_sample
from datasets.samples import Sample
from datasets.views import Pair, SupportSet, ViewSettings, is_windowed, support_set
from utils.errors import DataError

CROP_STREAM = 1


@dataclass(frozen=True)
class Query:
    """One evaluation query.

    Attributes:
        number: of the query, the same in every repeat.
        sample: what is to be found, with its true mask.
        image: (h, w, 3) uint8 RGB.
        target: (h, w) uint8 {0, 1}.
        supports: by repeat, where any could be read.
        faults: files that could not be used as supports, with the reason; others stood in for them.
    """

    number: int
    sample: Sample
    image: np.ndarray
    target: np.ndarray
    supports: dict[int, SupportSet]
    faults: tuple[str, ...]


@dataclass(frozen=True)
class FailedQuery:
    """A query that could not be read.

    Attributes:
        sample: what was to be found.
        faults: why not.
    """

    sample: Sample
    faults: tuple[str, ...]


class EvaluationQueries(Dataset):
    """Queries of a test with their supports in some of its repeats.

    Args:
        episodes: what to draw; repeat r draws with its seed + r.
        settings: how samples become inputs.
        repeats: numbers of the repeats.
        scale_by: `support`: the mean area share of the supports decides between windows and resized image; `query`:
            the query's own true mask does, as in the published protocol.
        keep_pairs: hand the supports over as they are, too.
        numbers: of the queries; None: all.
    """

    def __init__(
        self,
        episodes: EpisodeList,
        settings: ViewSettings,
        *,
        repeats: Sequence[int] = (0,),
        scale_by: str = "support",
        keep_pairs: bool = False,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.episodes = {repeat: episodes.with_seed(episodes.seed + repeat) for repeat in repeats}
        self.index, self.shot = episodes.index, episodes.shot
        self.settings, self.scale_by, self.keep_pairs = settings, scale_by, keep_pairs
        self.numbers = range(len(episodes)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> Query | FailedQuery:
        number = self.numbers[position]
        drawn = {repeat: episodes.episode(number) for repeat, episodes in self.episodes.items()}
        sample = next(iter(drawn.values())).query
        try:
            image, target = read_sample(self.index, sample)
        except DataError as error:
            return FailedQuery(sample, (str(error),))
        faults: list[str] = []
        supports = {}
        for repeat, episode in drawn.items():
            if pairs := self._readable_supports(episode, faults):
                supports[repeat] = self._support_set(episode, pairs, target)
        return Query(number, sample, image, target, supports, tuple(dict.fromkeys(faults)))

    def describe(self, position: int) -> str:
        """Files and class of an item."""
        drawn = [episodes.episode(self.numbers[position]) for episodes in self.episodes.values()]
        return next(iter(self.episodes.values())).describe(*drawn)

    def _readable_supports(self, episode: Episode, faults: list[str]) -> list[Pair]:
        pairs: list[Pair] = []
        for candidate in episode.candidates:
            try:
                pairs.append(read_sample(self.index, candidate))
            except DataError as error:
                faults.append(str(error))
            if len(pairs) == self.shot:
                break
        return pairs

    def _support_set(self, episode: Episode, pairs: list[Pair], target: np.ndarray) -> SupportSet:
        rng = random.Random(derive_seed(episode.seed, CROP_STREAM))
        windowed = (
            None
            if self.scale_by == "support"
            else is_windowed([target], self.settings.resize_ratio)
        )
        supports = support_set(pairs, self.settings, rng, windowed)
        return supports if self.keep_pairs else replace(supports, pairs=())
