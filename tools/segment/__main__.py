"""Segment images by a few annotated examples of a defect, without training.

`--support` takes an image and its annotation: a mask, LabelMe or COCO JSON, CVAT XML, or YOLO txt;
its labels are types of defect. NAME=IMG,ANNOTATION as one argument names the type. The exit code is
0 where no defect is left, 1 where there is one, 2 after a mistake.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from method_config import load_config
from tools.cli import exit_code
from utils.errors import ConfigError

CONFIG = Path(__file__).parents[2] / "method_config" / "General" / "SOFS.yaml"
MISTAKE = 2  # exit code
Support = tuple[str, Path, Path]  # type of defect, "" where the labels tell; image; annotation


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    found = False

    def call() -> None:
        nonlocal found
        args = parse(sys.argv[1:] if argv is None else argv)
        opts = ["TEST.baseline", False, *args.opts]
        opts += ["TEST.threshold", args.threshold] if args.threshold else []
        cfg = load_config(args.cfg or [CONFIG], opts)
        from tools.segment.job import run  # with PyTorch, which takes seconds

        found = run(args, cfg)

    try:
        code = exit_code(call)
    except Exception:  # 1, Python's own exit code, would say that there is a defect
        sys.excepthook(*sys.exc_info())
        return MISTAKE
    return int(found) if code == 0 else max(code, MISTAKE)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; `support` is a list of `Support`. ConfigError: they contradict each other."""
    parser = argparse.ArgumentParser(
        "python -m tools.segment", description=__doc__, allow_abbrev=False,
        usage="%(prog)s --support IMG ANNOTATION [--support ...] [--normal IMG_OR_DIR] "
        "QUERY_OR_DIR ... --out DIR [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add, to = parser.add_argument, Path
    add("queries", nargs="+", type=to, metavar="QUERY_OR_DIR", help="images, or folders of them")
    add("--out", type=to, required=True, metavar="DIR", help="where masks and tables are written")
    add("--support", action="append", metavar="IMG ANNOTATION | NAME=IMG,ANNOTATION",
        help="an example; give it again for more")  # fmt: skip
    add("--normal", action="append", type=to, default=[], metavar="IMG_OR_DIR",
        help="images without defect; give it again for more")  # fmt: skip
    add("--memory", type=to, metavar="F", help="what --save-memory wrote, in place of supports")
    add("--save-memory", type=to, metavar="F", help="keep what the supports teach: a file, or of "
        "several types a folder")  # fmt: skip
    add("--threshold", metavar="T", help="score above which a pixel is defect, or auto")
    add("--min-area", type=int, default=1, metavar="PIXELS", help="smaller defects are left out")
    add("--min-score", type=float, default=0.0, metavar="S",
        help="defects whose greatest score is lower are left out")  # fmt: skip
    add("--scores", action="store_true", help="write score maps, too")
    add("--report", action="store_true", help="write report.html, too")
    add("--watch", action="store_true", help="segment images as they arrive in the folders, until "
        "Ctrl-C")  # fmt: skip
    add("--cfg", nargs="+", action="extend", metavar="FILE", help=f"YAML files, not {CONFIG.name}")
    add("--opts", nargs="*", default=[], metavar="KEY VALUE", help="settings that win")
    supports, rest = take_supports(argv)
    args = parser.parse_intermixed_args(rest)
    args.support = supports
    if args.memory and (supports or args.normal or args.save_memory):
        fault = "--memory stands in place of --support, --normal and --save-memory"
        raise ConfigError(f"{fault}; give the one or the others")
    if not args.memory and not supports:
        remedy = "give an example, --support IMG ANNOTATION, or --memory F"
        raise ConfigError(f"nothing says what a defect is; {remedy}")
    if args.min_area < 1 or not args.min_score >= 0:
        given = f"--min-area {args.min_area}, --min-score {args.min_score}"
        raise ConfigError(f"{given}: expected pixels from 1 on and a score from 0 on")
    return args


def take_supports(argv: Sequence[str]) -> tuple[list[Support], list[str]]:
    """The supports out of a command line, whose --support has one or two arguments, and the rest,
    where each leaves its first argument, as it ends a list of files before it (--cfg).

    Raises ConfigError for a --support without its annotation.
    """
    supports, rest, left = [], [], list(argv)
    while left:
        word = left.pop(0)
        option, _, first = word.partition("=")
        if option != "--support":
            rest.append(word)
            continue
        first = first or (left.pop(0) if left else "")
        if support := _named(first):
            supports.append(support)
        elif first and not first.startswith("--") and left and not left[0].startswith("--"):
            supports.append(("", Path(first), Path(left.pop(0))))
        else:
            expected = "an image and its annotation, IMG ANNOTATION, or NAME=IMG,ANNOTATION"
            raise ConfigError(f"--support {first}: expected {expected}")
        rest.append(f"--support={first}")
    return supports, rest


def _named(text: str) -> Support | None:
    """What NAME=IMG,ANNOTATION says; None for other text, and for the name of a file."""
    name, equals, files = text.partition("=")
    if not (name.strip() and equals and "," in files) or Path(text).exists():
        return None
    cuts = [place for place, letter in enumerate(files) if letter == ","]
    pairs = [(Path(files[:cut]), Path(files[cut + 1 :])) for cut in cuts]
    whole = (pair for pair in pairs if all(path.exists() for path in pair))  # a comma in a name
    return (name.strip(), *next(whole, pairs[0]))


if __name__ == "__main__":
    sys.exit(main())
