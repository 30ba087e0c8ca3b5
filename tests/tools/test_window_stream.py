from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets import large_images
from datasets.images import read_image
from datasets.views import prepare_image
from datasets.windows import tile
from models.memory import label
from tests.datasets.bad_files import saved
from tests.helpers import picture
from tests.models.tiny import features, shares
from tools.window_stream import windows

MEMORY = label(features(1), shares(1))
SMALL, LARGE, OTHER = (replace(MEMORY, window=side) for side in (64, 0, 50))
BOTH = replace(MEMORY, window=64, coarse=OTHER)


def cut(queries):
    """The queries, all their windows, and the network inputs of these."""
    waiting = deque()
    with ThreadPoolExecutor(2) as pool:
        stream = list(windows(queries, waiting, pool, size=32, overlap=0.25))
    return list(waiting), stream, [window.pixels.result() for window in stream]


@pytest.mark.parametrize("at_once", [100, 10**9], ids=["in strips", "whole"])
def test_windows_come_in_order_for_each_scale_once(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(large_images, "AT_ONCE", at_once)
    files = [saved(tmp_path / f"{i}.png", picture(100 + 60 * i, 130, seed=i)) for i in range(2)]
    several = [SMALL, LARGE, SMALL], [LARGE, SMALL, OTHER], [LARGE], [LARGE, BOTH]
    asked = list(zip([*files, *files], several, strict=True))
    queries, stream, pixels = cut(asked)
    came = zip(stream, pixels, strict=True)
    for query, (file, memories) in zip(queries, asked, strict=True):
        image = read_image(file)
        assert query.complete and query.error is None and not query.is_answered
        assert (query.image.pixels is None) == (at_once == 100)
        for side in dict.fromkeys(s.window for memory in memories for s in memory.scales):
            whole = [(0, image.shape[0], 0, image.shape[1])]
            boxes = tile(*image.shape[:2], side, 0.25) if side else whole
            assert query.boxes[side] == boxes and query.left[side] == len(boxes)
            for box, (window, values) in zip(boxes, came, strict=False):
                assert (window.query, window.side, window.box) == (query, side, box)
                part = image[box[0] : box[1], box[2] : box[3]]
                assert torch.equal(values, prepare_image(part, 32))
    assert len(stream) == sum(sum(query.left.values()) for query in queries)


def test_pixels_are_copied_before_their_array_is_filled_again():
    images, array = [picture(70, 70, seed=i) for i in range(4)], np.empty((70, 70, 3), np.uint8)

    def frames():
        for image in images:
            array[:] = image
            yield array, [LARGE]

    for pixels, image in zip(cut(frames())[2], images, strict=True):
        assert torch.equal(pixels, prepare_image(image, 32))
