"""What a command has done, a line for each image, so that it goes on where it was killed; the
tables are made of it."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from datasets.annotations import coco_json
from tools.defects import COLUMNS, Defect
from tools.segment.queries import Query
from utils.distributed import barrier, is_main, rank
from utils.errors import BROKEN, DataError
from utils.output_files import not_written, sha256_of, whole_file

FOLDER = ".segment"  # below --out
LINES = "done.jsonl"  # of the main process; others have NUMBER.jsonl, which join it
CSV, JSON = "defects.csv", "defects.json"
Stamp = tuple[int, int]  # bytes, and time of change in nanoseconds


def stamp_of(path: Path) -> Stamp | None:
    """Size and time of change of a file; None where there is none."""
    try:
        status = path.stat()
    except OSError:  # whoever reads it says why
        return None
    return status.st_size, status.st_mtime_ns


class Journal:
    """The images that are done, in the order in which they were; all processes make it together.

    Entries of other `settings` than this command's, a digest, count as not done.

    Raises:
        OutputError: it cannot be written.
        DataError: it is broken.
    """

    def __init__(self, out: Path, settings: str) -> None:
        self.out, self.settings = out, settings
        self._places: dict[str, tuple[int, str]] = {}  # offset and settings, by file
        self._owners: dict[str, str] = {}  # file by name of its answers
        self._lines = out / FOLDER / LINES
        if is_main():
            self.join()
        barrier()
        if not is_main():
            self._index()
        self._own = self._lines if is_main() else self._lines.with_name(f"{rank()}.jsonl")

    @property
    def files(self) -> list[str]:
        """Names of all images, also of other settings."""
        return list(self._places)

    @property
    def current(self) -> list[str]:
        """Names of the images of this command's settings, in the order of a folder's queries."""
        files = (f for f, (_, settings) in self._places.items() if settings == self.settings)
        return sorted(files, key=PurePosixPath)

    def entry(self, file: str) -> dict[str, Any]:
        """What was written about an image."""
        with self._lines.open("rb") as lines:
            lines.seek(self._places[file][0])
            return json.loads(lines.readline())

    def name_of(self, file: str) -> str:
        """A name for the answers to an image that stays, whatever images come after it: without
        suffix where no other image has that name."""
        name = file.removesuffix(PurePosixPath(file).suffix)
        return name if self._owners.setdefault(name, file) == file else file

    def has(self, query: Query) -> bool:
        """Whether an image was done as it is now, by its size and time of change or its content,
        and its answers are all there."""
        if self._places.get(query.file, (0, ""))[1] != self.settings:
            return False
        entry, stamp = self.entry(query.file), stamp_of(query.path)
        if entry["name"] != query.name or stamp is None or entry["stamp"] is None:
            return False
        if list(stamp) != entry["stamp"] and (
            stamp[0] != entry["stamp"][0] or sha256_of(query.path) != entry["sha256"]
        ):
            return False
        return all((self.out / answer).is_file() for answer in entry["answers"])

    def add(
        self,
        query: Query,
        source: tuple[Stamp | None, str],
        size: tuple[int, int],
        answers: Sequence[Path],
        defects: Sequence[Defect],
    ) -> None:
        """Write that an image of size (h, w) is done. `source` is the stamp and the SHA-256 of its
        file before it was read, `answers` the files that were written. Those of an earlier answer
        to it, of other types for instance, go."""
        entry = {"file": query.file, "name": query.name, "path": os.path.abspath(query.path)}
        entry |= {"settings": self.settings, "stamp": source[0], "sha256": source[1], "size": size}
        entry["answers"] = [path.relative_to(self.out).as_posix() for path in answers]
        entry["rows"] = [defect.row() for defect in defects]
        entry["marks"] = [(defect.kind, defect.mark) for defect in defects]
        earlier = self.entry(query.file)["answers"] if query.file in self._places else ()
        for stale in (self.out / answer for answer in set(earlier) - set(entry["answers"])):
            try:
                stale.unlink(missing_ok=True)
            except OSError as error:
                raise not_written(stale, error) from error
        offset = _append(self._own, [json.dumps(entry).encode() + b"\n"])
        if is_main():
            self._places[query.file] = offset, self.settings

    def join(self) -> None:
        """Take over the lines of other processes, also of an earlier command that was killed; the
        main process calls it."""
        self._index()
        for part in sorted(self._lines.parent.glob("[0-9]*.jsonl")):
            _append(self._lines, (line for _, line in _whole_lines(part)))
            part.unlink()
        self._index()

    def _index(self) -> None:
        end = 0
        for offset, line in _whole_lines(self._lines):
            try:
                entry = json.loads(line)
                self._places[entry["file"]] = offset, entry["settings"]
                self._owners[entry["name"]] = entry["file"]
            except BROKEN as error:
                remedy = f"delete {self._lines.parent}, and all is done anew"
                raise DataError(
                    f"{self._lines}: not as this command writes it; {remedy}"
                ) from error
            end = offset + len(line)
        if is_main() and self._lines.is_file():
            try:
                os.truncate(self._lines, end)  # a line that was cut off when its process was killed
            except OSError as error:
                raise not_written(self._lines, error) from error


def _append(path: Path, lines: Iterable[bytes]) -> int:
    """Append lines to a file; returns the offset of the first."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            offset = file.tell()
            file.writelines(lines)
        return offset
    except OSError as error:
        raise not_written(path, error) from error


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and text of each line that was written to its end; none without a file."""
    if not path.is_file():
        return
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)


def write_tables(journal: Journal, files: Sequence[str], kinds: Sequence[str]) -> tuple[int, int]:
    """Write defects.csv and defects.json of images in this order, by types of defect; returns how
    many defects there are, and in how many images."""

    def marked() -> Iterator[tuple[str, tuple[int, int], list[tuple[str, dict[str, Any]]]]]:
        for entry in map(journal.entry, files):
            yield entry["file"], tuple(entry["size"]), entry["marks"]

    found = []
    with whole_file(journal.out / CSV, confirmed=True) as file:
        text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="", write_through=True)
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["file", *COLUMNS])
        for entry in map(journal.entry, files):
            table.writerows([entry["file"], *row] for row in entry["rows"])
            found.append(len(entry["rows"]))
        text.detach()
    with whole_file(journal.out / JSON, confirmed=True) as file:
        file.writelines(piece.encode() for piece in coco_json(kinds, marked()))
    return sum(found), sum(map(bool, found))
