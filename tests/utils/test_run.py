from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
import torch

from method_config import load_config
from utils import run_folder as run
from utils.errors import ConfigError, DataError
from utils.output_files import write_text
from utils.run_folder import (
    _discard,
    claimed,
    create_run_folder,
    git_revision,
    provenance,
    recorded,
    run_facts,
    run_folder,
)

GIT = shutil.which("git")


def test_the_folder_is_named_by_the_config_or_after_it(tmp_path):
    named = load_config([], ["OUTPUT_DIR", str(tmp_path), "RUN_NAME", "mine"])
    assert run_folder(named, "x/SOFS.yaml") == tmp_path / "mine"
    free = load_config([], ["OUTPUT_DIR", str(tmp_path), "DATASET.split", 2])
    folder = run_folder(free, "method_config/VISION_V1/SOFS.yaml")
    assert folder.parent == tmp_path and re.fullmatch(r"VISION_V1_split2_\d{8}-\d{6}", folder.name)
    assert not folder.exists()


def test_the_config_is_kept_so_that_it_loads_again(tmp_path):
    cfg = load_config([], ["TRAIN.SOFS.smooth_r", 3.5, "DATASET.train_objects", ["007", "Ring"]])
    create_run_folder(tmp_path / "a" / "b", cfg)
    assert load_config(tmp_path / "a" / "b" / "config.yaml") == cfg


def test_what_a_killed_run_left_unfinished_is_removed(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = tmp_path / "checkpoints" / f".state.pth.{ended.pid}.partial"
    left.parent.mkdir()
    left.write_bytes(b"who")
    create_run_folder(tmp_path, load_config([]))
    assert not left.exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "log").write_text("a file")
    words = rf"OUTPUT_DIR, RUN_NAME: {tmp_path}/log/run cannot be written"
    with pytest.raises(ConfigError, match=words), claimed(tmp_path / "log" / "run"):
        pass


def test_a_folder_whose_name_is_too_long(tmp_path):
    with (
        pytest.raises(ConfigError, match=r"OUTPUT_DIR, RUN_NAME: .* cannot be written"),
        claimed(tmp_path / ("x" * 300)),
    ):
        pass


def test_a_new_folder_without_results_is_discarded_on_a_user_error(tmp_path):
    """And those above it; what lies beside it stays."""
    folder = tmp_path / "a" / "b" / "run"
    for beside in (False, True):
        with pytest.raises(DataError, match="mine"), claimed(folder):
            create_run_folder(folder, load_config([]))
            (folder / "test.log").write_text("a line")
            (folder / "events").mkdir()
            (folder / "figures").mkdir()
            if beside:
                (tmp_path / "a" / "b" / "other").mkdir()
            raise DataError("mine")
        assert not folder.exists() and (tmp_path / "a").exists() == beside
    with claimed(folder):
        pass
    assert folder.is_dir()


@pytest.mark.parametrize("error", [DataError, ValueError])
@pytest.mark.parametrize(
    "result", ["metrics.json", "part/masks/0.png", "checkpoints/state.pth", "report.html"]
)
def test_a_folder_with_any_result_stays(tmp_path, error, result):
    """A late fault takes nothing from what was found before it."""
    with pytest.raises(error), claimed(tmp_path / "run"):
        create_run_folder(tmp_path / "run", load_config([]))
        write_text(tmp_path / "run" / result, "found")
        raise error
    assert (tmp_path / "run" / result).read_text() == "found"


def test_an_older_folder_and_that_of_an_error_of_the_program_stay(tmp_path):
    (tmp_path / "old").mkdir()
    for name, error in (("old", DataError), ("new", ValueError)):
        with pytest.raises(error), claimed(tmp_path / name):
            raise error
        assert (tmp_path / name).is_dir()


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_an_earlier_run_has_found_moves_beside_the_folder(tmp_path):
    """Whatever it is, and as often as there is another run; a folder's name that is taken is passed over."""
    folder, found = tmp_path / "run", []
    (tmp_path / "run.2").mkdir()
    for number in range(3):
        create_run_folder(folder, load_config([], ["RNG_SEED", number]))
        assert files_below(folder) == {"config.yaml"}
        for name in (f"part{number}/masks/q.png", "queries.csv", "train.log"):
            write_text(folder / name, str(number))
        found.append(files_below(folder))
    assert [files_below(tmp_path / name) for name in ("run.1", "run.3", "run")] == found
    assert (tmp_path / "run.3" / "queries.csv").read_text() == "1"


