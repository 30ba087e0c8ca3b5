"""Images segmented as they arrive in a folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from datasets.folders import named_files
from tools.segment.journal import Stamp, stamp_of
from tools.segment.queries import Query, listed, refuse_own
from utils.errors import ConfigError
from utils.signals import Interrupted, postponed

if TYPE_CHECKING:
    from tools.segment.job import Segmenter

LOG = logging.getLogger(__name__)
POLL = 0.5  # seconds between looks into the folders
SETTLED = 2.0  # seconds for which a file has to be unchanged
RETRY, GIVE_UP = 5.0, 60.0  # seconds, of a file that is unchanged and cannot be decoded
SHARE = 0.1  # of the time may go to writing tables


@dataclass
class Arrival:
    """A file in a watched folder: its stamp, since when, when it is tried, and if that is over."""

    stamp: Stamp | None
    since: float
    due: float
    over: bool = False


@named_files()
def watch(
    places: Sequence[Path], segmenter: Segmenter, write: Callable[[list[str]], object]
) -> dict[str, str]:
    """Segment the images of folders, each once, until Ctrl-C or SIGTERM; returns why files could
    not be read. `write` writes the tables of files; it is called when nothing waits.

    A file is taken once it is unchanged for a while and can be decoded, and again if it changes.
    ConfigError: a place is no folder, or two have one name.
    """
    for place in places:
        refuse_own(place, segmenter.journal.out)
        if not place.is_dir():
            raise ConfigError(f"--watch: {place} is no folder; give those where images arrive")
    if len({place.resolve().name for place in places}) < len(places):
        raise ConfigError("--watch: two folders have one name; give their common folder")
    arrivals: dict[Path, Arrival] = {}
    faults: dict[str, str] = {}
    unwritten, cost, last = True, 0.0, 0.0
    LOG.info("watching %s; Ctrl-C ends it", ", ".join(map(str, places)))
    with suppress(Interrupted), postponed(alone=True) as pending:
        while not pending.number:
            ready = _ready(places, segmenter, arrivals)
            for query, defects, error in segmenter.answers(ready) if ready else ():
                arrival = arrivals[query.path]
                if error is None:
                    LOG.info("%s: %d defects", query.file, defects)
                    faults.pop(query.file, None)
                    arrival.over = unwritten = True
                elif time.monotonic() - arrival.since < GIVE_UP:
                    arrival.due = time.monotonic() + RETRY
                else:
                    LOG.error("%s", error)
                    faults[query.file], arrival.over = str(error), True
                if pending.number:
                    break
            if unwritten and not ready and time.monotonic() - last > cost / SHARE:
                start = time.monotonic()
                write(segmenter.journal.current)
                last = time.monotonic()
                unwritten, cost = False, last - start
            time.sleep(0 if ready else POLL)
    return faults


def _ready(
    places: Sequence[Path], segmenter: Segmenter, arrivals: dict[Path, Arrival]
) -> list[Query]:
    """The files that can be tried now, sorted; notes those that are new or have changed."""
    now, ready, journal = time.monotonic(), [], segmenter.journal
    for place in places:
        for path in listed(place, journal.out):
            arrival, stamp = arrivals.get(path), stamp_of(path)
            if arrival is None or arrival.stamp != stamp:
                arrivals[path] = Arrival(stamp, now, now + SETTLED)
            elif not arrival.over and now >= arrival.due:
                root = place.resolve().name if len(places) > 1 else ""
                file = PurePosixPath(root, path.relative_to(place).as_posix()).as_posix()
                query = Query(path, file, journal.name_of(file))
                arrival.over = journal.has(query)
                ready += [] if arrival.over else [query]
    return ready
