"""Train a head on the training objects of a split and test it: `train.py --cfg FILE --opts ...`."""

import sys

from tools.cli import run_main

if __name__ == "__main__":
    sys.exit(run_main(__doc__, "tools.trainer:run_training"))
