from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from method_config import add_config_arguments, get_defaults, load_config
from method_config.published import WITHOUT_EFFECT
from method_config.values import get, leaves
from tools.export.__main__ import parse as parse_export
from tools.segment.__main__ import parse
from tools.sweep import build_parser, build_sweep

REPO = Path(__file__).parents[1]
CONFIGURATION = REPO / "docs" / "configuration.md"
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
FOLDERS = ("datasets", "models", "tools", "utils")
# the benchmark only sets keys
SOURCES = [p for f in FOLDERS for p in (REPO / f).rglob("*.py") if p.parent.name != "benchmark"]
KEY = re.compile(r"\b(?:DATASET|TRAIN|TRAIN_SETUPS|TEST|TEST_SETUPS)\.[A-Za-z_](?:[\w.]*\w)?")
ONLY_CHECKED = {"DATASET.mask_size"}  # must equal image_size, which is what the code reads


def test_keys_documented_with_an_effect_are_read_by_the_code():
    code = "\n".join(path.read_text() for path in SOURCES)
    effective = CONFIGURATION.read_text().partition("## Accepted without effect")[0]
    keys = re.findall(r"^\| `([\w.]+)` \| `", effective, re.MULTILINE)
    assert set(dict(leaves(get_defaults()))) == set(keys)
    unread = {key for key in keys if not re.search(rf"\.{key.rpartition('.')[2]}\b", code)}
    assert unread == ONLY_CHECKED


def test_every_key_named_exists():
    cfg = get_defaults()
    for file in [*PAGES, *(REPO / name for name in ("Makefile", "train.sh", "test.sh"))]:
        for key in set(KEY.findall(file.read_text())) - set(WITHOUT_EFFECT):
            get(cfg, key)


def test_files_named_exist():
    for page in PAGES:
        text = page.read_text()
        for path in re.findall(r"method_config/[\w/]+\.(?:yaml|py)|requirements[\w-]*\.txt", text):
            assert (REPO / path).is_file(), path
        for link in re.findall(r"\]\(([\w/.]+\.md|LICENSE)\)", text):
            assert (page.parent / link).is_file(), link


def commands(text):
    """Command lines of the shell blocks, split into words."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_yaml_and_commands_load(page, tmp_path):
    text = page.read_text()
    examples = {}
    for name, block in re.findall(r"`(\w+\.yaml)`:\n\n```yaml\n(.*?)```", text, re.DOTALL):
        examples[name] = tmp_path / name
        examples[name].write_text(block)
    assert len(examples) == text.count("```yaml")
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    folders = {"test.sh": "Open_Domain", "train.sh": "VISION_V1"}
    defaults = {script: f"method_config/{name}/SOFS.yaml" for script, name in folders.items()}
    for words in commands(text):
        if "tools.sweep" in words:
            build_sweep(build_parser().parse_args(words[words.index("tools.sweep") + 1 :])).folder()
        if "tools.segment" in words:
            parse(words[words.index("tools.segment") + 1 :])
        if "tools.export" in words:
            args = parse_export(words[words.index("tools.export") + 1 :])
            load_config([examples.get(file, REPO / file) for file in args.cfg], args.opts)
        script = next((w for w in words if w in ("train.py", "test.py", *defaults)), None)
        if script is None:
            continue
        arguments = words[words.index(script) + 1 :]
        if script in defaults:
            files = [word.partition("=")[2] for word in words if word.startswith("CFG=")]
            files = (files or [defaults[script]])[0].split()
            arguments = ["--cfg", *files, "--opts", *arguments]
        args = parser.parse_args(arguments)
        load_config([examples.get(file, REPO / file) for file in args.cfg], args.opts)


def test_the_demo_config_segments_what_the_demo_writes():
    demo = REPO / "method_config" / "Demo"
    cfg = load_config([demo / "SOFS.yaml", demo / "Open_Domain.yaml"])
    trained = load_config(demo / "SOFS.yaml")
    changed = {key for key, value in leaves(cfg.TRAIN) if value != get(trained.TRAIN, key)}
    assert changed == {"dataset_path"}
    assert cfg.TEST.load_model_path == "./log/demo/checkpoints/head.safetensors"
    assert Path(cfg.TEST.dataset_path).parent == Path(trained.TRAIN.dataset_path).parent
