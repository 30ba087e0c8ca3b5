"""The routes: the page, and the HTTP API that it uses. Requests and answers: docs/app.md."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import cv2
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.background import BackgroundTask
from starlette.datastructures import FormData
from starlette.middleware.trustedhost import TrustedHostMiddleware

from datasets.rle import rle_decode
from tools.app import jobs, results
from tools.app.examples import EXAMPLES, draw
from tools.app.jobs import KIND
from tools.app.sessions import (
    UPLOAD,
    BusyError,
    FullError,
    Session,
    Sessions,
    UnknownError,
    without_folders,
)
from tools.app.uploads import checked_kind, read_lessons, read_marks_of, read_pictures, runs_of
from tools.app.worker import Job, Worker, noted
from tools.defects import COLUMNS, find_defects
from tools.predictor import Predictor
from utils.errors import DataError, UserError
from utils.output_files import file_name

STATIC = Path(__file__).with_name("static")
MOST_UPLOAD = 512 << 20  # bytes of a request
MOST_LISTED = 1000  # defects of an image
STATUS = {BusyError: 409, UnknownError: 404, FullError: 503}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
api = APIRouter(prefix="/api")


def create_app(predictor: Predictor, folder: Path, hosts: list[str] | None = None) -> FastAPI:
    """The application. What users upload lies below `folder`.

    Args:
        predictor: whose masks are those of a threshold, not published stitching.
        hosts: names under which the page may be asked for, None: any. A name that another site has
            pointed to this machine is none of them.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(app.state.worker.close)

    app = FastAPI(title="SOFS", lifespan=lifespan, docs_url=None, redoc_url=None,
                  max_body_size=MOST_UPLOAD)  # fmt: skip
    app.state.worker, app.state.sessions = Worker(predictor), Sessions(folder)
    app.middleware("http")(_guarded)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts or ["*"], www_redirect=False)
    app.add_exception_handler(UserError, _refusal)
    app.include_router(api)
    app.mount("/", StaticFiles(directory=STATIC, html=True))
    return app


async def _guarded(request: Request, call_next: Any) -> Response:
    """Refuse what another site's page sends, and have browsers keep the page to itself."""
    origin = request.headers.get("origin")
    is_foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    is_foreign |= request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if request.method not in ("GET", "HEAD") and is_foreign:
        return JSONResponse({"detail": "sent by the page of another site"}, 403)
    response = await call_next(request)
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", "no-cache")
    return response


def _refusal(request: Request, error: Exception) -> JSONResponse:
    text = without_folders(str(error), request.app.state.sessions.folder)
    return JSONResponse({"detail": text}, STATUS.get(type(error), 422))


def current(request: Request, response: Response) -> Session:
    """The session of a request's cookie, or a new one."""
    name = f"sofs-{request.url.port or 80}"  # ports of a machine share their cookies
    session = request.app.state.sessions.get(request.cookies.get(name))
    if session.id != request.cookies.get(name):
        response.set_cookie(name, session.id, httponly=True, samesite="strict")
    return session


async def fields(request: Request) -> AsyncIterator[FormData]:
    """The parts of a multipart request."""
    async with request.form(max_files=1000, max_fields=1000) as form:
        yield form


Current = Annotated[Session, Depends(current)]
Fields = Annotated[FormData, Depends(fields)]


def moved(session: Current, threshold: Annotated[list[str], Query()] = []) -> dict[str, float]:  # noqa: B006
    """Thresholds by type: `threshold=scratch=0.4`, once for each, or `threshold=0.4` for all."""
    chosen: dict[str, float] = {}
    for text in threshold:
        kind, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1
        if not 0 <= value <= 1:
            raise DataError(f"threshold {text!r:.80}: expected TYPE=NUMBER from 0 to 1, or NUMBER")
        if kind:
            _memory(session, kind)
        chosen |= dict.fromkeys([kind] if kind else session.memories, value)
    return chosen


Moved = Annotated[dict[str, float], Depends(moved)]


@api.get("/session")
def get_session(request: Request, session: Current) -> dict:
    """All that the page shows."""
    predictor: Predictor = request.app.state.worker.predictor
    return {
        "method": predictor.main,
        "threshold": predictor.threshold,
        "examples": {name: example.title for name, example in EXAMPLES.items()},
        "pictures": [picture.as_json() for picture in session.pictures.values()],
        "supports": list({s.picture: None for s in session.supports}),
        "normals": session.normals,
        "types": [{"name": kind, "loaded": kind in session.loaded} for kind in session.memories],
        "results": [_summary(session, name) for name in list(session.results)],
        "job": session.job.as_json() if session.job else None,
    }


def _summary(session: Session, name: str) -> dict:
    picture, result = session.picture(name), session.result(name)
    types = {kind: {"threshold": answer.threshold, "score": answer.greatest / results.SCORE_LEVELS,
                    "area": answer.marked} for kind, answer in result.answers.items()}  # fmt: skip
    facts = {"seconds": round(result.seconds, 3), "windows": result.windows, "types": types}
    return picture.as_json() | facts


