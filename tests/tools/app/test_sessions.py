from __future__ import annotations

import io

import pytest

from tests.helpers import picture
from tests.tools.app.app_data import png
from tools.app import sessions
from tools.app.sessions import FullError, Sessions
from utils.errors import DataError


def filled(everyone):
    session = everyone.get(None)
    session.add(io.BytesIO(png(picture(8, 8))), "a.png")
    return session


def test_sessions_that_nobody_asks_for_expire_with_their_files(tmp_path):
    everyone = Sessions(tmp_path)
    old, kept = filled(everyone), filled(everyone)
    old.used -= sessions.EXPIRY + 1
    assert everyone.get(kept.id) is kept and everyone.get(old.id) is old  # asked for: it lives on
    old.used -= sessions.EXPIRY + 1
    everyone.get("unknown")
    assert everyone.get(old.id).id != old.id and everyone.get(kept.id) is kept
    assert not old.folder.exists() and kept.folder.exists()


def test_of_too_many_sessions_the_empty_and_the_idle_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "MOST_SESSIONS", 3)
    everyone = Sessions(tmp_path)
    first, empty, last = filled(everyone), everyone.get(None), filled(everyone)
    fourth = filled(everyone)
    assert not empty.folder.exists()
    with pytest.raises(FullError, match="too many people"):
        everyone.get(None)
    first.used -= sessions.IDLE + 1
    everyone.get(None)
    assert [s.folder.exists() for s in (first, last, fourth)] == [False, True, True]
    assert len({s.id for s in (first, empty, last, fourth)}) == 4


def test_a_session_holds_so_many_images_and_bytes(tmp_path, monkeypatch):
    session = filled(Sessions(tmp_path))
    monkeypatch.setattr(sessions, "MOST_PICTURES", 1)
    with pytest.raises(DataError, match=r"b\.png: a session holds at most 1 images"):
        session.add(io.BytesIO(png(picture(8, 8))), "b.png")
    monkeypatch.undo()
    monkeypatch.setattr(sessions, "MOST_BYTES", 10)
    with pytest.raises(DataError, match="remove some images"):
        session.add(io.BytesIO(png(picture(8, 8))), "b.png")
    session.remove(*session.pictures.values())
    session.add(io.BytesIO(png(picture(8, 8))), "b.png")
    assert len(list(session.folder.iterdir())) == 1
