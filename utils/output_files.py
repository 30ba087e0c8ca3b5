"""Files that are whole or not there, whatever ends the process or fills the disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from utils.errors import OutputError

PARTIAL = ".partial"  # ending of a file that is being written
LONGEST_NAME = 220  # bytes; file systems take 255, of which the name of a partial file needs some
_UNFIT = re.compile(r"[/\\\0\ud800-\udc7f\udd00-\udfff]")  # what no file name can hold


@contextmanager
def whole_file(path: Path, *, confirmed: bool = False) -> Iterator[BinaryIO]:
    """Yield a file beside `path` that is renamed to it at the end of the block, where `confirmed`
    after the disk has stored the content; makes folders. OutputError: it cannot be written; an
    earlier file of that name is unchanged."""
    aside = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                yield file
                if confirmed:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    except OSError as error:
        unchanged = "; the earlier file is unchanged" if path.is_file() else ""
        raise not_written(path, error, unchanged) from error


def not_written(path: str | Path, error: OSError, further: str = "") -> OutputError:
    """The error that names a file, why it cannot be written, and the remedy."""
    remedy = "free space there, check its permissions, or choose another place"
    return OutputError(f"{path} cannot be written ({error.strerror}){further}; {remedy}")


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file as `whole_file` does, confirmed."""
    with whole_file(path, confirmed=True) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 as `write_whole` does; undecodable bytes of file names become escapes."""
    write_whole(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON as `write_whole` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file as lower-case hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_name(text: str, suffix: str = "") -> str:
    """`text` and a suffix as the name of a file: one part of a path. Characters that no name can
    hold become `_`; a name of over 220 bytes is cut and ends in a digest of the whole."""
    name = _UNFIT.sub("_", text) or "_"
    if name in (".", "..") and not suffix:
        name = "_" * len(name)
    content, end = os.fsencode(name), os.fsencode(suffix)
    if len(content) + len(end) <= LONGEST_NAME:
        return name + suffix
    digest = hashlib.sha256(content).hexdigest()[:8]
    kept = content[: LONGEST_NAME - len(end) - len(digest) - 1].decode("utf-8", "ignore")
    return f"{kept}~{digest}{suffix}"
