"""Serve a page on which defects are taught and images segmented, and the same as an HTTP API.

    python -m tools.app [--host 127.0.0.1] [--port 7860] [--cfg FILE ...] [--opts KEY VALUE ...]

All that users send lies in a temporary folder, which is deleted at the end.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
from pathlib import Path

import uvicorn
from yacs.config import CfgNode

from method_config import add_config_arguments, load_config
from tools.cli import exit_code
from utils.console import say
from utils.errors import ConfigError

CONFIG = Path(__file__).parents[2] / "method_config" / "General" / "SOFS.yaml"
# what --opts may change: images that a browser can show, and no method beside the one asked for
OPTIONS = ["DATASET.max_pixels", 64_000_000, "TEST.baseline", False]
LOCAL, ANY = ["127.0.0.1", "localhost", "::1"], ["0.0.0.0", "::"]
PATIENCE = 3  # seconds for open requests at the end


def main() -> None:
    """Parse the command line and serve until a signal comes.

    Raises:
        UserError: the settings or weights are wrong, or the address cannot be had.
    """
    parser = argparse.ArgumentParser("python -m tools.app", description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all")
    parser.add_argument("--port", type=int, default=7860, help="0: any that is free")
    add_config_arguments(parser, required=False)
    args = parser.parse_args()
    cfg = load_config(args.cfg or CONFIG, [*OPTIONS, *args.opts])
    if cfg.TEST.protocol == "published":
        raise ConfigError("TEST.protocol is 'published', whose masks have no threshold that could "
                          "be moved; leave it out")  # fmt: skip
    with (
        _listening(args.host, args.port) as listener,
        tempfile.TemporaryDirectory(prefix="sofs-app-") as folder,
    ):
        tempfile.tempdir = folder  # of uploads on their way, too
        _serve(cfg, listener, args.host, Path(folder))


def _listening(host: str, port: int) -> socket.socket:
    """A socket at this address, had before the model takes its time."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        fault = f"cannot listen at {host}, port {port} ({error})"
        raise ConfigError(f"{fault}; choose another --port or --host") from error


def _serve(cfg: CfgNode, listener: socket.socket, host: str, folder: Path) -> None:
    from tools.app.server import create_app  # PyTorch takes seconds, after the config has proved
    from tools.predictor import Predictor

    predictor = Predictor.from_config(cfg)
    app = create_app(predictor, folder, LOCAL if host in LOCAL else None)
    options = {"log_level": "warning", "timeout_graceful_shutdown": PATIENCE}
    shown = "127.0.0.1" if host in ANY else f"[{host}]" if ":" in host else host
    say(f"open http://{shown}:{listener.getsockname()[1]} in a browser; Ctrl-C ends")
    uvicorn.Server(uvicorn.Config(app, **options)).run([listener])


if __name__ == "__main__":
    sys.exit(exit_code(main))
