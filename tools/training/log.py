"""What a training tells while it goes on: TensorBoard events of figures and of an episode per epoch."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard.summary import image, scalar

from datasets.views import denormalise
from models.priors import upsample
from tools.predictor import AUTO, DEFAULT_THRESHOLD
from tools.training.steps import Batch
from utils.output_files import not_written
from utils.visualize import TRUTH, outline, overlay, panels

VERSION = "brain.Event:2"  # of the files' format, their first event


class TrainingLog:
    """Events in a file, of the main process alone; before `open` nothing is written.

    What is told is in the file at once: PyTorch's writer has a thread that prints a traceback where the disk is full.
    """

    def __init__(self) -> None:
        self.file: Path | None = None

    def open(self, folder: Path) -> None:
        """Begin a file in a folder, beside those of earlier runs.

        Raises:
            OutputError: it cannot be written; so do the others.
        """
        self.file = (
            folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        )
        self._write(Event(file_version=VERSION))

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Figures by name."""
        self._write(
            *(Event(summary=scalar(name, value), step=step) for name, value in values.items())
        )

    def episode(self, batch: Batch, probability: Tensor, threshold: float | str, step: int) -> None:
        """The first support and query of a batch, with token probabilities (B, h, w) cut at a threshold."""
        if self.file is not None:
            picture = _episode_picture(
                batch, probability, DEFAULT_THRESHOLD if threshold == AUTO else threshold
            )
            self._write(
                Event(summary=image("train/episode", picture, dataformats="HWC"), step=step)
            )

    def _write(self, *events: Event) -> None:
        if self.file is None:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as stream:
                for event in events:
                    event.wall_time = time.time()
                    RecordWriter(stream).write(event.SerializeToString())
        except OSError as error:
            raise not_written(self.file, error) from error


def _episode_picture(batch: Batch, probability: Tensor, threshold: float) -> object:
    mask = upsample(probability[:1], batch["query"].shape[-2:])[0].cpu().numpy() > threshold
    support, query = (
        denormalise(batch["supports"][0, 0].cpu()),
        denormalise(batch["query"][0].cpu()),
    )
    truth, known = batch["query_mask"][0].cpu().numpy(), batch["support_masks"][0, 0].cpu().numpy()
    return panels(
        [
            (f"support {batch['class'][0]}", outline(support, known, TRUTH)),
            ("query: truth", outline(query, truth, TRUTH)),
            ("query: prediction", overlay(query, mask)),
        ]
    )
