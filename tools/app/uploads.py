"""What requests bring: images, marks, and what is to be taught."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from starlette.datastructures import FormData, UploadFile

from datasets.annotations import read_annotation
from datasets.rle import rle_encode
from tools.app.jobs import KIND
from tools.app.sessions import Picture, Session, Support, keep
from utils.errors import DataError

MOST_TYPES = 16


def _picture(session: Session, part: UploadFile | str) -> Picture:
    """The image of a part: uploaded with it, or named by its id."""
    if isinstance(part, str):
        return session.picture(part)
    return session.add(part.file, part.filename or "image")


def read_pictures(session: Session, form: FormData) -> list[Picture]:
    """The images of a request."""
    if not (parts := form.getlist("images")):
        raise DataError("no image is given; send at least one as `images`")
    return [_picture(session, part) for part in parts]


def read_lessons(session: Session, form: FormData) -> tuple[list[Support], list[str]]:
    """The supports, with marks, and the pictures of normal images of a request to teach."""
    images, masks, types = (form.getlist(name) for name in ("images", "masks", "types"))
    normals = form.getlist("normals")
    if len(images) != len(masks) or len(types) not in (0, 1, len(images)):
        counts = f"{len(images)} images, {len(masks)} masks and {len(types)} types"
        remedy = "give one mask per image, and no type, one for all, or one per image"
        raise DataError(f"{counts}; {remedy}")
    if not images and not normals:
        raise DataError("nothing to teach; give an image with a mask, or a normal image")
    kinds = types if len(types) == len(images) else (types or [""]) * len(images)
    marked: dict[str, int] = {}
    supports = []
    for part, upload, name in zip(images, masks, kinds, strict=True):
        picture = _picture(session, part)
        for kind, marks in read_marks_of(session, picture, upload, checked_kind(name)).items():
            supports.append(Support(picture.id, kind, rle_encode(marks)))
            marked[kind] = marked.get(kind, 0) + int(marks.sum())
    for kind, area in marked.items():
        if not area:
            remedy = "mark the defect, or give the image as a normal one"
            raise DataError(f"{kind}: no pixel is marked in any of its images; {remedy}")
    if len(marked) > MOST_TYPES:
        raise DataError(f"{len(marked)} types of defect; at most {MOST_TYPES} are taught at once")
    return supports, [_picture(session, part).id for part in normals]


def read_marks_of(
    session: Session, picture: Picture, upload: Any, kind: str
) -> dict[str, np.ndarray]:
    """By type, what a mask or annotation file marks in an image, (h, w) uint8 {0, 1}; `kind` is the
    one type wanted, "": all that the file names."""
    if not isinstance(upload, UploadFile):
        raise DataError(f"{picture.name}: the mask is no file; send a mask image or annotations")
    with tempfile.TemporaryDirectory(dir=session.folder) as scratch:
        file = keep(upload.file, upload.filename or "mask", Path(scratch))
        marks = read_annotation(file, picture.file, picture.size, kind)
    if not marks:
        remedy = "give the image as a normal one where it has no defect"
        raise DataError(f"{file.name}: marks nothing in {picture.name}; {remedy}")
    return {name or KIND: mask for name, mask in marks.items()}


def checked_kind(name: str) -> str:
    """The name of a type as it is kept."""
    name = " ".join(name.split())
    if len(name) > 60 or not name.isprintable():
        raise DataError(f"type {name!r:.80}: expected at most 60 printable characters")
    return name


def runs_of(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of a mask (h, w) {0, 1} row by row, of 0 and 1 in turn, 0 first."""
    flat = mask.ravel()
    ends = np.flatnonzero(np.diff(flat, prepend=np.uint8(0)))
    return np.diff(ends, prepend=0, append=flat.size).tolist()
