"""Examples for the page: drawn products with a marked defect and images to find it in."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import cv2
import numpy as np

from datasets.demo import wanted_shares
from datasets.demo.products import PRODUCTS
from datasets.demo.render import render
from tools.app.sessions import Picture, Session

SEED = 54


@dataclass(frozen=True)
class Example:
    """A product of the demo, the images that teach its first type of defect, and those to segment,
    by their numbers."""

    title: str
    product: str
    supports: tuple[int, ...]
    queries: tuple[int, ...]


EXAMPLES = {
    "mesh": Example("Woven mesh with broken wires", "woven_mesh", (0,), (2, 3, 1)),
    "cap": Example("Moulded caps with burns", "Moulded_Cap", (0,), (2, 4, 5)),
}


def draw(
    session: Session, example: Example
) -> tuple[str, list[tuple[Picture, np.ndarray]], list[Picture]]:
    """Draw an example into a session: type of defect, supports with masks (h, w) uint8 {0, 1},
    queries."""
    product = PRODUCTS[example.product]
    supports, queries = [], []
    for index in (*example.supports, *example.queries):
        image, defects = render(product, SEED, index, wanted_shares(product, index))
        coded = cv2.imencode(".png", image)[1].tobytes()
        picture = session.add(BytesIO(coded), f"{example.product}_{index}.png")
        if index in example.supports:
            marks = [mask for category, mask in defects if category == 0]
            supports.append((picture, np.maximum.reduce(marks)))
        else:
            queries.append(picture)
    return product.looks[0].name, supports, queries
