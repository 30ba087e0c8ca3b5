"""Numbers of an object's categories over several annotation files: one for each name, however the files count."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.errors import DataError


class CategoryNumbers:
    """The numbers given so far: a name has that of the first file that holds it."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}
        self.file: dict[str, Path] = {}

    def add(self, file: Path, names: Mapping[int, str], used: Iterable[int]) -> dict[int, int]:
        """Take in the categories of a file; the numbers from here on by the file's own.

        A name that comes twice has one number. A new name whose number belongs to another name gets the next free one
        where the file holds that other name, too, and so counts in its own way.

        Args:
            file: that holds them.
            names: of all its categories by the file's own numbers.
            used: numbers that its annotations have.

        Raises:
            DataError: a number stands for one name here and for another one there, or two names differ only in case,
                blanks or Unicode form; names both files.
        """
        owner = {number: name for name, number in self.number.items()}
        given: dict[int, int] = {}
        for number in used:
            name = names[number]
            if name not in self.number:
                self._refuse_other_spelling(file, name)
                taken = owner.get(number)
                if taken is not None and taken not in names.values():
                    raise DataError(
                        f"{file}: category {number} is {name!r:.200}, but in {self.file[taken]} it is {taken!r:.200}; "
                        "call it the same in both where it is the same, else give it a number of its own"
                    )
                free = max([*self.number.values(), *names]) + 1
                self.number[name] = free if number in self.number.values() else number
                self.file[name] = file
            given[number] = self.number[name]
        return given

    def _refuse_other_spelling(self, file: Path, name: str) -> None:
        for known, there in self.file.items():
            if _plain(known) == _plain(name):
                raise DataError(
                    f"{file}: category {name!r:.200} is spelt {known!r:.200} in {there}; spell it alike where it is "
                    "the same, else give it another name"
                )


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())
