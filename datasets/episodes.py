"""Episodes: which supports explain which query, all drawn from (seed, epoch, index) alone."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from datasets.images import read_image
from datasets.samples import Sample, SampleIndex
from datasets.views import (
    Pair,
    TrainingCrops,
    ViewSettings,
    central_boxes,
    cut,
    prepare_views,
    support_views,
    window_sides,
)
from datasets.windows import tile
from utils.errors import DataError

LOG = logging.getLogger(__name__)
NORMAL_STREAM = 3


def derive_seed(*parts: int) -> int:
    """One well-mixed 32-bit seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@contextmanager
def drawn_from(seed: int) -> Iterator[random.Random]:
    """A block in which crops (by its generator) and augmentation (by torch's) follow one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield random.Random(seed)


def read_sample(index: SampleIndex, sample: Sample) -> Pair:
    """Image (h, w, 3) uint8 RGB and mask (h, w) uint8 {0, 1} of a sample.

    Raises DataError where the image cannot be read, or has another size than its mask.
    """
    path = index.image_path(sample)
    image = read_image(path)
    (height, width), (h, w) = image.shape[:2], sample.size
    if (height, width) != (h, w):
        stated = f"but its annotation says {h} x {w}; mend the annotation or the image"
        raise DataError(f"{path} has {height} x {width} pixels (height x width), {stated}")
    return image, sample.decode_mask()


@dataclass(frozen=True)
class Episode:
    """A query and its supports.

    Candidates are the other samples of its class in drawn order, repeated where there are fewer
    than shots; the first `shot` are the supports, the rest replace unreadable ones.
    """

    query: Sample
    candidates: tuple[Sample, ...]
    seed: int  # of the crops and the augmentation


class EpisodeList:
    """The episodes of a data set, one per query sample.

    A category whose samples lie in a single image is left out with one warning that names it. One
    with as few images as shots repeats its others (the published code searches for ever).

    Args:
        multiple: how often each query comes, with new supports each time.
        query_images: the images that are queries, all others being supports; empty: each is both.
        balanced: draw the query of an episode evenly among the objects, then among their
            categories, so that no object with many images rules a training.

    Raises DataError where no category has two images.
    """

    def __init__(
        self,
        index: SampleIndex,
        shot: int,
        seed: int,
        multiple: int = 1,
        query_images: Collection[str] = frozenset(),
        balanced: bool = False,
    ) -> None:
        self.balanced = balanced
        self.index, self.shot, self.seed = index, shot, seed
        samples, self.supports, single = index.samples, {}, []
        for key, members in index.classes().items():
            if len(members) > 1:
                self.supports[key] = [i for i in members if samples[i].image not in query_images]
            else:
                single.append(samples[members[0]].class_name)
        if single:
            names = ", ".join(sorted(single))
            LOG.warning("left out, a single image each, which leaves no support: %s", names)
        wanted = query_images or {sample.image for sample in samples}
        queries = [i for i, sample in enumerate(samples) if sample.class_key in self.supports]
        self.queries = [i for i in queries if samples[i].image in wanted for _ in range(multiple)]
        if not self.queries:
            among = f"in {len(index)} samples of {', '.join(index.objects()) or 'no object'}"
            need = "an episode needs a query and a support"
            raise DataError(f"{index.root}: no category with two labelled images {among}; {need}")

    def __len__(self) -> int:
        return len(self.queries)

    def with_seed(self, seed: int) -> EpisodeList:
        """The same queries with supports drawn from another seed."""
        other = copy(self)
        other.seed = seed
        return other

    def episode(self, index: int, epoch: int = 0) -> Episode:
        """The episode of this number in this epoch (for tests: repeat)."""
        query, samples = self.queries[index], self.index.samples
        seed = derive_seed(self.seed, epoch, index)
        if self.balanced:
            rng, keys = random.Random(derive_seed(seed)), list(self.supports)
            chosen = rng.choice(list(dict.fromkeys(name for name, _ in keys)))
            query = rng.choice(self.supports[rng.choice([k for k in keys if k[0] == chosen])])
        others = [i for i in self.supports[samples[query].class_key] if i != query]
        return Episode(samples[query], self._drawn(others, seed), seed)

    def supports_of(self, key: tuple[str, int], number: int) -> tuple[tuple[Sample, ...], int]:
        """Candidates and seed, see `Episode`, by which class `key` is looked for in the normal
        image of this number."""
        seed = derive_seed(self.seed, NORMAL_STREAM, number, list(self.supports).index(key))
        return self._drawn(self.supports[key], seed), seed

    def _drawn(self, positions: Sequence[int], seed: int) -> tuple[Sample, ...]:
        """Samples in an order drawn by the seed, repeated where there are fewer than shots."""
        order = list(positions)
        random.Random(seed).shuffle(order)
        return tuple(self.index.samples[i] for i in order * -(-self.shot // len(order)))


class TrainingEpisodes(Dataset):
    """Training episodes as tensors.

    An item is asked for by `epoch * len + index`, so that a worker needs nothing but the number. It
    is a dict of query (3, S, S) float32, query_mask (S, S) uint8, supports (K, 3, S, S) float32,
    support_masks (K, S, S) uint8 with K = shot x (views + normal_views), and the class name.
    """

    def __init__(self, episodes: EpisodeList, crops: TrainingCrops) -> None:
        self.episodes, self.crops = episodes, crops

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, number: int) -> dict[str, Tensor | str]:
        epoch, position = divmod(number, len(self))
        episode, index = self.episodes.episode(position, epoch), self.episodes.index
        with drawn_from(episode.seed) as rng:
            view = self.crops.query(*read_sample(index, episode.query), rng)
            query, query_mask = self.crops.augmented([view])
            views: list[Pair] = []
            for support in episode.candidates[: self.episodes.shot]:
                views += support_views(*read_sample(index, support), self.crops.settings, rng)
            supports, masks = self.crops.augmented(views)
        return {"query": query[0], "query_mask": query_mask[0], "supports": supports,
                "support_masks": masks, "class": episode.query.class_name}  # fmt: skip


class WindowEpisodes(Dataset):
    """Training episodes as `TrainingEpisodes` gives them, of windows as a test sees them: the query
    in one of those that cover its image, at one of the two scales that suit the supports, these in
    their central views and some of the windows that cover them. Nothing is augmented, so that a
    feature cache encodes every window once. Where an image has too few windows, blank views with
    all values 0 fill up.

    Args:
        normal_probability: that the query is any of its windows and not one with a defect.
    """

    def __init__(
        self, episodes: EpisodeList, settings: ViewSettings, normal_probability: float
    ) -> None:
        self.episodes, self.settings = episodes, settings
        self.normal_probability = normal_probability

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, number: int) -> dict[str, Tensor | str]:
        epoch, position = divmod(number, len(self))
        episode, index = self.episodes.episode(position, epoch), self.episodes.index
        rng, settings = random.Random(episode.seed), self.settings
        given = [read_sample(index, s) for s in episode.candidates[: self.episodes.shot]]
        side = rng.choice(window_sides([mask for _, mask in given], settings))
        image, mask = read_sample(index, episode.query)
        boxes = tile(*mask.shape, side)
        if rng.random() >= self.normal_probability:
            boxes = [box for box in boxes if cut(mask, box).any()]
        box = rng.choice(boxes)
        query, query_mask = prepare_views([(cut(image, box), cut(mask, box))], settings.image_size)
        count, size = settings.views + settings.normal_views, settings.image_size
        images, masks = torch.zeros(len(given), count, 3, size, size), []
        for place, (image, mask) in enumerate(given):
            central = central_boxes(mask, settings.views, side)
            others = [box for box in tile(*mask.shape, side) if box not in central]
            rng.shuffle(others)
            boxes = [*dict.fromkeys(central), *others][:count]
            shown = prepare_views([(cut(image, b), cut(mask, b)) for b in boxes], size)
            images[place, : len(boxes)] = shown[0]
            masks.append(F.pad(shown[1], (0, 0, 0, 0, 0, count - len(boxes))))
        return {"query": query[0], "query_mask": query_mask[0], "supports": images.flatten(0, 1),
                "support_masks": torch.cat(masks), "class": episode.query.class_name}  # fmt: skip


@dataclass
class EpisodeBatches:
    """Numbers of one process's training episodes, epoch after epoch in `per_epoch` batches.

    An epoch is a permutation of (seed, epoch), dealt out in turn to `world` processes; where that
    does not come out even, the first ones are dealt twice, so that no process waits for another.
    """

    length: int  # episodes of an epoch
    batch_size: int  # numbers per batch; the last one of an epoch may be smaller
    seed: int
    epochs: range  # in a row: workers load the next epoch while one ends or a test runs
    rank: int = 0
    world: int = 1
    skip: int = 0  # batches of the first epoch that are left out

    def __post_init__(self) -> None:
        self.share = -(-self.length // self.world)
        self.per_epoch = -(-self.share // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for epoch in self.epochs:
            numbers = self.numbers(epoch)
            first = self.skip * self.batch_size if epoch == self.epochs[0] else 0
            for start in range(first, len(numbers), self.batch_size):
                yield numbers[start : start + self.batch_size]

    def numbers(self, epoch: int) -> list[int]:
        """All numbers of this process in an epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
        positions = range(self.rank, self.share * self.world, self.world)
        return [epoch * self.length + int(order[p % self.length]) for p in positions]
