"""What a data set holds: samples with run-length masks, and an index of them that is saved as plain JSON."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from datasets.folders import ANY_PATH_KEY, named_files
from datasets.masks import Rle, is_rle, rle_area, rle_decode
from utils.errors import DataError, OutputError
from utils.output_files import write_whole
from utils.warn_once import Notice, kept_notices, warn_once

_FORMAT = 2
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """All pixels of one defect category in one image.

    image: path relative to the data set's root, with forward slashes.  object: the product, e.g. "Ring_VISION".
    category: its id within the object.  mask: run lengths of the image's size, at least one pixel marked.
    """

    image: str
    object: str
    category: int
    category_name: str
    mask: Rle = field(hash=False)

    @property
    def size(self) -> tuple[int, int]:
        """Size (h, w) of image and mask, pixels."""
        height, width = self.mask["size"]
        return height, width

    @property
    def area_share(self) -> float:
        """Defect pixels divided by image pixels."""
        height, width = self.size
        return rle_area(self.mask) / (height * width)

    @property
    def class_key(self) -> tuple[str, int]:
        """What metrics and support choice tell classes apart by: (object, category)."""
        return self.object, self.category

    @property
    def class_name(self) -> str:
        """The class for people: object/category_name."""
        return f"{self.object}/{self.category_name}"

    def moved(self, folder: str) -> Sample:
        """The same sample with its image below `folder`, a path relative to the root of another index."""
        return replace(self, image=Path(folder, self.image).as_posix())

    def decode_mask(self) -> np.ndarray:
        """Mask, uint8 (h, w) in {0, 1}."""
        return rle_decode(self.mask)


class Reader(Protocol):
    """A data set's layout on disk; vision_v1 and ds_spectrum are such modules."""

    def read_object(self, root: Path, object: str, key: str) -> tuple[list[Sample], list[str]]:
        """Samples of one object, and one line for each kind of thing that was left out."""

    def has_object(self, root: Path, object: str) -> bool:
        """Whether the root holds the object."""

    def source_files(self, root: Path, object: str, key: str) -> list[Path]:
        """The files whose change makes a saved index of the object stale."""

    def normal_images(self, root: Path, object: str, key: str) -> list[Path]:
        """Images of one object that have no defect, sorted; the list may be empty."""


@dataclass
class SampleIndex:
    """Samples of one or more objects.

    root: the folder that sample.image is relative to.  notes: what the reader left out, one line each.
    fingerprint: of the files the samples were read from; empty for an index of several objects.
    notices: warnings of the reading, for a saved index to give them again.
    """

    root: Path
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fingerprint: str = ""
    notices: list[Notice] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.samples)

    def classes(self) -> dict[tuple[str, int], list[int]]:
        """Positions in samples of each (object, category), in the order of first appearance."""
        classes: dict[tuple[str, int], list[int]] = {}
        for position, sample in enumerate(self.samples):
            classes.setdefault(sample.class_key, []).append(position)
        return classes

    def objects(self) -> list[str]:
        """Names of the objects, in the order of first appearance."""
        return list(dict.fromkeys(sample.object for sample in self.samples))

    def image_path(self, sample: Sample) -> Path:
        """Where the image of a sample lies."""
        return self.root / sample.image

    def missing_images(self) -> list[Path]:
        """Images that samples name and that are not on disk, each once."""
        paths = dict.fromkeys(self.image_path(sample) for sample in self.samples)
        return [
            path for path in paths if not os.path.isfile(path)
        ]  # also: a name that the system refuses

    def save(self, path: str | Path) -> None:
        """Writes the index as JSON, whole or not at all. Raises OutputError where the folder cannot be written."""
        content = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "root": str(self.root),
            "notes": self.notes,
        }
        content |= {"notices": self.notices}
        content["samples"] = [vars(sample) for sample in self.samples]
        try:
            write_whole(Path(path), json.dumps(content).encode())
        except OutputError as error:
            raise OutputError(
                f"{error}, or set DATASET.vision_data_save_path or DATASET.vision_data_save"
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> SampleIndex:
        """Reads what save wrote. Raises DataError if the file is missing, broken or of another format version."""
        try:
            content = json.loads(Path(path).read_bytes())
            version = content["format"]
            if version != _FORMAT:
                raise DataError(
                    f"{path}: index of format {version}, expected {_FORMAT}; delete it to have it rebuilt"
                )
            samples = [_sample_of_json(entry) for entry in content["samples"]]
            notes = [str(note) for note in content["notes"]]
            notices = [(str(message), str(about)) for message, about in content["notices"]]
            return cls(Path(content["root"]), samples, notes, str(content["fingerprint"]), notices)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path}: no index of samples ({type(error).__name__}: {error}); delete it to have it rebuilt"
            ) from error


@named_files()
def load_or_build(
    read: Reader,
    name: str,
    root: str | Path,
    objects: Sequence[str],
    cache_dir: str | Path,
    save: bool,
    load: bool,
    key: str = ANY_PATH_KEY,
) -> SampleIndex:
    """Index of some objects of a data set, in the order of objects, from <cache_dir>/<name>/<object>.json or from disk.

    load: take a saved index whose fingerprint still fits the annotation files; others are rebuilt with a log message.
    save: write what was built.  key: the setting that holds root, named in errors.
    Raises DataError for an object that is missing, broken, or has no sample.
    """
    merged = SampleIndex(Path(root))
    for object_name in objects:
        path = Path(cache_dir) / name / f"{object_name}.json"
        index = _object_index(read, Path(root), object_name, path, save, load, key)
        if not index.samples:
            told = f": {'; '.join(index.notes)}" if index.notes else ""
            raise DataError(
                f"{object_name} in {root} ({key}) has no sample with a marked defect{told}"
            )
        merged.samples += index.samples
        merged.notes += index.notes
    return merged


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """sha256 over relative path, size and modification time of the files, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(files):
        status = path.stat()
        digest.update(
            f"{path.relative_to(root).as_posix()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode()
        )
    return digest.hexdigest()


def _object_index(
    read: Reader, root: Path, object_name: str, path: Path, save: bool, load: bool, key: str
) -> SampleIndex:
    current = fingerprint(root, read.source_files(root, object_name, key))
    saved = _load_fitting(path, current) if load else None
    if saved is not None:
        for message, about in saved.notices:
            warn_once(_LOG, message, about)
        return saved
    with kept_notices() as notices:
        samples, notes = read.read_object(root, object_name, key)
    index = SampleIndex(root, samples, notes, current, notices)
    if save:
        index.save(path)
    return index


def _load_fitting(path: Path, current: str) -> SampleIndex | None:
    if not path.is_file():  # a pipe would be waited for
        _LOG.info("no saved index %s: reading the data set", path)
        return None
    try:
        index = SampleIndex.load(path)
    except DataError as error:
        _LOG.warning("reading the data set again: %s", error)
        return None
    if index.fingerprint != current:
        _LOG.info("the data set has changed since %s was saved: reading it again", path)
        return None
    return index


def _sample_of_json(entry: dict) -> Sample:
    sample = Sample(**entry)
    kinds = {"image": str, "object": str, "category": int, "category_name": str, "mask": dict}
    for part in fields(Sample):
        if type(getattr(sample, part.name)) is not kinds[part.name]:
            raise TypeError(f"{part.name} is {getattr(sample, part.name)!r:.80}")
    if not is_rle(sample.mask):
        raise ValueError(f"mask is {sample.mask!r:.80}, no run lengths")
    return sample
