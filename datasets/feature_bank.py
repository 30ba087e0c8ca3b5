"""The feature bank: crops that are drawn once, what the backbone made of them on disk, and episodes read from there."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.episodes import TrainingEpisodes, derive_seed, drawn_from, read_sample
from datasets.samples import Sample
from datasets.views import support_views
from utils.errors import ConfigError

QUERY, VIEW, NORMAL = range(
    3
)  # roles of a crop: query, support view around a defect, support view of normal pixels


class BankCrops(Dataset):
    """The crops of a bank: `count` per role of each sample that episodes use.

    A crop is drawn from (seed, sample, role, number) alone. Item i is a dict of the place i, images
    (crops, 3, S, S) float32 and masks (crops, S, S) uint8 of the i-th sample, role by role.

    Args:
        episodes: the training whose samples are cropped.
        count: crops per sample and role (`TRAIN.feature_bank`).
    """

    def __init__(self, episodes: TrainingEpisodes, count: int) -> None:
        self.episodes, self.count = episodes, count
        self.roles = (
            (QUERY, VIEW, NORMAL) if episodes.crops.settings.normal_views else (QUERY, VIEW)
        )
        self.positions = sorted(set(episodes.episodes.queries))

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, place: int) -> dict[str, int | Tensor]:
        image, mask = self._read(place)
        drawn = [
            self._draw(image, mask, place, role, k)
            for role in self.roles
            for k in range(self.count)
        ]
        images, masks = (torch.stack(part) for part in zip(*drawn, strict=True))
        return {"place": place, "images": images, "masks": masks}

    def describe(self, place: int) -> str:
        """File and class of an item."""
        index = self.episodes.episodes.index
        sample = index.samples[self.positions[place]]
        return f"{index.image_path(sample)} ({sample.class_name})"

    @property
    def per_sample(self) -> int:
        """Crops of one sample."""
        return len(self.roles) * self.count

    def row(self, sample: Sample, role: int, number: int) -> int:
        """Row of a crop in the bank."""
        return self._places[sample] * self.per_sample + role * self.count + number

    def crop(self, row: int) -> tuple[Tensor, Tensor]:
        """The crop of a row, drawn again: (3, S, S) float32 and (S, S) uint8."""
        place, within = divmod(row, self.per_sample)
        return self._draw(*self._read(place), place, *divmod(within, self.count))

    @cached_property
    def _places(self) -> dict[Sample, int]:
        samples = self.episodes.episodes.index.samples
        return {samples[position]: place for place, position in enumerate(self.positions)}

    def _read(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        index = self.episodes.episodes.index
        return read_sample(index, index.samples[self.positions[place]])

    def _draw(
        self, image: np.ndarray, mask: np.ndarray, place: int, role: int, number: int
    ) -> tuple[Tensor, Tensor]:
        crops = self.episodes.crops
        seed = derive_seed(self.episodes.episodes.seed, self.positions[place], role, number)
        with drawn_from(seed) as rng:
            if role == QUERY:
                view = crops.query(image, mask, rng)
            else:
                one = replace(
                    crops.settings, views=int(role == VIEW), normal_views=int(role == NORMAL)
                )
                (view,) = support_views(image, mask, one, rng)
            images, masks = crops.augmented([view])
        return images[0], masks[0]


@dataclass(frozen=True)
class FeatureBank:
    """Features and masks of crops in two memory-mapped files, a row per crop.

    The files are opened for each read: an open map would be copied whole into a worker that is not forked.

    Attributes:
        folder: of the two files.
        rows: crops.
        channels: of all layers together.
        grid: tokens (h, w) of a crop.
        image_size: side of a mask, pixels.
    """

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
        """Make the files at their full size, in place of those that a killed run has left.

        Raises:
            ConfigError: the disk has too little space, or refuses.
        """
        self.remove()
        self.folder.mkdir(parents=True)
        free = shutil.disk_usage(self.folder).free
        if self.nbytes > free:
            raise self._does_not_fit(free, "")
        try:
            for path, size in self._sizes().items():
                with path.open(
                    "wb"
                ) as file:  # reserved, not sparse: a map that finds the disk full kills the process
                    os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise self._does_not_fit(free, f" ({error.strerror})") from error

    def remove(self) -> None:
        """Delete the files where there are any."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def write(self, row: int, features: Tensor, masks: Tensor) -> None:
        """Store crops from `row` on: CPU tensors (n, channels, h, w) float, kept as bfloat16, and (n, S, S) uint8."""
        end = row + len(features)
        self._features("r+")[row:end] = features.to(torch.bfloat16).view(torch.int16).numpy()
        self._masks("r+")[row:end] = masks.numpy()

    def read(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Copies of crops: features (n, channels, h, w) bfloat16 and masks (n, S, S) uint8."""
        features, masks = self._features("r")[rows], self._masks("r")[rows]
        return torch.from_numpy(np.asarray(features)).view(torch.bfloat16), torch.from_numpy(
            np.asarray(masks)
        )

    def _features(self, mode: str) -> np.memmap:
        shape = (self.rows, self.channels, *self.grid)
        return np.memmap(
            self.folder / "features.bf16", np.int16, mode, shape=shape
        )  # numpy has no bfloat16

    def _masks(self, mode: str) -> np.memmap:
        shape = (self.rows, self.image_size, self.image_size)
        return np.memmap(self.folder / "masks.uint8", np.uint8, mode, shape=shape)

    def _sizes(self) -> dict[Path, int]:
        masks = self.rows * self.image_size**2
        return {
            self.folder / "features.bf16": self.nbytes - masks,
            self.folder / "masks.uint8": masks,
        }

    def _does_not_fit(self, free: int, reason: str) -> ConfigError:
        return ConfigError(
            f"TRAIN.feature_bank: {self.rows:,} crops need {self.nbytes:,} bytes in {self.folder}, and {free:,} are "
            f"free there{reason}; lower TRAIN.feature_bank (0: no bank), or set OUTPUT_DIR to a larger disk"
        )


class BankEpisodes(Dataset):
    """Training episodes read from a bank: queries and supports are those of `TrainingEpisodes` of the same seed.

    The crops are chosen by (seed, epoch, index). An item, asked for in the same way, is a dict of
    query_features (C, h, w) bfloat16 of all layers, query_mask (S, S) uint8, support_features (K, C, h, w) bfloat16,
    support_masks (K, S, S) uint8, the class name and the number that it was asked for by.

    Args:
        crops: what the bank holds.
        bank: the files.
    """

    def __init__(self, crops: BankCrops, bank: FeatureBank) -> None:
        self.crops, self.bank = crops, bank
        self.episodes = crops.episodes.episodes

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, number: int) -> dict[str, Tensor | str | int]:
        class_name, rows = self._drawn(number)
        features, masks = self.bank.read(rows)
        return {
            "query_features": features[0],
            "query_mask": masks[0],
            "support_features": features[1:],
            "support_masks": masks[1:],
            "class": class_name,
            "number": number,
        }

    def describe(self, number: int) -> str:
        """The bank, and files and class of an item."""
        return f"{self.bank.folder}: {self.crops.episodes.describe(number)}"

    def images(self, number: int) -> dict[str, Tensor | str]:
        """The same episode as `TrainingEpisodes` gives one: the images that its features were made of, drawn again."""
        class_name, rows = self._drawn(number)
        images, masks = (
            torch.stack(part) for part in zip(*map(self.crops.crop, rows), strict=True)
        )
        return {
            "query": images[0],
            "query_mask": masks[0],
            "supports": images[1:],
            "support_masks": masks[1:],
            "class": class_name,
        }

    def _drawn(self, number: int) -> tuple[str, list[int]]:
        """Class name and rows of an episode: the query's, then its supports'."""
        epoch, index = divmod(number, len(self))
        episode, settings = self.episodes.episode(index, epoch), self.crops.episodes.crops.settings
        rng = random.Random(episode.seed)
        rows = [self.crops.row(episode.query, QUERY, rng.randrange(self.crops.count))]
        for sample in episode.candidates[: self.episodes.shot]:
            for role, views in ((VIEW, settings.views), (NORMAL, settings.normal_views)):
                rows += [
                    self.crops.row(sample, role, k) for k in _choose(self.crops.count, views, rng)
                ]
        return episode.query.class_name, rows


def _choose(count: int, wanted: int, rng: random.Random) -> list[int]:
    """`wanted` of `count` numbers, none again before all were taken."""
    rounds = -(-wanted // count)
    return [k for _ in range(rounds) for k in rng.sample(range(count), count)][:wanted]
