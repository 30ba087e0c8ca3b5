"""Test a head on a split, or segment objects of your own: `test.py --cfg FILE [--opts ...]`."""

import sys

from tools.cli import run_main

if __name__ == "__main__":
    sys.exit(run_main(__doc__, "tools.evaluator:run_test"))
