from __future__ import annotations

import threading
import time

import pytest
import uvicorn
from fastapi.testclient import TestClient

from method_config import load_config
from tests.tools.app.app_data import DEMO
from tools.app.server import create_app
from tools.predictor import Predictor


@pytest.fixture(scope="session")
def predictor():
    """Without training, offline: the method `prior` on efficientnet_lite0."""
    cfg = load_config(DEMO, ["TEST.method", "prior", "TEST.baseline", False])
    return Predictor.from_config(cfg)


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
