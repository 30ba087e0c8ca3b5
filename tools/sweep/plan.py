"""Which runs a sweep consists of, each with its whole config, before any of them starts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from method_config import load_config
from method_config.checks import leads_out
from method_config.values import expanded, get
from models.weights import require_file
from models.methods import BASELINE as PRIOR
from tools.sweep.protocols import Protocol, Settings
from utils.errors import ConfigError

CHECKPOINTS = "checkpoints"
LAST_HEAD = "head.safetensors"
BEST_HEAD = "best.safetensors"
TEST_STATE = "TRAIN_SETUPS.TEST_SETUPS.test_state"

# What a sweep sets itself -> what to use instead.
OWN = {
    "RUN_NAME": "--name, which names the folder of the sweep",
    "DATASET.split": "--splits",
    "DATASET.shot": "--shots",
    "RNG_SEED": "--seeds",
    "TEST.load_checkpoint": "--heads",
    "TEST.load_model_path": "--heads",
    "TRAIN.resume": "the same command again, which goes on where the sweep was interrupted",
}


@dataclass(frozen=True, eq=False)
class Run:
    """One training or test.

    Attributes:
        file: YAML file that the config starts from.
        settings: what differs from it; the file with these gives `cfg`.
        cfg: the whole, frozen tree.
        trains: a training rather than a test.
        training: of a test, the training whose head it loads; None: it has a given head, or needs none.
    """

    file: Path
    settings: Settings
    cfg: CfgNode
    trains: bool = False
    training: Run | None = None

    @property
    def name(self) -> str:
        """RUN_NAME."""
        return self.cfg.RUN_NAME

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return Path(self.cfg.OUTPUT_DIR) / self.cfg.RUN_NAME

    @property
    def head(self) -> Path:
        """Of a training: the head that its tests load, the best one where validation has kept one."""
        best = self.folder / CHECKPOINTS / BEST_HEAD
        return best if best.is_file() else best.with_name(LAST_HEAD)

    def command(self) -> str:
        """The command line of train.py or test.py that does the same."""
        words = [
            "train.py" if self.trains else "test.py",
            "--cfg",
            str(self.file),
            "--opts",
            *_flat(self.settings),
        ]
        return shlex.join(words)


@dataclass(frozen=True)
class Sweep:
    """A protocol and what the command line asks of it; every field but the first may be left out.

    Attributes:
        protocol: the protocol.
        splits, shots: some of them; empty: those of the protocol.
        seeds: RNG_SEED of a training and its tests; empty: that of the config.
        heads: file of trained weights, in which {split} and {seed} are replaced; empty: they are trained.
        name: of the sweep's folder below OUTPUT_DIR; empty: that of the protocol.
        opts: KEY VALUE ..., settings that win over the protocol's.
    """

    protocol: Protocol
    splits: Sequence[int] = ()
    shots: Sequence[int] = ()
    seeds: Sequence[int] = ()
    heads: str = ""
    name: str = ""
    opts: Sequence[str] = ()

    def folder(self) -> Path:
        """Where its runs and its summary lie.

        Raises:
            ConfigError: `opts` have a key that the sweep sets itself, or do not load; `name` is none.
        """
        if leads_out(self.name) or self.name.startswith("~"):
            raise ConfigError(f"--name: {self.name} is no folder below OUTPUT_DIR; choose a plain name, and set "
                              "OUTPUT_DIR to the rest")  # fmt: skip
        return Path(self._draft.OUTPUT_DIR) / (self.name or self.protocol.name)

    def runs(self) -> list[Run]:
        """All runs in their order: by seed and split, a training before its tests.

        Raises:
            ConfigError: a setting is impossible or the sweep's own; a split is unknown; there is no head to test.
            WeightsError: a file of `heads` is missing.
        """
        trains = self._trains(self._draft.TEST.method)
        runs: list[Run] = []
        for seed in dict.fromkeys(self.seeds or [self._draft.RNG_SEED]):
            for split in self._splits():
                training = self._training(split, seed) if trains else None
                runs += [training] if training else []
                shots = dict.fromkeys(self.shots or self.protocol.shots)
                runs += [self._test(split, seed, shot, training) for shot in shots]
        return runs

    @cached_property
    def _draft(self) -> CfgNode:
        """The config of tests but for what differs from run to run."""
        for key in self.opts[::2]:
            if key in OWN:
                raise ConfigError(
                    f"command line: {key} differs from run to run of a sweep; use {OWN[key]}"
                )
        return load_config(self.protocol.config, [*_flat(self.protocol.test), *self.opts])

    def _trains(self, method: str) -> bool:
        if method == PRIOR:
            if self.heads:
                raise ConfigError(
                    f"--heads: TEST.method is {PRIOR}, which has no head; leave out one of them"
                )
            return False
        if self.protocol.train is None and not self.heads:
            raise ConfigError(
                f"{self.protocol.name} trains no head for TEST.method {method}; give one with --heads, or use {PRIOR}"
            )
        return not self.heads

    def _splits(self) -> list[int | None]:
        known = list(self.protocol.splits)
        wrong = [split for split in self.splits if split not in known]
        if wrong:
            there = (
                "has no splits"
                if known == [None]
                else f"has the splits {', '.join(map(str, known))}"
            )
            raise ConfigError(f"--splits: {self.protocol.name} {there}, but {wrong[0]} was given")
        return list(dict.fromkeys(self.splits)) or known

    def _training(self, split: int | None, seed: int) -> Run:
        settings = (self.protocol.train or {}) | {TEST_STATE: False}
        own = {"RUN_NAME": _name("train", split, f"seed{seed}"), "RNG_SEED": seed}
        run = self._run(split, settings, own, trains=True)
        for key in ("TRAIN.save_model", "TRAIN_SETUPS.epochs"):
            if not get(run.cfg, key):
                raise ConfigError(
                    f"{key} is {get(run.cfg, key)}: no head would be left to test; change it in --opts"
                )
        return run

    def _test(self, split: int | None, seed: int, shot: int, training: Run | None) -> Run:
        name = _name("test", split, f"seed{seed}", f"{shot}shot")
        own: Settings = {"RUN_NAME": name, "RNG_SEED": seed, "DATASET.shot": shot}
        if training:
            own |= {"TEST.load_checkpoint": True, "TEST.load_model_path": str(training.head)}
        elif self.heads:
            head = expanded(self.heads.replace("{split}", str(split)).replace("{seed}", str(seed)))
            own |= {
                "TEST.load_checkpoint": True,
                "TEST.load_model_path": str(require_file(head, "--heads")),
            }
        return self._run(split, self.protocol.test, own, training=training)

    def _run(self, split: int | None, settings: Settings, own: Settings, **more: Any) -> Run:
        everything = self._merged(split, settings, own)
        return Run(self.protocol.config, everything, self._config(split, settings, own), **more)

    def _config(self, split: int | None, settings: Settings, own: Settings) -> CfgNode:
        return load_config(self.protocol.config, _flat(self._merged(split, settings, own)))

    def _merged(self, split: int | None, settings: Settings, own: Settings) -> Settings:
        """The settings of the split, then of the training or test, then the user's, then the sweep's own."""
        given = dict(zip(self.opts[::2], self.opts[1::2], strict=True))
        place = {"OUTPUT_DIR": str(self.folder())} | (
            {} if split is None else {"DATASET.split": split}
        )
        return self.protocol.splits[split] | settings | given | place | own


def _name(kind: str, split: int | None, *words: str) -> str:
    return "_".join([kind, *([] if split is None else [f"split{split}"]), *words])


def _flat(settings: Settings) -> list[Any]:
    """KEY VALUE ... as the command line gives them."""
    return [str(part) for pair in settings.items() for part in pair]
