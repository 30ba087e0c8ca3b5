"""Test a head on a split, or segment open domain objects: `test.py --cfg FILE [--opts KEY VALUE ...]`."""

import sys

from tools.tester import run_test
from utils.main import run_main

if __name__ == "__main__":
    sys.exit(run_main(__doc__, run_test))