@api.delete("/session")
def drop_session(request: Request, session: Current) -> dict:
    session.require_idle()
    request.app.state.sessions.drop(session)
    return {}


@api.post("/images")
def add_images(session: Current, form: Fields) -> dict:
    with noted([]) as warnings:
        pictures = read_pictures(session, form)
    return {"pictures": [picture.as_json() for picture in pictures], **_warned(session, warnings)}


@api.get("/images/{name}")
def view_image(session: Current, name: str, thumbnail: bool = False) -> FileResponse:
    """JPEG of the stored pixels, without loss of size."""
    file = "thumbnail.jpg" if thumbnail else "view.jpg"
    kept = {"Cache-Control": "private, max-age=86400, immutable"}
    return FileResponse(session.picture(name).folder / file, headers=kept)


@api.delete("/images/{name}")
def remove_image(session: Current, name: str) -> dict:
    session.require_idle()
    session.remove(session.picture(name))
    return {}


@api.get("/images/{name}/marks")
def taught_marks(session: Current, name: str) -> dict:
    """What was marked in an image that was taught, by type, see `runs_of`."""
    session.picture(name)
    taught = [s for s in session.supports if s.picture == name]
    return {"types": {s.kind: runs_of(rle_decode(s.marks)) for s in taught}}


@api.post("/images/{name}/marks")
def read_marks(session: Current, name: str, form: Fields) -> dict:
    """The marks of an uploaded mask or annotation file, which are not taught yet."""
    with noted([]) as warnings:
        marks = read_marks_of(session, session.picture(name), form.get("mask"), "")
    return {"types": {k: runs_of(mask) for k, mask in marks.items()}} | _warned(session, warnings)


@api.post("/teach")
async def teach(request: Request, session: Current, form: Fields, wait: bool = False) -> dict:
    session.require_idle()
    (supports, normals), warnings = await _read(read_lessons, session, form)
    job = Job("teach", len({s.kind for s in supports}) or 1, warnings)
    worker = request.app.state.worker
    steps = jobs.teach(worker.predictor, session, job, supports, normals)
    return await _started(worker, session, job, steps, wait)


@api.post("/segment")
async def segment(request: Request, session: Current, form: Fields, wait: bool = False) -> dict:
    session.require_idle()
    if not session.memories:
        raise DataError("nothing is taught yet; teach a defect, or load a memory, first")
    pictures, warnings = await _read(read_pictures, session, form)
    job, worker = Job("segment", len(pictures), warnings), request.app.state.worker
    steps = jobs.segment(worker.predictor, session, job, pictures)
    answer = await _started(worker, session, job, steps, wait)
    done = [_summary(session, p.id) for p in pictures if wait and p.id in session.results]
    return answer | ({"results": done} if wait else {})


async def _read(
    read: Callable[[Session, FormData], Any], session: Session, form: FormData
) -> tuple[Any, list[str]]:
    """What a function, in another thread, reads of a request, and what readers warn of."""

    def call() -> tuple[Any, list[str]]:
        with noted([]) as warnings:
            return read(session, form), warnings

    return await asyncio.to_thread(call)


async def _started(
    worker: Worker, session: Session, job: Job, steps: Generator[None], wait: bool
) -> dict:
    """Start a session's job, and wait for its end where asked for."""
    session.require_idle()
    session.job = worker.start(job, steps)
    if wait:
        await asyncio.wrap_future(job.finished)
        if job.error:
            raise DataError(job.error)
    return {"job": _job(session)}


@api.post("/archive")
async def pack(request: Request, session: Current, threshold: Moved, wait: bool = False) -> dict:
    if not session.results:
        raise DataError("nothing is segmented yet; segment an image first")
    job = Job("pack", len(session.results))
    worker = request.app.state.worker
    return await _started(worker, session, job, jobs.pack(session, job, threshold), wait)


@api.get("/archive")
def get_archive(session: Current) -> FileResponse:
    """Masks, scores, overlays, tables and memory, as they were packed last."""
    if session.archive is None:
        raise UnknownError("nothing is packed yet; send a POST request here first")
    return FileResponse(session.archive, filename="results.zip")


@api.get("/job")
def get_job(session: Current) -> dict:
    return {"job": _job(session), "results": [_summary(session, n) for n in list(session.results)]}


@api.delete("/job")
def stop_job(session: Current) -> dict:
    if session.job:
        session.job.is_to_stop = True
    return {"job": _job(session)}


