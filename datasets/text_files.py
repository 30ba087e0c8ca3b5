"""Text files of data sets: read as UTF-8, or refused with what they seem to be."""

from __future__ import annotations

import codecs
from pathlib import Path

from datasets.image_faults import foreign
from utils.errors import DataError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """Text of a file in UTF-8, without a byte order mark.

    Raises:
        DataError: it is in another encoding, or a web page or an archive under the file's name.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    if other := foreign(content[:64]):
        raise DataError(f"{path}: not the file meant, but {other}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = content.startswith(_UTF16)
        found = "but UTF-16" if wide else f"(byte 0x{content[error.start]:02x} at {error.start})"
        encoding = "-f UTF-16" if wide else "-f WINDOWS-1252, or -f GB18030 for Chinese,"
        raise DataError(
            f"{path}: is not UTF-8 {found}; save it as UTF-8: iconv {encoding} -t UTF-8 {path.name}"
        ) from error
