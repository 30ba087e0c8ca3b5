"""Export a model for other programs, or to run faster here: encoder, comparison and head as graphs.

DIR gets `encoder` and `answer` as ONNX (.onnx) or OpenVINO (.xml, .bin) files, `memory.safetensors`
of a taught defect where --support gives one, and `manifest.json`, which says what goes in and what
comes out. TEST.runtime_path runs such an encoder in every job. See docs/export.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from method_config import add_config_arguments, load_config
from tools.cli import exit_code


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m tools.export", description=__doc__, formatter_class=plain
    )
    add = parser.add_argument
    add_config_arguments(parser)
    add("--format", choices=("onnx", "openvino"), default="openvino", help="default: openvino")
    add("--precision", choices=("fp32", "bf16", "int8"), default="fp32",
        help="of the encoder; default: fp32")  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR", help="folder that is written")
    add("--images", type=Path, nargs="+", default=[], metavar="IMG_OR_DIR",
        help="what int8 is calibrated on, and the export compared on; default: the supports of an "
             "open-domain object, or labelled images of the test objects")  # fmt: skip
    add("--support", type=Path, metavar="FILE", help="a taught defect, of Predictor.save_support")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for faults that the user can mend."""
    args = parse(argv)

    def call() -> None:
        cfg = load_config(args.cfg, args.opts)
        from tools.export.job import export  # with PyTorch, which takes seconds

        export(args, cfg)

    return exit_code(call)


if __name__ == "__main__":
    sys.exit(main())