@api.get("/memory")
def get_memory(session: Current, type: str | None = None) -> FileResponse:
    """The support file of a type, or of the only one; of several, an archive of them."""
    if type is None and len(session.memories) > 1:
        folder = session.folder / secrets.token_hex(8)
        jobs.copy_memories(session, folder)
        archive = jobs.zipped(folder)
        shutil.rmtree(folder)
        sent = BackgroundTask(archive.unlink)
        return FileResponse(archive, filename="memory.zip", background=sent)
    kind = next(iter(session.memories), KIND) if type is None else type
    return FileResponse(_memory(session, kind), filename=file_name(kind, jobs.SUFFIX))


@api.put("/memory")
async def put_memory(request: Request, session: Current, type: str = "") -> dict:
    """Take a support file as the memory of a type, or an archive of them."""
    with tempfile.TemporaryDirectory(dir=session.folder) as scratch:
        file = Path(scratch, UPLOAD, "the memory")
        file.parent.mkdir()
        with file.open("wb") as target:
            async for piece in request.stream():
                target.write(piece)
        worker = request.app.state.worker
        steps = jobs.load(worker.predictor, session, file, checked_kind(type))
        answer = await _started(worker, session, Job("load", 1), steps, wait=True)
    return answer | {"types": list(session.memories)}


@api.delete("/memory")
def forget(session: Current, type: str) -> dict:
    """Forget a type, and the answers so far."""
    session.require_idle()
    _memory(session, type)
    session.take({kind: file for kind, file in session.memories.items() if kind != type})
    session.loaded.discard(type)
    session.supports = [s for s in session.supports if s.kind != type]
    return {"types": list(session.memories)}


@api.get("/results/{name}/score")
def score(session: Current, name: str, type: str) -> Response:
    """Levels, uint16 little-endian, row by row; 65535 is a score of 1."""
    answer = _answer(session, name, type)
    kind = "application/octet-stream"
    return FileResponse(answer.file, media_type=kind, headers={"Content-Encoding": "deflate"})


@api.get("/results/{name}/mask")
def mask(session: Current, name: str, type: str, threshold: Moved) -> Response:
    """PNG, 0 and 255."""
    picture, answer = session.picture(name), _answer(session, name, type)
    label = results.prediction(picture, answer, threshold.get(type)).label
    return Response(cv2.imencode(".png", label * 255)[1].tobytes(), media_type="image/png")


@api.get("/results/{name}/defects")
def defects(session: Current, name: str, threshold: Moved) -> dict:
    """The table of the defects in an image."""
    answers = results.predictions(session.picture(name), session.result(name), threshold)
    count = sum(cv2.connectedComponents(answer.label)[0] - 1 for answer in answers.values())
    if count > MOST_LISTED:
        raise DataError(f"{count} parts are marked, too many for a table; raise the threshold")
    return {"columns": COLUMNS, "rows": [defect.row() for defect in find_defects(answers)[0]]}


@api.get("/defects.{suffix}")
def all_defects(session: Current, suffix: Literal["csv", "json"], threshold: Moved) -> Response:
    """The defects of all images as a table or as COCO."""
    pairs = [(session.picture(name), result) for name, result in list(session.results.items())]
    found = [(p, find_defects(results.predictions(p, r, threshold))[0]) for p, r in pairs]
    text = (
        results.csv_text(found) if suffix == "csv" else results.coco_text(found, session.memories)
    )
    kept = {"Content-Disposition": f"attachment; filename=defects.{suffix}"}
    kind = "text/csv" if suffix == "csv" else "application/json"
    return Response(text, media_type=kind, headers=kept)


@api.post("/examples/{name}")
def example(session: Current, name: str) -> dict:
    """Draw an example: images with marks to teach, and images to segment."""
    if name not in EXAMPLES:
        raise UnknownError(f"there is no example {name!r:.80}; there are {', '.join(EXAMPLES)}")
    kind, supports, queries = draw(session, EXAMPLES[name])
    taught = [p.as_json() | {"types": {kind: runs_of(marks)}} for p, marks in supports]
    return {"supports": taught, "queries": [picture.as_json() for picture in queries]}


def _warned(session: Session, warnings: list[str]) -> dict[str, list[str]]:
    return {"warnings": [without_folders(text, session.folder.parent) for text in warnings]}


def _job(session: Session) -> dict | None:
    if session.job is None:
        return None
    state = session.job.as_json()
    texts = {name: _warned(session, state[name])["warnings"] for name in ("warnings", "faults")}
    return state | texts | {"error": without_folders(state["error"], session.folder.parent)}


def _answer(session: Session, name: str, kind: str) -> results.Answer:
    answers = session.result(name).answers
    if kind not in answers:
        raise UnknownError(f"there is no type {kind!r:.80}; there are {', '.join(answers)}")
    return answers[kind]


def _memory(session: Session, kind: str) -> Path:
    if kind not in session.memories:
        taught = ", ".join(session.memories) or "none"
        raise UnknownError(f"no type {kind!r:.80} is taught; taught are: {taught}")
    return session.memories[kind]