def test_what_a_run_without_results_has_left_goes(tmp_path):
    """But for what nobody knows to be a run's."""
    create_run_folder(tmp_path / "run", load_config([]))
    for name in ("train.log", "events/1", "feature_bank/features.bf16"):
        write_text(tmp_path / "run" / name, "")
    create_run_folder(tmp_path / "run", load_config([]))
    assert files_below(tmp_path) == {"run/config.yaml"}


def test_a_folder_of_no_run_is_left_as_it_is(tmp_path):
    write_text(tmp_path / "run" / "notes.txt", "mine")
    create_run_folder(tmp_path / "run", load_config([]))
    assert files_below(tmp_path) == {"run/config.yaml", "run/notes.txt"}


def test_a_link_to_an_earlier_run_stays_and_the_new_folder_is_locked(tmp_path):
    """The lock of the folder that moves does not keep others from the one that takes its place."""
    link = tmp_path / "link"
    (tmp_path / "disk").mkdir()
    link.symlink_to(tmp_path / "disk" / "run")
    for number in range(2):
        with claimed(link):
            create_run_folder(link, load_config([], ["RNG_SEED", number]))
            write_text(link / "metrics.json", str(number))
            with (
                pytest.raises(ConfigError, match="another run goes on in"),
                claimed(link, patience=1),
            ):
                pass
    assert link.is_symlink() and (link / "metrics.json").read_text() == "1"
    assert (tmp_path / "disk" / "run.1" / "metrics.json").read_text() == "0"


def test_a_folder_with_what_is_not_of_one_run_is_refused_and_stays(tmp_path):
    """Other runs, the data, folders of no run: a run that made room would take them away."""
    create_run_folder(tmp_path / "runs", load_config([]))
    create_run_folder(tmp_path / "runs" / "mine", load_config([]))
    create_run_folder(tmp_path / "run", load_config([]))
    for name in (
        "run/parts/Ring/a.png",
        "folder/Ring/a.png",
        "runs/metrics.json",
        "run/metrics.json",
    ):
        write_text(tmp_path / name, "")
    before = files_below(tmp_path)
    data = ["TEST.dataset_path", str(tmp_path / "run" / "parts")]
    for name, words, more in (
        ("runs", "another run", []),
        ("folder", "holds Ring/", []),
        ("run", "which this", data),
    ):
        with pytest.raises(ConfigError, match=rf"RUN_NAME: .*{words}.* choose another RUN_NAME"):
            create_run_folder(tmp_path / name, load_config([], more))
    assert files_below(tmp_path) == before


def test_a_folder_in_that_of_another_run_is_refused(tmp_path):
    output = ["OUTPUT_DIR", str(tmp_path / "log")]
    create_run_folder(tmp_path / "log" / "run", load_config([], output))
    inner = tmp_path / "log" / "run" / "part" / "masks"
    with pytest.raises(
        ConfigError,
        match=rf"{inner} lies in {tmp_path}/log/run, which is the folder of another run",
    ):
        create_run_folder(inner, load_config([], output))
    create_run_folder(tmp_path / "log" / "group" / "run", load_config([], output))


def test_a_run_that_goes_on_keeps_its_files(tmp_path):
    create_run_folder(tmp_path / "run", load_config([]))
    write_text(tmp_path / "run" / "checkpoints" / "state.pth", "")
    create_run_folder(tmp_path / "run", load_config([]), goes_on=True)
    assert files_below(tmp_path) == {"run/config.yaml", "run/checkpoints/state.pth"}


