"""What each user has uploaded, taught and segmented: a folder of its own, nobody else sees it."""

from __future__ import annotations

import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

import cv2

from datasets.images import read_image
from datasets.rle import Rle
from tools.app.worker import Job
from utils.errors import DataError, UserError
from utils.output_files import file_name, whole_file, write_whole
from utils.visualize import write_image

MOST_SESSIONS = 100
EXPIRY = 4 * 3600  # seconds without a request, after which a session is dropped
IDLE = 600  # seconds, the same where there are too many; an open page asks more often
MOST_PICTURES = 1000  # of a session
MOST_BYTES = 4 << 30  # that the files of a session may take
THUMBNAIL = 160  # pixels
UPLOAD = "upload"  # folder of a file that came from a user
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]  # fmt: skip


class FullError(UserError):
    """There is no room for another session."""


class BusyError(UserError):
    """The session's job has to end first."""


class UnknownError(UserError):
    """There is nothing of this name in the session."""


@dataclass(frozen=True)
class Picture:
    """An uploaded image.

    Attributes:
        name: what the user calls it; no two of a session are equal.
        folder: of its file as uploaded, under its own name, and of its pictures for the page.
        size: (h, w) in pixels, as stored.
        bytes: that its files take.
    """

    id: str
    name: str
    folder: Path
    file: Path
    size: tuple[int, int]
    bytes: int

    def as_json(self) -> dict:
        return {"id": self.id, "name": self.name, "height": self.size[0], "width": self.size[1]}


@dataclass(frozen=True)
class Support:
    """A taught image, by the id of its picture, with the marks of one type of defect."""

    picture: str
    kind: str
    marks: Rle


@dataclass(frozen=True)
class Answer:
    """The scores of one type for one image.

    Attributes:
        file: compressed levels (h, w) uint16, see `results.levels_of`.
        threshold: the one that the method took.
        greatest: level.
        marked: pixels above the threshold.
    """

    file: Path
    threshold: float
    greatest: int
    marked: int


@dataclass
class Result:
    """The answers for one image by type, and the seconds they took."""

    seconds: float
    windows: int
    answers: dict[str, Answer]

    def delete(self) -> None:
        for answer in self.answers.values():
            answer.file.unlink(missing_ok=True)


