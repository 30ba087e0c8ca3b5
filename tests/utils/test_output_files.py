from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import OutputError
from utils.output_files import LONGEST_NAME, file_name, write_json, write_text

REPO = Path(__file__).parents[2]
FULL = """
import resource, sys
from pathlib import Path
from utils.output_files import write_whole
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
write_whole(Path(sys.argv[1]), bytes(5000))
"""


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"miou": 0.5, "empty": None})
    with pytest.raises(TypeError):
        write_json(path, {"miou": object()})
    assert json.loads(path.read_text()) == {"miou": 0.5, "empty": None}
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_refuses_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "state.pth"
    path.write_bytes(b"earlier")
    command = [sys.executable, "-c", FULL, str(path)]
    error = subprocess.run(command, cwd=REPO, capture_output=True, text=True).stderr
    words = f"OutputError: {path} cannot be written (File too large); the earlier file is unchanged"
    assert words in error.splitlines()[-1]
    assert path.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [path]


def test_folders_are_made_and_names_that_are_no_text_are_written(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, os.fsdecode(b"caf\xe9 \xc3\xa9"))
    assert path.read_text(encoding="utf-8") == "caf\\udce9 \u00e9"
    with pytest.raises(OutputError, match=r"a\.txt/new/b\.txt cannot be written"):
        write_text(path / "new" / "b.txt", "text")


@pytest.mark.parametrize("text", ["a b", "ü 漢", "a\nb", "%s", ".hidden", os.fsdecode(b"\xff")])
def test_names_that_a_file_can_have_stay(text):
    assert file_name(text, ".png") == f"{text}.png"


ODD = st.sampled_from(["/etc/passwd", "../../x", "..", ".", "", "x" * 300, "漢" * 100])


@given(ODD | st.text(st.characters(), max_size=300), st.sampled_from(["", ".png", ".safetensors"]))
def test_every_text_becomes_one_part_of_a_path(tmp_path_factory, text, suffix):
    folder = tmp_path_factory.getbasetemp() / "names"
    folder.mkdir(exist_ok=True)
    name = file_name(text, suffix)
    path = folder / name
    path.write_text("")
    assert [p.name for p in folder.iterdir()] == [name]
    path.unlink()
    assert name.endswith(suffix) and len(os.fsencode(name)) <= LONGEST_NAME


def test_long_names_that_differ_at_the_end_stay_different():
    assert len({file_name("x" * 300 + end, ".png") for end in "abc"}) == 3
