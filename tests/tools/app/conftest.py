from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from method_config import load_config
from tests.helpers import picture
from tools.app.server import create_app
from tools.predictor import Predictor

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


@pytest.fixture(scope="session")
def predictor():
    """Without training, offline: the method `prior` on efficientnet_lite0."""
    cfg = load_config(DEMO, ["TEST.method", "prior", "TEST.baseline", False])
    return Predictor.from_config(cfg)


def answer(predictor, pairs, image):
    """What the predictor itself answers."""
    (outcome,) = predictor.segment([(image, [predictor.teach(pairs)])], reproducible=True)
    return outcome.answers[0][predictor.main]


@pytest.fixture
def app(predictor, tmp_path):
    return create_app(predictor, tmp_path / "app", ["localhost", "127.0.0.1"])


@pytest.fixture
def client(app):
    with TestClient(app, base_url="http://localhost:7860") as client:
        yield client


@pytest.fixture(scope="module")
def address(predictor, tmp_path_factory):
    """Of a server that runs in a thread."""
    app = create_app(predictor, tmp_path_factory.mktemp("app"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
