"""Image files that are odd or broken, each written by a function of its path."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

RGB = np.random.default_rng(0).integers(0, 256, (12, 18, 3), dtype=np.uint8)
GREY = RGB[:, :, 0].copy()


def saved(path, pixels, mode=None, form=None, **options):
    """Write pixels, converted to a mode, in the format of the suffix or another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, form, **options)
    return path


def with_orientation(path, pixels, orientation, **options):
    """Write an image that viewers turn."""
    exif = Image.Exif()
    exif[274] = orientation
    return saved(path, pixels, exif=exif, **options)


def truncated(path, pixels=RGB):
    """Write the first two thirds of an image file."""
    saved(path, pixels)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def warnings_about(caplog, path):
    """Warnings that name a path."""
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    return [message for message in messages if str(path) in message]


REFUSED = {  # what it is: how it is written
    "empty": lambda path: path.write_bytes(b""),
    "truncated": truncated,
    "text": lambda path: path.write_text("no image"),
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "pipe": lambda path: os.mkfifo(path),
    "floats": lambda path: saved(path, np.ones((12, 18), np.float32), form="TIFF"),
    "svg": lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9'/>"),
    "postscript": lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%EndComments\n"),
}
