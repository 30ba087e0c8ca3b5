"""The one thread that computes: jobs of all sessions in turn, one image of each at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from tools.predictor import Predictor
from utils.errors import UserError

LOG = logging.getLogger(__name__)
ACTIVE = ("waiting", "running")


class Stopped(Exception):
    """The user has stopped the job."""


class Job:
    """A piece of work in parts, and how far it is.

    Attributes:
        kind: `teach`, `segment`, `pack` or `load`.
        total, done: number of its parts, and of those that are done.
        state: `waiting`, `running`, `done`, `stopped` or `failed`.
        note: what is being done; `windows` counts the windows seen for it.
        error: why it failed.
        faults: what went wrong with single parts, while the others were done.
        warnings: what readers warned of.
        finished: is set at the end.
    """

    def __init__(self, kind: str, total: int, warnings: Sequence[str] = ()) -> None:
        self.kind, self.total, self.done, self.windows = kind, total, 0, 0
        self.state, self.note, self.error = "waiting", "", ""
        self.faults: list[str] = []
        self.warnings = list(warnings)
        self.steps: Generator[None] | None = None
        self.is_to_stop = False
        self.finished: Future[None] = Future()

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE

    def end(self, state: str, error: str = "") -> None:
        self.state, self.error = state, error
        self.finished.set_result(None)

    def as_json(self) -> dict[str, Any]:
        names = ("kind", "state", "done", "total", "windows", "note", "error", "faults", "warnings")
        return {name: getattr(self, name) for name in names}


class Worker:
    """Runs jobs on a predictor. A job is stopped between two passes of the backbone."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._pool = ThreadPoolExecutor(1, "worker")
        self._current: Job | None = None
        self._jobs: set[Job] = set()
        self._hook = predictor.backbone.register_forward_pre_hook(self._at_pass)

    def start(self, job: Job, steps: Generator[None]) -> Job:
        """Queue a job, whose steps are taken one by one, in turn with those of other jobs."""
        job.steps = steps
        self._jobs.add(job)
        self._pool.submit(self._advance, job)
        return job

    def close(self) -> None:
        """Stop all jobs and wait for it."""
        for job in list(self._jobs):
            job.is_to_stop = True
        while jobs := list(self._jobs):
            jobs[0].finished.result()
        self._pool.shutdown()
        self._hook.remove()

    def _advance(self, job: Job) -> None:
        self._current, state, error = job, "", ""
        try:
            with noted(job.warnings):
                if job.is_to_stop:
                    raise Stopped
                job.state = "running"
                next(job.steps)
            job.done += 1
        except StopIteration:
            state = "done"
        except Stopped:
            state = "stopped"
        except UserError as fault:
            state, error = "failed", str(fault)
        except Exception as fault:
            LOG.exception("a job failed")
            state, error = "failed", f"a fault of the program, {type(fault).__name__}: {fault}"
        finally:
            self._current = None
        if not state:
            self._pool.submit(self._advance, job)
            return
        job.steps.close()
        self._jobs.discard(job)
        job.end(state, error)

    def _at_pass(self, module: object, inputs: tuple) -> None:
        job = self._current
        if job is not None:
            if job.is_to_stop:
                raise Stopped
            job.windows += len(inputs[0])


@contextmanager
def noted(warnings: list[str]) -> Iterator[list[str]]:
    """A block in which what readers of images and masks warn of, in this thread, joins a list."""
    thread = threading.get_ident()

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                warnings.append(record.getMessage())

    handler, logger = Notes(logging.WARNING), logging.getLogger("datasets")
    logger.addHandler(handler)
    try:
        yield warnings
    finally:
        logger.removeHandler(handler)
