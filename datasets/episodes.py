"""Episodes: which supports explain which query. Everything is drawn from (seed, epoch, index) alone."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from datasets.images import read_image
from datasets.samples import Sample, SampleIndex
from datasets.views import (
    TrainTransform,
    ViewSettings,
    cut,
    prepare_views,
    support_views,
    training_query_box,
)
from utils.errors import DataError

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Episode:
    """A query and its supports.

    Attributes:
        index: number of the episode within its epoch or repeat.
        query: the sample to segment.
        candidates: all other samples of its class, in drawn order, repeated where there are fewer than shots; the
            first `shot` are the supports, the rest stand in for images that cannot be read.
        seed: of the crops and the augmentation.
    """

    index: int
    query: Sample
    candidates: tuple[Sample, ...]
    seed: int


def derive_seed(*parts: int) -> int:
    """One well-mixed 32-bit seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class EpisodeList:
    """The episodes of a data set, one per query sample.

    A category whose samples lie in a single image cannot form an episode: it is left out with one warning that names
    it. A category with as few images as shots uses each of its other images, repeated as needed (the published code
    searches for ever).

    Args:
        index: the samples.
        shot: supports per episode.
        seed: of everything drawn.
        multiple: how often each query comes, with new supports each time.
        query_images: the images that are queries, all others being supports; empty: each is both.
    """

    def __init__(
        self,
        index: SampleIndex,
        shot: int,
        seed: int,
        multiple: int = 1,
        query_images: Collection[str] = frozenset(),
    ) -> None:
        self.index, self.shot, self.seed = index, shot, seed
        self.classes = {
            key: members for key, members in index.classes().items() if len(members) > 1
        }
        left_out = sorted(
            index.samples[m[0]].class_name
            for k, m in index.classes().items()
            if k not in self.classes
        )
        if left_out:
            LOG.warning(
                "left out, a single image each, which leaves no support: %s", ", ".join(left_out)
            )
        queries = [
            i
            for i, sample in enumerate(index.samples)
            if sample.class_key in self.classes
            and (not query_images or sample.image in query_images)
        ]
        self.supports = {
            key: [i for i in members if index.samples[i].image not in query_images]
            for key, members in self.classes.items()
        }
        self.queries = [i for i in queries for _ in range(multiple)]
        if not self.queries:
            raise DataError(
                f"{index.root}: no category with two labelled images in {len(index)} samples of "
                f"{', '.join(index.objects()) or 'no object'}; an episode needs a query and a support"
            )

    def __len__(self) -> int:
        return len(self.queries)

    def with_seed(self, seed: int) -> EpisodeList:
        """The same queries with supports drawn from another seed."""
        other = copy(self)
        other.seed = seed
        return other

    def episode(self, index: int, epoch: int = 0) -> Episode:
        """The episode of this number in this epoch (for tests: repeat)."""
        query = self.queries[index]
        seed = derive_seed(self.seed, epoch, index)
        others = [i for i in self.supports[self.index.samples[query].class_key] if i != query]
        random.Random(seed).shuffle(others)
        repeats = -(-self.shot // len(others))
        candidates = tuple(self.index.samples[i] for i in others * repeats)
        return Episode(index, self.index.samples[query], candidates, seed)

    def describe(self, *episodes: Episode) -> str:
        """Files and class of episodes of one query, for messages."""
        query = episodes[0].query
        supports = {
            self.index.image_path(s): None for e in episodes for s in e.candidates[: self.shot]
        }
        return f"{self.index.image_path(query)} ({query.class_name}) with supports {', '.join(map(str, supports))}"


@contextmanager
def drawn_from(seed: int) -> Iterator[random.Random]:
    """A block in which crops (by the generator given) and augmentation (by torch's) come from one seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield random.Random(seed)


class TrainingCrops:
    """Augmented crops of training images.

    Args:
        settings: how samples become inputs.
        crop_ratio: range of the random factor on the crop size of a query.
        normal_probability: that a query crop is centred on a normal pixel.
        degrees: range of the training rotation.
    """

    def __init__(
        self,
        settings: ViewSettings,
        *,
        crop_ratio: tuple[float, float],
        normal_probability: float,
        degrees: tuple[float, float],
    ) -> None:
        self.settings = settings
        self.crop_ratio, self.normal_probability = crop_ratio, normal_probability
        self.transform = TrainTransform(degrees)

    def query(
        self, image: np.ndarray, mask: np.ndarray, rng: random.Random
    ) -> tuple[np.ndarray, np.ndarray]:
        """One query view of an image and its mask, native pixels, not augmented yet."""
        box = training_query_box(
            mask,
            side=max(1, round(self.settings.crop_size * rng.uniform(*self.crop_ratio))),
            resize_ratio=self.settings.resize_ratio,
            normal_probability=self.normal_probability,
            rng=rng,
        )
        return cut(image, box), cut(mask, box)

    def augmented(self, views: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
        """Views to augmented network inputs: (K, 3, S, S) float32 and (K, S, S) uint8."""
        return prepare_views([self.transform(*view) for view in views], self.settings.image_size)


class TrainingEpisodes(Dataset):
    """Training episodes as tensors.

    An item is asked for by `epoch * len + index`, so that a worker needs nothing but the number. It is a dict of
    query (3, S, S) float32, query_mask (S, S) uint8, supports (K, 3, S, S) float32, support_masks (K, S, S) uint8 with
    K = shot x (views + normal_views), and the class name.

    Args:
        episodes: which queries and supports.
        crops: how they become inputs.
    """

    def __init__(self, episodes: EpisodeList, crops: TrainingCrops) -> None:
        self.episodes, self.crops = episodes, crops

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, number: int) -> dict[str, Tensor | str]:
        epoch, index = divmod(number, len(self))
        episode = self.episodes.episode(index, epoch)
        with drawn_from(episode.seed) as rng:
            view = self.crops.query(*read_sample(self.episodes.index, episode.query), rng)
            query, query_mask = self.crops.augmented([view])
            views = [
                v
                for s in episode.candidates[: self.episodes.shot]
                for v in self._support_views(s, rng)
            ]
            supports, support_masks = self.crops.augmented(views)
        return {
            "query": query[0],
            "query_mask": query_mask[0],
            "supports": supports,
            "support_masks": support_masks,
            "class": episode.query.class_name,
        }

    def describe(self, number: int) -> str:
        """Files and class of an item."""
        epoch, index = divmod(number, len(self))
        return self.episodes.describe(self.episodes.episode(index, epoch))

    def _support_views(
        self, sample: Sample, rng: random.Random
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        return support_views(*read_sample(self.episodes.index, sample), self.crops.settings, rng)


def read_sample(index: SampleIndex, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Image (h, w, 3) uint8 RGB and mask (h, w) uint8 {0, 1} of a sample.

    Raises:
        DataError: the image cannot be read, or has another size than its mask.
    """
    path = index.image_path(sample)
    image = read_image(path)
    if image.shape[:2] != sample.size:
        raise DataError(f"{path} has {image.shape[0]} x {image.shape[1]} pixels (height x width), but its annotation "
                        f"says {sample.size[0]} x {sample.size[1]}; mend the annotation or the image")  # fmt: skip
    return image, sample.decode_mask()


class EpisodeSampler(Sampler):
    """Numbers of one process's training episodes: a permutation of (seed, epoch), dealt out in turn to `world` ranks.

    Every rank gets equally many, so that none waits for another: the first ones are dealt twice where it does not come
    out even.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.length, self.seed, self.rank, self.world = length, seed, rank, world
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.length // self.world)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        for position in range(self.rank, len(self) * self.world, self.world):
            yield self.epoch * self.length + int(order[position % self.length])
