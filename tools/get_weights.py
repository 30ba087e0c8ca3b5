"""Fetch backbones' weights into the cache: `python -m tools.get_weights NAME ...`, names as
TRAIN.backbone has them. Official files come first, also where others are in the cache."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from models.weights import BACKBONES, weights_of
from tools.cli import exit_code
from utils.console import say
from utils.errors import ConfigError
from utils.output_files import sha256_of


def get_weights(names: Sequence[str]) -> None:
    """Fetch the weights of backbones, and print where each file is, what it is, and its SHA-256.

    Raises:
        ConfigError: a name is none of `BACKBONES`; nothing is fetched then.
        WeightsError: weights cannot be fetched.
    """
    if unknown := [name for name in names if name not in BACKBONES]:
        raise ConfigError(
            f"{', '.join(unknown)}: no such backbone with a file to fetch; there are "
            f"{', '.join(BACKBONES)}"
        )
    for name in names:
        weights = weights_of(name, renew=True)
        say(f"{name}: {weights.path}, {weights.about}, SHA-256 {sha256_of(weights.path)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for faults that the user can mend."""
    parser = argparse.ArgumentParser("python -m tools.get_weights", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="such as dinov2_vits14")
    return exit_code(lambda: get_weights(parser.parse_args(argv).names))


if __name__ == "__main__":
    sys.exit(main())