@dataclass
class Session:
    """The state of one user.

    Attributes:
        memories: by type of defect, the support file, see `Predictor.load_support`.
        supports, normals: what was taught last, normals by their picture's id.
        loaded: types whose memory came as a file.
        results: by the picture's id, of what is taught now.
        archive: of the results, packed last.
        used: when the session was asked for, monotonic seconds.
    """

    id: str
    folder: Path
    used: float
    pictures: dict[str, Picture] = field(default_factory=dict)
    supports: list[Support] = field(default_factory=list)
    normals: list[str] = field(default_factory=list)
    memories: dict[str, Path] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    results: dict[str, Result] = field(default_factory=dict)
    job: Job | None = None
    archive: Path | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_empty(self) -> bool:
        return not (self.pictures or self.memories)

    @property
    def bytes(self) -> int:
        """That its files take."""
        files = [*self.memories.values(), *filter(None, [self.archive])]
        files += [a.file for result in list(self.results.values()) for a in result.answers.values()]
        return sum(p.bytes for p in list(self.pictures.values())) + sum(map(_size, files))

    def add(self, stream: BinaryIO, name: str) -> Picture:
        """Keep an image and make its pictures for the page.

        Raises:
            DataError: it cannot be read, or the session is full.
        """
        if len(self.pictures) >= MOST_PICTURES or self.bytes > MOST_BYTES:
            most = f"{MOST_PICTURES} images or {MOST_BYTES >> 30} GB"
            raise DataError(f"{name}: a session holds at most {most}; remove some images")
        folder = self.folder / secrets.token_hex(8)
        try:
            file = keep(stream, name, folder)
            pixels = read_image(file)
            step = -(-max(pixels.shape[:2]) // THUMBNAIL)
            shape = tuple(max(1, n // step) for n in pixels.shape[1::-1])
            small = cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA)
            _, view = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), JPEG)
            write_whole(folder / "view.jpg", view.data)
            write_image(folder / "thumbnail.jpg", small)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        taken = file.stat().st_size + len(view)
        with self.lock:
            shown = _unused(file.name, {picture.name for picture in self.pictures.values()})
            picture = Picture(folder.name, shown, folder, file, pixels.shape[:2], taken)
            self.pictures[picture.id] = picture
        return picture

    def picture(self, name: str) -> Picture:
        """The picture of this id. Raises UnknownError."""
        if name not in self.pictures:
            raise UnknownError(f"there is no image {name!r:.80} in this session; upload it again")
        return self.pictures[name]

    def remove(self, picture: Picture) -> None:
        """Forget a picture with its answers; what it has taught stays taught."""
        del self.pictures[picture.id]
        self.supports = [s for s in self.supports if s.picture != picture.id]
        self.normals = [n for n in self.normals if n != picture.id]
        if result := self.results.pop(picture.id, None):
            result.delete()
        shutil.rmtree(picture.folder)

    def take(self, memories: dict[str, Path]) -> None:
        """Have these memories in place of those before; the answers so far are forgotten."""
        for file in set(self.memories.values()) - set(memories.values()):
            file.unlink()
        for result in self.results.values():
            result.delete()
        self.memories, self.results = memories, {}
        self.keep_archive(None)

    def keep_archive(self, archive: Path | None) -> None:
        """Have this archive in place of the one before."""
        if self.archive is not None:
            self.archive.unlink()
        self.archive = archive

    def result(self, name: str) -> Result:
        """The result of the picture of this id. Raises UnknownError."""
        picture = self.picture(name)
        if picture.id not in self.results:
            raise UnknownError(f"{picture.name} is not segmented; segment it first")
        return self.results[picture.id]

    def require_idle(self) -> None:
        """Raises BusyError while a job runs."""
        if self.job and self.job.is_active:
            raise BusyError("a job of this session is still running; wait for it, or stop it")


def keep(stream: BinaryIO, name: str, folder: Path) -> Path:
    """Write an upload into a new folder, under the last part of its name."""
    file = folder / UPLOAD / file_name(PureWindowsPath(name).name)
    with whole_file(file) as target:
        shutil.copyfileobj(stream, target)
    return file


class Sessions:
    """All sessions, each below `folder`; the ids cannot be guessed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def get(self, name: str | None) -> Session:
        """The session of this id, or a new one where there is none. Raises FullError."""
        with self._lock:
            now = time.monotonic()
            session = self._sessions.get(name or "")
            if session is None:
                self._make_room(now)
                secret = secrets.token_urlsafe(32)
                session = Session(secret, self.folder / secrets.token_hex(8), now)
                session.folder.mkdir(parents=True)
                self._sessions[secret] = session
            session.used = now
            return session

    def drop(self, session: Session) -> None:
        """Forget a session and delete its files."""
        with self._lock:
            self._drop(session)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def _make_room(self, now: float) -> None:
        """Drop what has expired; where there are too many, the longest unused that is empty or
        idle."""
        resting = [s for s in self if not (s.job and s.job.is_active)]
        for session in resting:
            if now - session.used > EXPIRY:
                self._drop(session)
        if len(self._sessions) >= MOST_SESSIONS:
            droppable = [s for s in resting if s.is_empty or now - s.used > IDLE]
            if not droppable:
                raise FullError("too many people use this page now; try again later")
            self._drop(min(droppable, key=lambda s: (not s.is_empty, s.used)))

    def _drop(self, session: Session) -> None:
        self._sessions.pop(session.id, None)
        shutil.rmtree(session.folder, ignore_errors=True)


def without_folders(text: str, root: Path) -> str:
    """A message without the server's folders before the names of files."""
    return re.sub(rf"{re.escape(str(root))}/\w+/\w+/{UPLOAD}/", "", text)


def _unused(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken."""
    path, number, unused = Path(name), 2, name
    while unused in taken:
        unused, number = f"{path.stem} ({number}){path.suffix}", number + 1
    return unused


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