@pytest.mark.parametrize("way", ["direct", "link"])
def test_what_a_run_reads_does_not_move_under_it(tmp_path, way):
    create_run_folder(tmp_path / "run", load_config([]))
    write_text(tmp_path / "run" / "checkpoints" / "head.safetensors", "")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    head = tmp_path / ("run" if way == "direct" else "link") / "checkpoints" / "head.safetensors"
    with pytest.raises(
        ConfigError, match=rf"RUN_NAME: {head}, which this run reads, .* choose another RUN_NAME"
    ):
        create_run_folder(tmp_path / "run", load_config([]), reads=[str(head)])
    assert head.is_file()


def test_a_second_run_waits_for_the_first_and_is_refused_if_that_goes_on(tmp_path, caplog):
    """flock knows two handles of one process from each other."""
    refused = pytest.raises(ConfigError, match=r"RUN_NAME: another run goes on in .*run;")
    with claimed(tmp_path / "run"), refused, claimed(tmp_path / "run", patience=2):
        pass
    assert "waiting for another run" in caplog.text
    inside, over = threading.Event(), threading.Event()

    def hold():
        with claimed(tmp_path / "run"):
            inside.set()
            time.sleep(1.5)
            over.set()

    first = threading.Thread(target=hold)
    first.start()
    inside.wait()
    with claimed(tmp_path / "run"):
        assert over.is_set()
    first.join()
    assert (tmp_path / "run").is_dir()


def test_provenance_names_versions():
    found = provenance()
    assert (
        torch.__version__.startswith(found["torch"]) and found["python"] == sys.version.split()[0]
    )
    assert found.keys() >= {"git_revision", "timm", "torchvision", "numpy"}
    json.dumps(found)


def test_a_package_of_another_name_is_no_error(monkeypatch):
    monkeypatch.setattr(run, "PACKAGES", ("numpy", "no-such-package"))
    assert provenance()["no-such-package"] is None and provenance()["numpy"]


@pytest.mark.skipif(GIT is None, reason="needs git")
def test_revision_of_the_code_with_a_mark_for_changes(tmp_path, monkeypatch):
    def git(*args):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            [GIT, "-C", tmp_path, *identity, *args], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "run.py").write_text("")
    monkeypatch.setattr(run, "__file__", str(tmp_path / "utils" / "run.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision() is None
    git("init", "-q")
    git("add", "."), git("commit", "-q", "-m", "one"), git("tag", "v1")
    head = git("rev-parse", "HEAD")
    assert git_revision() == head
    (tmp_path / "utils" / "run.py").write_text("changed")
    assert git_revision() == f"{head}+"
    monkeypatch.setenv("PATH", str(Path("/nowhere")))
    assert git_revision() is None


def test_when_and_on_what_a_run_ran_is_kept_apart_from_its_figures(tmp_path):
    cfg = load_config([])
    facts = run_facts(cfg)
    before, start = datetime.now().astimezone().replace(microsecond=0), time.perf_counter()
    with recorded(cfg, tmp_path):
        time.sleep(0.2)
    known = json.loads((tmp_path / "run.json").read_text())
    assert before <= datetime.fromisoformat(known.pop("finished")) <= datetime.now().astimezone()
    assert 0.2 <= known.pop("seconds") <= round(time.perf_counter() - start, 1)
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    assert known == {"processes": 1, "device": device}
    assert run_facts(cfg) == facts


def test_what_failed_beside_what_was_found_is_recorded(tmp_path):
    with recorded(load_config([]), tmp_path) as failed:
        failed.append("wood: no query could be read")
    assert json.loads((tmp_path / "run.json").read_text())["failed"] == [
        "wood: no query could be read"
    ]


def test_a_run_that_fails_has_not_finished(tmp_path):
    with pytest.raises(DataError), recorded(load_config([]), tmp_path):
        raise DataError("x")
    assert not list(tmp_path.iterdir())


def test_processes_that_discard_a_folder_at_once_agree(tmp_path):
    """Each of a run does, and what one finds gone is no fault."""
    folder = tmp_path / "log" / "of" / "run"
    with ThreadPoolExecutor(4) as pool:
        for _ in range(300):
            write_text(folder / "test.log", "")
            list(pool.map(lambda _: _discard([folder, *folder.parents[:2]], folder), range(4)))
            assert not list(tmp_path.iterdir())
