"""Images with a defect, and what the predictor itself answers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers import picture

DEMO = Path(__file__).parents[3] / "method_config" / "Demo" / "SOFS.yaml"
SIZE = (200, 300)


def defect(seed, place=(60, 90), side=24, size=SIZE):
    """A textured image with a bright square, and its mask."""
    image, mask = picture(*size, seed=seed) // 4 + 60, np.zeros(size, np.uint8)
    rows, columns = (slice(start, start + side) for start in place)
    image[rows, columns] += 120
    mask[rows, columns] = 1
    return image, mask


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def read(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def answer(predictor, pairs, image):
    """What the predictor itself answers."""
    (outcome,) = predictor.segment([(image, [predictor.teach(pairs)])], reproducible=True)
    return outcome.answers[0][predictor.main]
