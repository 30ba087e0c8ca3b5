"""The files that a training keeps, and what is said of them to who ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.methods.sofs import SOFS
from yacs.config import CfgNode

from tools.checkpoint import save_head, save_state
from tools.training.state import AUTO, STATE
from utils.output_files import write_json
from utils.signals import Interrupted


class Checkpoints:
    """Below the folder of a run: the state to go on from, the last head, the head that validated best, the history.

    Args:
        cfg: the config, which goes into the files.
        folder: of the run.

    Attributes:
        state: file of the state.
        stand: of what is kept, for people; empty: nothing is.
    """

    def __init__(self, cfg: CfgNode, folder: Path) -> None:
        self.folder, self.config, self.enabled = folder, cfg.dump(), cfg.TRAIN.save_model
        self.state, self.stand = folder / STATE, ""
        self.resume = AUTO if cfg.RUN_NAME else self.state

    def save(self, state: dict[str, Any], model: SOFS) -> None:
        """Keep a state, and between epochs the head and the history; in the main process alone."""
        if self.enabled:
            save_state(self.state, state)
        if state["within"] is None:
            if self.enabled:
                save_head(self.folder / "checkpoints" / "head.safetensors", model, self.config)
            write_json(self.folder / "history.json", state["history"])

    def save_best(self, model: SOFS) -> None:
        """Keep the head that validated best; in the main process alone."""
        if self.enabled:
            save_head(self.folder / "checkpoints" / "best.safetensors", model, self.config)

    def interrupted(self, number: int) -> Interrupted:
        """What a training ends with that was told to by this signal."""
        if not self.enabled:
            return Interrupted(number, "not saved: TRAIN.save_model is False")
        if not self.stand:
            return Interrupted(number, "nothing is saved yet")
        return Interrupted(
            number, f"saved {self.stand} in {self.state}; TRAIN.resume {self.resume} goes on there"
        )
