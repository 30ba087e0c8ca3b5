"""What a training tells while it goes on: TensorBoard events of figures and of an episode per epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from datasets.transforms import denormalise
from models.priors import upsample
from tools.predictor import AUTO, DEFAULT_THRESHOLD
from tools.training.steps import Batch
from utils.errors import OutputError
from utils.visualize import TRUTH, outline, overlay, panels


class TrainingLog:
    """Events in a folder, of the main process alone; before `open` nothing is written."""

    def __init__(self) -> None:
        self.writer: SummaryWriter | None = None

    def open(self, folder: Path) -> None:
        """Begin to write, beside what earlier runs have written there.

        Raises:
            OutputError: the folder cannot be written; so do the others.
        """
        with _told(folder):
            self.writer = SummaryWriter(folder)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Figures by name."""
        if self.writer is not None:
            with _told(Path(self.writer.log_dir)):
                for name, value in values.items():
                    self.writer.add_scalar(name, value, step)

    def episode(self, batch: Batch, probability: Tensor, threshold: float | str, step: int) -> None:
        """The first support and query of a batch, with token probabilities (B, h, w) cut at a threshold."""
        if self.writer is not None:
            with _told(Path(self.writer.log_dir)):
                picture = _episode_picture(batch, probability, DEFAULT_THRESHOLD if threshold == AUTO else threshold)
                self.writer.add_image("train/episode", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        if self.writer is not None:
            with _told(Path(self.writer.log_dir)):
                self.writer.close()


def _episode_picture(batch: Batch, probability: Tensor, threshold: float) -> object:
    mask = upsample(probability[:1], batch["query"].shape[-2:])[0].cpu().numpy() > threshold
    support, query = denormalise(batch["supports"][0, 0].cpu()), denormalise(batch["query"][0].cpu())
    truth, known = batch["query_mask"][0].cpu().numpy(), batch["support_masks"][0, 0].cpu().numpy()
    return panels(
        [
            (f"support {batch['class'][0]}", outline(support, known, TRUTH)),
            ("query: truth", outline(query, truth, TRUTH)),
            ("query: prediction", overlay(query, mask)),
        ]
    )


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """The writer's thread raises here what it met before."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}); free space there, or see to the folder's "
                          "permissions") from error  # fmt: skip
