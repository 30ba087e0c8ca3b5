"""What a data set holds: samples with run-length masks, and an index of them, saved as JSON."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from datasets.folders import ANY_PATH_KEY, named_files, plain
from datasets.rle import Rle, rle_area, rle_decode
from utils.errors import BROKEN, DataError, OutputError
from utils.output_files import write_whole

_FORMAT = 2
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """All pixels of one defect category in one image."""

    image: str  # path relative to the data set's root, with forward slashes
    object: str  # the product, such as "Ring_VISION"
    category: int  # its id within the object
    category_name: str
    mask: Rle = field(hash=False)  # of the image's size, not empty

    @property
    def size(self) -> tuple[int, int]:
        """Size (h, w) of image and mask, pixels."""
        height, width = self.mask["size"]
        return height, width

    @property
    def area_share(self) -> float:
        """Defect pixels divided by image pixels."""
        return rle_area(self.mask) / (self.size[0] * self.size[1])

    @property
    def class_key(self) -> tuple[str, int]:
        """What metrics and support choice tell classes apart by: (object, category)."""
        return self.object, self.category

    @property
    def class_name(self) -> str:
        """The class for people: object/category_name."""
        return f"{self.object}/{self.category_name}"

    def decode_mask(self) -> np.ndarray:
        """Mask, uint8 (h, w) in {0, 1}."""
        return rle_decode(self.mask)


@dataclass
class SampleIndex:
    """Samples of one or more objects."""

    root: Path  # that sample.image is relative to
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what the reader left out, one line each
    fingerprint: str = ""  # of the files that were read; empty for an index of several objects

    def __len__(self) -> int:
        return len(self.samples)

    def classes(self) -> dict[tuple[str, int], list[int]]:
        """Positions in samples of each (object, category), in the order of first appearance."""
        classes = {}
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
        return [path for path in paths if not os.path.isfile(path)]

    def save(self, path: str | Path) -> None:
        """Writes the index as JSON, whole or not at all."""
        content = {"format": _FORMAT, "fingerprint": self.fingerprint, "root": str(self.root)}
        content |= {"notes": self.notes, "samples": [vars(sample) for sample in self.samples]}
        try:
            write_whole(Path(path), json.dumps(content).encode())
        except OutputError as error:
            keys = "DATASET.vision_data_save_path or DATASET.vision_data_save"
            raise OutputError(f"{error}, or set {keys}") from error

    @classmethod
    def load(cls, path: str | Path) -> SampleIndex:
        """Reads what save wrote. Raises one of utils.errors.BROKEN for anything else."""
        content = json.loads(Path(path).read_bytes())
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r:.20}, expected {_FORMAT}")
        samples = [Sample(**entry) for entry in content["samples"]]
        return cls(Path(content["root"]), samples, content["notes"], content["fingerprint"])


@named_files()
def load_or_build(
    reader: ModuleType, name: str, root: str | Path, objects: Sequence[str], cache_dir: str | Path,
    save: bool, load: bool, key: str = ANY_PATH_KEY,
) -> SampleIndex:  # fmt: skip
    """Index of some objects of a data set, in their order; reader: a module of datasets.readers.

    save: write the index of each object to <cache_dir>/<name>/<object>.json.  load: take it from
    there if its fingerprint still fits.  key: the setting that holds root, for errors.
    Raises DataError for an object that is missing, broken, or has no sample.
    """
    root, merged = Path(root), SampleIndex(Path(root))
    for object_name in objects:
        path = Path(cache_dir) / name / f"{object_name}.json"
        current = fingerprint(root, reader.source_files(root, object_name, key))
        index = _load_fitting(path, current) if load else None
        if index is None:
            _LOG.info("reading %s in %s: no saved index of it is used", object_name, root)
            index = SampleIndex(root, *reader.read_object(root, object_name, key), current)
            if save:
                index.save(path)
        if not index.samples:
            why = f": {'; '.join(index.notes)}" if index.notes else ""
            fault = f"has no sample with a marked defect{why}"
            raise DataError(f"{object_name} in {root} ({key}) {fault}")
        merged.samples += index.samples
        merged.notes += index.notes
    return merged


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """sha256 over relative path, size and modification time of the files, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(files):
        status, relative = path.stat(), path.relative_to(root).as_posix()
        digest.update(f"{relative}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _load_fitting(path: Path, current: str) -> SampleIndex | None:
    """A saved index of files that have not changed since."""
    try:
        index = SampleIndex.load(path)
    except FileNotFoundError:
        return None
    except BROKEN as error:
        _LOG.warning("%s: no index of samples (%.300r): reading the data set again", path, error)
        return None
    return index if index.fingerprint == current else None


def join_categories(
    known: dict[str, tuple[int, Path]], file: Path, names: Mapping[int, str], used: Iterable[int]
) -> dict[int, int]:
    """Numbers of a file's categories over all files of an object, by its own: one for each name.

    A new name keeps its number; where another name of the same file has that, it gets the next free
    one.  known: number and file of each name so far; new ones are added.  names: of all categories
    by the file's own numbers.  used: the numbers that its annotations have.
    Raises DataError, with both files, where a number stands for one name here and for another one
    there, or two names differ only in case, blanks or Unicode form.
    """
    for number in used:
        name = names[number]
        if name in known:
            continue
        for other, (taken, source) in known.items():
            is_alike = _spelling(other) == _spelling(name)
            if is_alike or (taken == number and other not in names.values()):
                fault = f"category {number} is {name!r:.200}, but in {source} it is {other!r:.200}"
                remedy = "spell them alike if they are the same, else change name and number of one"
                raise DataError(f"{file}: {fault}; {remedy}")
        in_use = {value for value, _ in known.values()}
        known[name] = (max(in_use | set(names)) + 1 if number in in_use else number), file
    return {number: known[names[number]][0] for number in used}


def _spelling(name: str) -> str:
    return " ".join(plain(name).split())
