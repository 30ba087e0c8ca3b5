from __future__ import annotations

import json
import re
import shutil
import subprocess
from datetime import datetime

import pytest
import torch

from method_config import load_config
from utils import run_folder as module
from utils.errors import ConfigError, DataError
from utils.output_files import write_text
from utils.run_folder import claimed, create_run_folder, run_folder

GIT = shutil.which("git")


def write_files(folder, *names):
    for name in names:
        write_text(folder / name, "")


def begin(folder, *opts, **options):
    create_run_folder(folder, load_config([], opts), **options)


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_is_named_by_the_config_or_after_it_and_keeps_it(tmp_path):
    named = load_config([], ["OUTPUT_DIR", str(tmp_path), "RUN_NAME", "mine"])
    assert run_folder(named, "x/SOFS.yaml") == tmp_path / "mine"
    cfg = load_config([], ["OUTPUT_DIR", str(tmp_path), "DATASET.train_objects", ["007", "Ring"]])
    folder = run_folder(cfg, "method_config/VISION_V1/SOFS.yaml")
    assert folder.parent == tmp_path and re.fullmatch(r"VISION_V1_split0_\d{8}-\d{6}", folder.name)
    assert not folder.exists()
    create_run_folder(folder, cfg)
    assert load_config(folder / "config.yaml") == cfg


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("a file")
    words = rf"OUTPUT_DIR, RUN_NAME: {tmp_path}/file/run cannot be written"
    with pytest.raises(ConfigError, match=words), claimed(tmp_path / "file" / "run"):
        pass


def test_a_failed_start_leaves_no_folder(tmp_path):
    """Nor those above it that it made; what lies beside it stays."""
    folder = tmp_path / "a" / "b" / "run"
    for beside in (False, True):
        with pytest.raises(DataError, match="mine"), claimed(folder):
            begin(folder)
            write_files(folder, "test.log", "events/1")
            (folder / "figures").mkdir()
            if beside:
                (tmp_path / "a" / "b" / "other").mkdir()
            raise DataError("mine")
        assert not folder.exists() and (tmp_path / "a").exists() == beside


def test_results_an_older_folder_and_that_of_a_fault_of_the_program_stay(tmp_path):
    (tmp_path / "old").mkdir()
    for name, error, files in [("old", DataError, ()), ("new", ValueError, ()),
                               ("some", DataError, ["part/masks/0.png"])]:  # fmt: skip
        with pytest.raises(error), claimed(tmp_path / name):
            begin(tmp_path / name)
            write_files(tmp_path / name, *files)
            raise error
        assert files_below(tmp_path / name) == {"config.yaml", *files}


def test_an_earlier_run_moves_beside_the_folder(tmp_path):
    """Whatever its files, and as often as there is another run; a name that is taken is skipped."""
    folder, before = tmp_path / "run", []
    (tmp_path / "run.2").mkdir()
    for number in range(3):
        begin(folder, "RNG_SEED", number)
        assert files_below(folder) == {"config.yaml"}
        write_files(folder, f"part{number}/masks/q.png", "queries.csv", "train.log")
        before.append(files_below(folder))
    assert [files_below(tmp_path / name) for name in ("run.1", "run.3", "run")] == before
    assert load_config(tmp_path / "run.3" / "config.yaml").RNG_SEED == 1


def test_what_a_run_without_results_has_left_is_deleted_and_other_files_stay(tmp_path):
    left = ["train.log", "events/1", "feature_bank/features.bf16"]
    partial = "checkpoints/.state.pth.7.partial"
    write_files(tmp_path / "run", "notes.txt")
    for name in ("empty", "run"):
        begin(tmp_path / name)
        write_files(tmp_path / name, *left, partial)
    begin(tmp_path / "empty")
    begin(tmp_path / "run", goes_on=True)
    assert files_below(tmp_path / "empty") == {"config.yaml"}
    assert files_below(tmp_path / "run") == {"config.yaml", "notes.txt", *left}


def test_a_folder_that_is_a_link_stays_one_and_is_locked(tmp_path):
    """Also after an earlier run in it has made room."""
    link = tmp_path / "link"
    (tmp_path / "disk").mkdir()
    link.symlink_to(tmp_path / "disk" / "run")
    for number in range(2):
        with claimed(link):
            begin(link, "RNG_SEED", number)
            write_text(link / "metrics.json", str(number))
            refused = pytest.raises(ConfigError, match="another run is using")
            with refused, claimed(link, patience=0):
                pass
    assert link.is_symlink() and (link / "metrics.json").read_text() == "1"
    assert (tmp_path / "disk" / "run.1" / "metrics.json").read_text() == "0"


@pytest.mark.parametrize(
    ("name", "words", "opts", "reads"),
    [
        ("runs", "runs holds another run", (), ""),
        ("folder", "folder holds Ring/, but no config.yaml", (), ""),
        ("run", "parts, which this run reads", ("TEST.dataset_path", "{}/run/parts"), ""),
        ("run", "link/a.json, which this run reads", (), "{}/link/a.json"),
        ("log/run/part", "lies in .*/log/run, which is", ("OUTPUT_DIR", "{}/log"), ""),
    ],
)
def test_a_folder_with_what_must_not_move_is_refused(tmp_path, name, words, opts, reads):
    """Other runs, the data, what the run reads, folders of no run: a run would take them away."""
    for run in ("runs", "runs/mine", "run", "log/run"):
        begin(tmp_path / run)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    write_files(tmp_path, "run/parts/a.png", "folder/Ring/a.png", "runs/a.json", "run/a.json")
    before = files_below(tmp_path)
    with pytest.raises(ConfigError, match=rf"RUN_NAME: .*{words}.*; choose another RUN_NAME"):
        begin(tmp_path / name, *(o.format(tmp_path) for o in opts), reads=[reads.format(tmp_path)])
    assert files_below(tmp_path) == before


def test_provenance_names_versions(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))
    versions = module.provenance()
    assert torch.__version__.startswith(versions["torch"])
    assert versions["no-such-package"] is None and versions.keys() >= {"git_revision", "python"}


@pytest.mark.skipif(GIT is None, reason="needs git")
def test_revision_of_the_code_with_a_mark_for_changes(tmp_path, monkeypatch):
    def git(*args):
        command = [GIT, "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    write_files(tmp_path, "utils/run.py")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "utils" / "run.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert module.git_revision() is None
    for words in ("init -q", "add .", "commit -q -m one", "tag v1"):
        git(*words.split())
    head = git("rev-parse", "HEAD")
    assert module.git_revision() == head
    (tmp_path / "utils" / "run.py").write_text("changed")
    assert module.git_revision() == f"{head}+"


def test_what_differs_between_runs_of_one_command_is_kept_apart_from_the_figures():
    cfg, failed = load_config([]), ["wood: no query could be read"]
    before = datetime.now().astimezone().replace(microsecond=0)
    record = json.loads(json.dumps(module.run_record(cfg, 0.249, failed)))
    assert before <= datetime.fromisoformat(record.pop("finished")) <= datetime.now().astimezone()
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    assert record == {"seconds": 0.2, "processes": 1, "device": device, "failed": failed}
    assert "failed" not in module.run_record(cfg, 0.2, [])
