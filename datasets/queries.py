"""Queries of a test: an image with its true mask, or a normal one, and its supports."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from datasets.episodes import EpisodeList, derive_seed, read_sample
from datasets.images import read_image
from datasets.samples import Sample, SampleIndex
from datasets.views import Pair, SupportSet, ViewSettings, support_set, window_sides
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
        number, supports, faults = self.numbers[position], {}, dict[str, None]()
        drawn = {repeat: episodes.episode(number) for repeat, episodes in self.episodes.items()}
        sample = next(iter(drawn.values())).query
        try:
            image, target = read_sample(self.index, sample)
        except DataError as error:
            return Query(number, sample, faults=(str(error),))
        by_query = window_sides([target], self.settings) if self.scale_by_query else None
        for repeat, episode in drawn.items():
            if pairs := readable(self.index, episode.candidates, self.shot, faults):
                views = cropped(pairs, self.settings, episode.seed, by_query)
                supports[repeat] = views if self.keep_pairs else replace(views, pairs=())
        return Query(number, sample, image, target, supports, tuple(faults))


@dataclass(frozen=True)
class NormalImage:
    """A normal image that is a query of some repeats; in the others it may be a support."""

    object: str
    path: Path
    repeats: tuple[int, ...]


@dataclass(frozen=True)
class NormalQuery:
    """A normal image with what each class of its object is taught by in each repeat."""

    number: int  # the same in every repeat
    normal: NormalImage
    image: np.ndarray | None = None  # (h, w, 3) uint8 RGB; None where unreadable
    supports: dict[tuple[tuple[str, int], int], SupportSet] = field(default_factory=dict)
    faults: tuple[str, ...] = ()  # as of a `Query`; supports are by class and repeat


class NormalQueries(Dataset):
    """Normal images of a test with supports of every class of their object, drawn anew for each
    image, class and repeat; item i is a `NormalQuery`.

    Args:
        episodes, repeats, keep_pairs: as of `EvaluationQueries`.
        images: all of the test.
        numbers: of those that are items.
    """

    def __init__(
        self,
        episodes: EpisodeList,
        settings: ViewSettings,
        images: Sequence[NormalImage],
        *,
        repeats: Sequence[int],
        numbers: Sequence[int],
        keep_pairs: bool,
    ) -> None:
        self.episodes = {repeat: episodes.with_seed(episodes.seed + repeat) for repeat in repeats}
        self.index, self.shot, self.settings = episodes.index, episodes.shot, settings
        self.images, self.numbers, self.keep_pairs = images, numbers, keep_pairs

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> NormalQuery:
        number, supports, faults = self.numbers[position], {}, dict[str, None]()
        normal = self.images[number]
        try:
            image = read_image(normal.path)
        except DataError as error:
            return NormalQuery(number, normal, faults=(str(error),))
        for repeat in (r for r in normal.repeats if r in self.episodes):
            episodes = self.episodes[repeat]
            for key in (key for key in episodes.supports if key[0] == normal.object):
                candidates, seed = episodes.supports_of(key, number)
                if pairs := readable(self.index, candidates, self.shot, faults):
                    views = cropped(pairs, self.settings, seed)
                    supports[key, repeat] = views if self.keep_pairs else replace(views, pairs=())
        return NormalQuery(number, normal, image, supports, tuple(faults))


def readable(
    index: SampleIndex, candidates: Sequence[Sample], shot: int, faults: dict[str, None]
) -> list[Pair]:
    """The first `shot` samples that can be read; why the others cannot be joins `faults`."""
    pairs: list[Pair] = []
    for candidate in candidates:
        if len(pairs) == shot:
            break
        try:
            pairs.append(read_sample(index, candidate))
        except DataError as error:
            faults[str(error)] = None
    return pairs


def cropped(
    pairs: Sequence[Pair], settings: ViewSettings, seed: int, sides: Sequence[int] | None = None
) -> SupportSet:
    """The supports of an episode of this seed; `sides` as of `support_set`."""
    rng = random.Random(derive_seed(seed, CROP_STREAM))
    return support_set(pairs, settings, rng, sides)
