from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import OutputError
from utils.output_files import remove_partial, write_json, write_text, write_whole

REPO = Path(__file__).parents[2]


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"miou": 0.5, "empty": None})
    assert json.loads(path.read_text()) == {"miou": 0.5, "empty": None}
    with pytest.raises(TypeError):
        write_json(path, {"miou": object()})
    assert json.loads(path.read_text())["miou"] == 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_a_disk_that_refuses_leaves_the_earlier_file_and_no_rest(tmp_path):
    """In a process of its own, whose files may have 4,096 bytes."""
    path = tmp_path / "state.pth"
    path.write_bytes(b"earlier")
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom utils.files import write_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\nwrite_whole(Path(sys.argv[1]), bytes(5000))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=REPO, capture_output=True, text=True
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"utils.errors.OutputError: {path} cannot be written (File too large); the earlier file is"
    )
    assert path.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/new/a\.txt cannot be written"):
        write_text(tmp_path / "file" / "new" / "a.txt", "text")


def test_folders_are_made_and_names_that_are_no_text_are_written(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, os.fsdecode(b"caf\xe9 \xc3\xa9"))
    assert path.read_text(encoding="utf-8") == "caf\\udce9 \u00e9"


def test_what_killed_processes_left_is_removed_and_what_others_write_stays(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    whole = tmp_path / "a" / "state.pth"
    left, written = (
        whole.with_name(f".state.pth.{pid}.partial") for pid in (ended.pid, os.getpid())
    )
    write_whole(whole, b"whole")
    for path in (left, written):
        path.write_bytes(b"who")
    remove_partial(tmp_path)
    assert set((tmp_path / "a").iterdir()) == {whole, written} and whole.read_bytes() == b"whole"
