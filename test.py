"""Test a head on a split, or segment open domain objects: `test.py --cfg FILE [--opts KEY VALUE ...]`."""

import sys

from tools.cli import run_main

if __name__ == "__main__":
    sys.exit(run_main(__doc__, "tools.evaluator:run_test"))
