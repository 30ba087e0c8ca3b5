"""Files that are there whole or not at all, whatever kills the process or fills the disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from utils.errors import OutputError

PARTIAL = ".partial"  # ending of what is not whole yet


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file as `whole_file` does, confirmed by the disk: not even a power failure leaves less."""
    with whole_file(path, confirmed=True) as file:
        file.write(content)


@contextmanager
def whole_file(path: Path, *, confirmed: bool = False) -> Iterator[BinaryIO]:
    """A file aside that gets the name `path` at the end of the block; folders are made as needed.

    Args:
        path: of the file.
        confirmed: wait until the disk has it.

    Raises:
        OutputError: it cannot be written; what was there before is as it was.
    """
    aside = path.with_name(
        f".{path.name}.{os.getpid()}{PARTIAL}"
    )  # processes of one run may write the same file
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
        if confirmed:
            _confirm_name(path.parent)
    except OSError as error:
        raise not_written(
            path, error, "; the earlier file is unchanged" if path.is_file() else ""
        ) from error


def not_written(path: str | Path, error: OSError, further: str = "") -> OutputError:
    """The fault that says of a file why it cannot be written, with the remedy for that."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "free space there"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "see to the permissions of its folder"
    else:
        remedy = "see to what stands there, or choose another place"
    return OutputError(f"{path} cannot be written ({error.strerror}){further}; {remedy}")


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, as `write_whole` does; what a file name has that is no text is written as an escape."""
    write_whole(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented, as `write_whole` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file as lower-case hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_partial(folder: Path) -> None:
    """Delete what processes that are no more have left unfinished below a folder."""
    for path in folder.rglob(f".*{PARTIAL}"):
        process = path.name.removesuffix(PARTIAL).rpartition(".")[2]
        if not Path("/proc", process).exists():
            path.unlink(missing_ok=True)


def _confirm_name(folder: Path) -> None:
    """Have the disk confirm a new name: after a power failure the old file would come back."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


LONGEST = 220  # bytes; file systems take 255, of which a file that is being written needs some
_UNFIT = re.compile(r"[/\\\0\ud800-\udc7f\udd00-\udfff]")


def file_name(text: str, suffix: str = "") -> str:
    """`text` and a suffix as the name of a file: one part of a path, of at most 220 bytes.

    What no name can hold becomes `_`; a name that is too long is cut and ends in a digest of the whole.
    """
    name = _UNFIT.sub("_", text)
    name = "_" * max(1, len(name)) if name in ("", ".", "..") and not suffix else name or "_"
    content = os.fsencode(name)
    if len(content) + len(os.fsencode(suffix)) <= LONGEST:
        return name + suffix
    digest = hashlib.sha256(content).hexdigest()[:8]
    kept = content[: LONGEST - len(os.fsencode(suffix)) - len(digest) - 1]
    return f"{kept.decode('utf-8', 'ignore')}~{digest}{suffix}"
