"""The jobs in steps for the worker: teach, segment, pack results for a download, load memories."""

from __future__ import annotations

import secrets
import shutil
import time
import zlib
from collections.abc import Generator, Sequence
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from datasets.images import read_image
from datasets.large_images import ImageStrips
from datasets.rle import rle_decode
from tools.app.results import Thresholds, coco_text, csv_text, predictions, store
from tools.app.sessions import MOST_BYTES, Picture, Result, Session, Support
from tools.app.worker import Job
from tools.defects import find_defects
from tools.open_domain import output_names, write_answers
from tools.predictor import Predictor
from tools.support_file import load_memory, save_memory, type_of
from utils.errors import DataError
from utils.output_files import file_name, write_text

ZIP = b"PK\x03\x04"
SUFFIX = ".safetensors"
MOST_UNPACKED = 1 << 30  # bytes of the support files in an archive
KIND = "defect"  # a type without a name
ANOMALY = "anomaly"  # type of defect where all supports are normal


def teach(
    predictor: Predictor,
    session: Session,
    job: Job,
    supports: Sequence[Support],
    normals: Sequence[str],
) -> Generator[None]:
    """Teach types of defects, one in a step, in place of what was taught before; memories that came
    as files stay, but for types of the same name. The answers so far are forgotten."""
    memories = {}
    for kind in dict.fromkeys(s.kind for s in supports) or [ANOMALY]:
        job.note, job.windows = f"teaching {kind}", 0
        pairs = [(read_image(session.picture(s.picture).file), rle_decode(s.marks))
                 for s in supports if s.kind == kind]  # fmt: skip
        pairs += [(read_image(session.picture(name).file), None) for name in normals]
        file = session.folder / f"{secrets.token_hex(8)}{SUFFIX}"
        save_memory(file, predictor.teach(pairs), predictor, kind)
        memories[kind] = file
        yield
    session.loaded -= memories.keys()
    kept = {kind: session.memories[kind] for kind in session.loaded}
    session.take(kept | memories)
    session.supports, session.normals = list(supports), list(normals)


def segment(
    predictor: Predictor, session: Session, job: Job, pictures: Sequence[Picture]
) -> Generator[None]:
    """Segment images, one in a step, by all that is taught. An image that cannot be read becomes a
    fault of the job."""
    memories = {k: load_memory(file, predictor) for k, file in session.memories.items()}
    for picture in pictures:
        job.note, job.windows = picture.name, 0
        if session.bytes > MOST_BYTES:
            raise DataError(f"the answers fill the {MOST_BYTES >> 30} GB of a session; take the "
                            "results, then remove images")  # fmt: skip
        start = time.perf_counter()
        queries = [(picture.file, list(memories.values()))]
        (outcome,) = predictor.segment(queries, reproducible=True)
        seconds = time.perf_counter() - start
        if outcome.error is None:
            found = [answers[predictor.main] for answers in outcome.answers]
            place = session.folder / secrets.token_hex(8)
            stored = {
                kind: store(answer, place.with_suffix(f".{number}"))
                for number, (kind, answer) in enumerate(zip(memories, found, strict=True))
            }
            if before := session.results.get(picture.id):
                before.delete()
            session.results[picture.id] = Result(seconds, found[0].windows, stored)
        else:
            job.faults.append(str(outcome.error))
        yield


def pack(session: Session, job: Job, thresholds: Thresholds) -> Generator[None]:
    """Make `session.archive`: what `open_domain.write_answers` writes of each result at these
    thresholds, an image in a step, then the tables and the support files."""
    folder = session.folder / secrets.token_hex(8)
    pictures = [session.pictures[name] for name in session.results]
    names = output_names([Path(picture.name) for picture in pictures])
    found = []
    try:
        for picture, name in zip(pictures, names, strict=True):
            job.note = picture.name
            answers = predictions(picture, session.results[picture.id], thresholds)
            write_answers(folder, name, ImageStrips(picture.file), answers)
            found.append((picture, find_defects(answers)[0]))
            yield
        write_text(folder / "defects.csv", csv_text(found))
        write_text(folder / "defects.json", coco_text(found, session.memories))
        copy_memories(session, folder / "memory")
        session.keep_archive(zipped(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def load(predictor: Predictor, session: Session, file: Path, kind: str) -> Generator[None]:
    """Take a support file as the memory of a type, "": of the one that it names, or an archive of
    such files. The answers so far are forgotten."""
    loaded = {}
    for support in _unpacked(file):
        load_memory(support, predictor)
        name = kind or type_of(support) or KIND
        if name in loaded:
            raise DataError(f"{file}: holds several memories of {name}; load them one by one")
        loaded[name] = support.rename(session.folder / f"{secrets.token_hex(8)}{SUFFIX}")
    session.take(session.memories | loaded)
    session.loaded |= loaded.keys()
    session.supports = [s for s in session.supports if s.kind not in loaded]
    yield


def _unpacked(file: Path) -> list[Path]:
    """The support files in an upload."""
    with file.open("rb") as stream:
        if stream.read(len(ZIP)) != ZIP:
            return [file]
    found = []
    try:
        with ZipFile(file) as archive:
            inside = [info for info in archive.infolist() if info.filename.endswith(SUFFIX)]
            if not inside or sum(info.file_size for info in inside) > MOST_UNPACKED:
                raise DataError(f"{file}: holds no support file, or too large ones; give an "
                                "archive of a download from here")  # fmt: skip
            for number, info in enumerate(inside):
                found.append(file.with_name(f"{number}{SUFFIX}"))
                found[-1].write_bytes(archive.read(info))
    except (BadZipFile, OSError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise DataError(f"{file}: not a whole archive ({error}); download it again") from error
    return found


def copy_memories(session: Session, folder: Path) -> None:
    """Write the support files into a folder, each under the name of its type."""
    folder.mkdir(parents=True)
    for kind, file in session.memories.items():
        shutil.copy(file, folder / file_name(kind, SUFFIX))


def zipped(folder: Path) -> Path:
    """An archive of all files of a folder, beside it."""
    archive = folder.with_suffix(".zip")
    with ZipFile(archive, "w") as target:  # pictures and tensors are compressed already
        for file in sorted(folder.rglob("*")):
            target.write(file, file.relative_to(folder))
    return archive
