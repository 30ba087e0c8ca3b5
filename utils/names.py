"""Names of files made of names that users choose."""

from __future__ import annotations

import hashlib
import os
import re

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
