"""Train and test a published experiment and sum it up: `python -m tools.sweep vision_v1`.

Its runs and summary.md, summary.json, summary.csv lie in OUTPUT_DIR/NAME. The same command again
goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from method_config import get_defaults, load_config
from method_config.checks import leads_out
from method_config.values import expanded, get, hint, leaves, merge, read_yaml
from models.methods import BASELINE, method_class
from models.weights import require_file
from tools.checkpoint import epochs_done
from tools.cli import exit_code
from tools.evaluator import run_test
from tools.sweep_summary import write_summary
from tools.trainer import run_training
from utils.console import say
from utils.distributed import started_by_torchrun
from utils.errors import ConfigError
from utils.logging import setup_logging
from utils.output_files import sha256_of

LOG = logging.getLogger(__name__)
CONFIGS = Path(__file__).parents[1] / "method_config"
PROTOCOLS = CONFIGS / "protocols"
METRICS = "metrics.json"
RESUME, LOAD_HEAD, HEAD = "TRAIN.resume", "TEST.load_checkpoint", "TEST.load_model_path"
# keys that a sweep sets itself -> what to use instead
SET_BY_SWEEP = {"RUN_NAME": "--name", "DATASET.split": "--splits", "DATASET.shot": "--shots"}
SET_BY_SWEEP |= {"RNG_SEED": "--seeds", LOAD_HEAD: "--heads", HEAD: "--heads"}
SET_BY_SWEEP[RESUME] = "the same command again, which goes on where the sweep was interrupted"
Settings = dict[str, Any]  # full dotted key -> value


# --- Plan: every run with its whole config, before any of them starts ----------------------------


@dataclass(frozen=True, eq=False)
class Run:
    """One training or test: `settings` differ from the YAML file `file`, `cfg` is the whole tree.

    `training` is that of a test whose head it loads; None: it has a given head, or none.
    """

    file: Path
    settings: Settings
    cfg: CfgNode
    trains: bool = False
    training: Run | None = None

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return Path(self.cfg.OUTPUT_DIR) / self.cfg.RUN_NAME

    @property
    def checkpoints(self) -> Path:
        """Of a training: where its heads and its state lie."""
        return self.folder / "checkpoints"

    @property
    def head(self) -> Path:
        """Of a training: the head that its tests load, the best one where validation keeps one."""
        best = self.checkpoints / "best.safetensors"
        return best if best.is_file() else self.checkpoints / "head.safetensors"

    def config(self, changes: Settings) -> CfgNode:
        """Its config with some changes."""
        return load_config(self.file, _flat(self.settings | changes))

    def command(self) -> str:
        """The command line of train.py or test.py that does the same."""
        script = "train.py" if self.trains else "test.py"
        return shlex.join([script, "--cfg", str(self.file), "--opts", *_flat(self.settings)])


@dataclass(frozen=True)
class Sweep:
    """A protocol and what the arguments of `build_parser` ask of it.

    `config` is the YAML file that all runs start from; `splits` holds the settings of each split,
    of None where the data have no splits; `train` is None where nothing is trained.
    """

    args: argparse.Namespace
    config: Path
    splits: dict[int | None, Settings]
    shots: list[int]
    train: Settings | None
    test: Settings

    @cached_property
    def _draft(self) -> CfgNode:
        """The config of tests but for what differs from run to run."""
        for key in self.args.opts[::2]:
            if key in SET_BY_SWEEP:
                fault = f"command line: {key} differs from run to run of a sweep"
                raise ConfigError(f"{fault}; use {SET_BY_SWEEP[key]}")
        return load_config(self.config, [*_flat(self.test), *self.args.opts])

    def folder(self) -> Path:
        """Where its runs and its summary lie; ConfigError for an impossible --name or --opts."""
        name = self.args.name or self.args.protocol
        if leads_out(name) or name.startswith("~"):
            raise ConfigError(f"--name: {name} is no folder below OUTPUT_DIR; set OUTPUT_DIR, too")
        return Path(self._draft.OUTPUT_DIR) / name

    def runs(self) -> list[Run]:
        """All runs in their order: by seed and split, a training before its tests.

        ConfigError: a setting is impossible or the sweep's own, or there is no head to test;
        WeightsError: a file of --heads is missing.
        """
        method, heads, folder = self._draft.TEST.method, self.args.heads, str(self.folder())
        needs_head = method_class(method).needs_training
        if heads and not needs_head:
            raise ConfigError(f"--heads: TEST.method is {method}, which has no head; drop one")
        if needs_head and self.train is None and not heads:
            fault = f"{self.args.protocol} trains no head for TEST.method {method}"
            raise ConfigError(f"{fault}; give one with --heads, or use {BASELINE}")
        runs = []
        for seed in dict.fromkeys(self.args.seeds or [self._draft.RNG_SEED]):
            for split in self.splits:
                where = f"seed{seed}" if split is None else f"split{split}_seed{seed}"
                own: Settings = {"OUTPUT_DIR": folder, "RNG_SEED": seed}
                own |= {} if split is None else {"DATASET.split": split}
                training = None
                if heads:
                    file = heads.replace("{split}", str(split)).replace("{seed}", str(seed))
                    own |= {LOAD_HEAD: True, HEAD: str(require_file(expanded(file), "--heads"))}
                elif needs_head:
                    training = self._run(own | {"RUN_NAME": f"train_{where}"}, trains=True)
                    runs.append(training)
                    own |= {LOAD_HEAD: True, HEAD: str(training.head)}
                for shot in dict.fromkeys(self.shots):
                    named = {"RUN_NAME": f"test_{where}_{shot}shot", "DATASET.shot": shot}
                    runs.append(self._run(own | named, training=training))
        return runs

    def _run(self, own: Settings, trains: bool = False, training: Run | None = None) -> Run:
        """The settings of the split, then of the training or test, the user's, the sweep's own."""
        given = dict(zip(self.args.opts[::2], self.args.opts[1::2], strict=True))
        part = self.train if trains else self.test
        settings = self.splits[own.get("DATASET.split")] | part | given | own
        cfg, tested = load_config(self.config, _flat(settings)), self._draft.TEST.method
        if trains and cfg.TRAIN.method != tested:
            fault = f"TEST.method is {tested}, and TRAIN.method {cfg.TRAIN.method} is trained"
            raise ConfigError(f"{fault}; set both")
        for key in ("TRAIN.save_model", "TRAIN_SETUPS.epochs"):
            if trains and not (value := get(cfg, key)):
                raise ConfigError(f"{key} is {value}: no head would be left to test; change it")
        return Run(self.config, settings, cfg, trains, training)


def build_sweep(args: argparse.Namespace, folder: Path = PROTOCOLS) -> Sweep:
    """The sweep that the arguments of `build_parser` describe.

    ConfigError: `folder` has no such protocol, it does not hold what docs/protocol.md describes, or
    it lacks a split that is asked for.
    """
    name, file, names = args.protocol, folder / f"{args.protocol}.yaml", protocol_names()
    if not file.is_file():
        advice = f"known: {', '.join(names)}. {hint(name, names, '')}"
        raise ConfigError(f"{name}: no such protocol; {advice}".rstrip())

    def settings(part: Mapping[str, Any] | None) -> Settings:
        flat = dict(leaves(part or {}))
        merge(get_defaults(), flat.items(), str(file))  # for errors of keys and types that name it
        return flat

    tree = read_yaml(file)
    try:
        if unknown := set(tree) - {"config", "shots", "splits", "train", "test"}:
            raise ValueError(f"unknown: {', '.join(map(str, unknown))}")
        if not tree["shots"]:
            raise ValueError("no shots")
        config, shots = CONFIGS / tree["config"], args.shots or [int(n) for n in tree["shots"]]
        splits = {int(n): settings(part) for n, part in tree.get("splits", {}).items()}
        train, test = (settings(tree[k]) if k in tree else None for k in ("train", "test"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        form = "config (a file), shots (a list), and optionally splits, train, test (mappings)"
        fault = f"{file}: {type(error).__name__}: {error}; a protocol holds {form}"
        raise ConfigError(fault) from error
    if wrong := [split for split in args.splits if split not in splits]:
        there = f"the splits {', '.join(map(str, splits))}" if splits else "no splits"
        raise ConfigError(f"--splits: {name} has {there}, but {wrong[0]} was given")
    splits = {split: splits[split] for split in args.splits or splits} or {None: {}}
    if train is not None:
        train["TRAIN_SETUPS.TEST_SETUPS.test_state"] = False
    return Sweep(args, config, splits, shots, train, test or {})


def _flat(settings: Settings) -> list[str]:
    """KEY VALUE ... as the command line gives them."""
    return [str(part) for pair in settings.items() for part in pair]


# --- Runs: what an earlier call has finished is kept ---------------------------------------------


def check_folders(runs: Sequence[Run]) -> None:
    """Raise a ConfigError if a run that is there already has another config.yaml than in the plan.

    A training that went on differs in TRAIN.resume; a test names either head of its training.
    """
    for run in runs:
        file = run.folder / "config.yaml"
        there = load_config(file) if file.is_file() else run.cfg
        for key, value in leaves(run.cfg):
            earlier = get(there, key)
            if key == HEAD and run.training and Path(earlier).parent == run.training.checkpoints:
                continue
            if earlier != value and key != RESUME:
                fault = f"{file}: {key} is {earlier!r}, but this sweep has {value!r}"
                raise ConfigError(f"{fault}; repeat that setting, or give another --name")


def carry_out(runs: Sequence[Run]) -> None:
    """Do, in their order, all runs that are not finished: a cut-off training goes on.

    It is left out where all its tests are there. Tests of another head than its are done again.
    """
    for number, run in enumerate(runs, 1):
        setup_logging()  # on the console alone: the last run's log file is closed
        place = f"{number} of {len(runs)}, {run.folder}"
        tests = [test for test in runs if test.training is run]
        if is_finished(run) or (run.trains and all(map(is_finished, tests))):
            LOG.info("%s: kept, it is finished", place)
        elif run.trains:
            LOG.info("%s: training", place)
            run_training(run.config({RESUME: "auto"}), str(run.file))
        else:
            LOG.info("%s: test", place)
            head = {HEAD: str(run.training.head)} if run.training else {}
            run_test(run.config(head), str(run.file))
    setup_logging()


def is_finished(run: Run) -> bool:
    """Whether a run's folder holds all that it was to leave there.

    Of a test the metrics of all that was to be tested, with the head that its training holds now;
    of a training the head, trained for all epochs, and validated where the config asks for it.
    """
    if run.trains:
        whole = epochs_done(run.checkpoints / "state.pth") >= run.cfg.TRAIN_SETUPS.epochs
        return whole and (run.checkpoints / "head.safetensors").is_file()
    try:
        files = (run.folder / name for name in ("run.json", METRICS))
        ended, metrics = (json.loads(file.read_text("utf-8")) for file in files)
    except (OSError, ValueError):  # cut off before it was written, or while
        return False
    head = run.training.head if run.training else Path()
    same_head = not head.is_file() or metrics.get("head_sha256") == sha256_of(head)
    return same_head and not ended.get("failed")


# --- Command line --------------------------------------------------------------------------------


def protocol_names() -> list[str]:
    """Names of the protocols that there are, sorted."""
    return sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))


def build_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="python -m tools.sweep", description=__doc__)
    add = parser.add_argument
    add("protocol", help=f"what to run: {', '.join(protocol_names())}")
    numbers = {"nargs": "+", "type": int, "default": [], "metavar": "N"}
    add("--splits", help="some of the protocol's splits", **numbers)
    add("--shots", help="supports per query, a test each", **numbers)
    add("--seeds", help="RNG_SEED, a training each", **numbers)
    text = "test this head, train none; {split}, {seed}: filled"
    add("--heads", default="", metavar="FILE", help=text)
    add("--name", default="", help="folder below OUTPUT_DIR, the protocol's name unless given")
    add("--list", action="store_true", help="print a command per run, and run nothing")
    text = "settings that win, in all runs"
    add("--opts", nargs="*", action="extend", default=[], metavar="KEY VALUE", help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Plan all runs, do those that are not finished, sum up; returns the exit code."""

    def sweep() -> None:
        args = build_parser().parse_args(argv)
        if started_by_torchrun():
            raise ConfigError("call a sweep without torchrun, with --opts NUM_GPUS N")
        planned = build_sweep(args)
        runs = planned.runs()
        if args.list:
            say("\n".join(run.command() for run in runs))
            return
        check_folders(runs)
        carry_out(runs)
        tests = [run.folder / METRICS for run in runs if not run.trains]
        say(write_summary(planned.folder(), tests))
        LOG.info("summary in %s", planned.folder())

    return exit_code(sweep)


if __name__ == "__main__":
    sys.exit(main())
