"""The feature bank: crops drawn once, their features on disk, training episodes read from there."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.episodes import TrainingEpisodes, derive_seed, drawn_from, read_sample
from datasets.views import support_views
from utils.errors import ConfigError

# roles of a crop: query, support view around a defect, support view of normal pixels
QUERY, VIEW, NORMAL = range(3)


class BankCrops(Dataset):
    """The crops of a bank: `count` per role of each sample that episodes use.

    A crop is drawn from (seed, sample, role, number) alone. Item i is a dict of the place i, images
    (crops, 3, S, S) float32 and masks (crops, S, S) uint8 of the i-th sample, role by role.
    """

    def __init__(self, episodes: TrainingEpisodes, count: int) -> None:
        self.episodes, self.count = episodes, count
        roles = 3 if episodes.crops.settings.normal_views else 2
        self.per_sample = roles * count
        self.positions = sorted(set(episodes.episodes.queries))
        samples = episodes.episodes.index.samples
        self.places = {samples[position]: place for place, position in enumerate(self.positions)}

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, place: int) -> dict[str, int | Tensor]:
        images, masks = self.drawn(place, range(self.per_sample))
        return {"place": place, "images": images, "masks": masks}

    def drawn(self, place: int, numbers: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Some crops of a sample, by number: (n, 3, S, S) float32 and (n, S, S) uint8."""
        crops, episodes = self.episodes.crops, self.episodes.episodes
        position = self.positions[place]
        image, mask = read_sample(episodes.index, episodes.index.samples[position])
        drawn = []
        for role, number in (divmod(n, self.count) for n in numbers):
            with drawn_from(derive_seed(episodes.seed, position, role, number)) as rng:
                if role == QUERY:
                    view = crops.query(image, mask, rng)
                else:
                    counts = {"views": int(role == VIEW), "normal_views": int(role == NORMAL)}
                    (view,) = support_views(image, mask, replace(crops.settings, **counts), rng)
                drawn.append(crops.augmented([view]))
        images, masks = zip(*drawn, strict=True)
        return torch.cat(images), torch.cat(masks)


@dataclass(frozen=True)
class FeatureBank:
    """Features (channels of all layers, h, w of the grid) and masks of crops in two memory-mapped
    files of a folder, a row per crop."""

    folder: Path
    rows: int
    channels: int
    grid: tuple[int, int]
    image_size: int

    @property
    def nbytes(self) -> int:
        """Size of the files, bytes."""
        return self.rows * (2 * self.channels * self.grid[0] * self.grid[1] + self.image_size**2)

    def create(self) -> None:
        """Make the files at their full size, in place of those that a killed run has left. Raises
        ConfigError where the disk has too little space."""
        self.remove()
        self.folder.mkdir(parents=True)
        free, masks = shutil.disk_usage(self.folder).free, self.rows * self.image_size**2
        if self.nbytes > free:
            need = f"{self.rows:,} crops need {self.nbytes:,} bytes in {self.folder}, and {free:,}"
            remedy = "lower TRAIN.feature_bank (0: no bank), or set OUTPUT_DIR to a larger disk"
            raise ConfigError(f"TRAIN.feature_bank: {need} are free there; {remedy}")
        # reserved, not sparse: a map that finds the disk full kills the process
        for name, size in (("features.bf16", self.nbytes - masks), ("masks.uint8", masks)):
            with (self.folder / name).open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)

    def remove(self) -> None:
        """Delete the files where there are any."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def write(self, row: int, features: Tensor, masks: Tensor) -> None:
        """Store crops from `row` on: (n, channels, h, w) float, kept as bfloat16, and (n, S, S)
        uint8, on the CPU."""
        part = slice(row, row + len(features))
        kept, marks = self._maps("r+")
        kept[part] = features.to(torch.bfloat16).view(torch.int16).numpy()
        marks[part] = masks.numpy()

    def read(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Copies of crops: features (n, channels, h, w) bfloat16 and masks (n, S, S) uint8."""
        features, masks = (torch.from_numpy(np.asarray(part[rows])) for part in self._maps("r"))
        return features.view(torch.bfloat16), masks

    def _maps(self, mode: str) -> tuple[np.memmap, np.memmap]:
        # opened for each call: an open map would be copied whole into a process that is not forked
        shape = (self.rows, self.channels, *self.grid)  # int16, as numpy has no bfloat16
        square = (self.rows, self.image_size, self.image_size)
        features = np.memmap(self.folder / "features.bf16", np.int16, mode, shape=shape)
        return features, np.memmap(self.folder / "masks.uint8", np.uint8, mode, shape=square)


class BankEpisodes(Dataset):
    """Training episodes read from a bank, with the queries and supports of `TrainingEpisodes`.

    The crops are chosen by (seed, epoch, index). An item is a dict of query_features (C, h, w)
    bfloat16 of all layers, query_mask (S, S) uint8, support_features (K, C, h, w) bfloat16,
    support_masks (K, S, S) uint8, the class name and the number that it was asked for by.
    """

    def __init__(self, crops: BankCrops, bank: FeatureBank) -> None:
        self.crops, self.bank = crops, bank

    def __len__(self) -> int:
        return len(self.crops.episodes)

    def __getitem__(self, number: int) -> dict[str, Tensor | str | int]:
        class_name, rows = self._drawn(number)
        features, masks = self.bank.read(rows)
        return {"query_features": features[0], "query_mask": masks[0], "support_masks": masks[1:],
                "support_features": features[1:], "class": class_name,
                "number": number}  # fmt: skip

    def images(self, number: int) -> dict[str, Tensor | str]:
        """The episode as `TrainingEpisodes` gives one: the images of its features, drawn again."""
        class_name, rows = self._drawn(number)
        places = (divmod(row, self.crops.per_sample) for row in rows)
        drawn = [self.crops.drawn(place, [within]) for place, within in places]
        images, masks = (torch.cat(part) for part in zip(*drawn, strict=True))
        return {"query": images[0], "query_mask": masks[0], "supports": images[1:],
                "support_masks": masks[1:], "class": class_name}  # fmt: skip

    def _drawn(self, number: int) -> tuple[str, list[int]]:
        """Class name and rows of an episode, the query's first."""
        epoch, position = divmod(number, len(self))
        training, count = self.crops.episodes, self.crops.count
        episode = training.episodes.episode(position, epoch)
        rng, settings = random.Random(episode.seed), training.crops.settings
        rows = [self.crops.places[episode.query] * self.crops.per_sample + rng.randrange(count)]
        for support in episode.candidates[: training.episodes.shot]:
            first = self.crops.places[support] * self.crops.per_sample
            for role, wanted in ((VIEW, settings.views), (NORMAL, settings.normal_views)):
                # no crop comes twice before all were taken
                rounds = range(-(-wanted // count))
                numbers = [k for _ in rounds for k in rng.sample(range(count), count)]
                rows += [first + role * count + k for k in numbers[:wanted]]
        return episode.query.class_name, rows
