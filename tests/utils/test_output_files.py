from __future__ import annotations

import json
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.helpers import largest_file
from utils.errors import OutputError
from utils.output_files import LONGEST_NAME, file_name, write_json, write_text


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    write_json(path, {"miou": 0.5, "empty": None})
    with pytest.raises(TypeError):
        write_json(path, {"miou": object()})
    words = rf"{path} cannot be written \(File too large\); the earlier file is unchanged"
    with largest_file(4096), pytest.raises(OutputError, match=words):
        write_text(path, "x" * 5000)
    assert json.loads(path.read_text()) == {"miou": 0.5, "empty": None}
    assert list(path.parent.iterdir()) == [path]


def test_names_that_are_no_text_are_written(tmp_path):
    write_text(tmp_path / "a.txt", os.fsdecode(b"caf\xe9 \xc3\xa9"))
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "caf\\udce9 \u00e9"


ODD = st.sampled_from(["/etc/passwd", "../../x", "..", ".", "", "x" * 300, "漢" * 100])


@given(ODD | st.text(st.characters(), max_size=300), st.sampled_from(["", ".png", ".safetensors"]))
@example("ü 漢\n%s", ".png")
@example(os.fsdecode(b".hidden\xff"), ".png")
def test_every_text_becomes_one_part_of_a_path_and_stays_where_it_can(tmp_path_factory, text, end):
    folder = tmp_path_factory.getbasetemp() / "names"
    folder.mkdir(exist_ok=True)
    name = file_name(text, end)
    path = folder / name
    path.write_text("")
    assert [p.name for p in folder.iterdir()] == [name]
    path.unlink()
    assert name.endswith(end) and len(os.fsencode(name)) <= LONGEST_NAME
    if text in ("ü 漢\n%s", os.fsdecode(b".hidden\xff")):
        assert name == text + end


def test_long_names_that_differ_at_the_end_stay_different():
    assert len({file_name("x" * 300 + end, ".png") for end in "abc"}) == 3
