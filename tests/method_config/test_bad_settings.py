from __future__ import annotations

import time

import pytest

from method_config import load_config

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{n}: &{n} [{','.join(['*' + p] * 10)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k0: 1, k1: 1, k2: 1}\n" + "".join(
    f"{n}: &{n} {{<<: [{','.join(['*' + p] * 10)}]}}\n"
    for p, n in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS = {
    "not closed": "DATASET: {",
    "NUL": "RUN_NAME: a\0b",
    "escaped NUL": 'RUN_NAME: "a\\0b"',
    "half a character": 'RUN_NAME: "\\ud800"',
    "deep": "[" * 100_000,
    "deep blocks": "\n".join(" " * n + "a:" for n in range(900)),
    "deep value": "DATASET: {train_objects: " + "[" * 400 + "]" * 400 + "}",
    "alias bomb": BOMB,
    "merge bomb": MERGES,
    "holds itself": "DATASET: &a {name: *a}",
    "merges itself": "TRAIN: &a {<<: *a}",
    "huge integer": "RNG_SEED: " + "9" * 100_000,
    "huge hexadecimal": "RNG_SEED: 0x" + "f" * 100_000,
    "large integer": "NUM_GPUS: 18446744073709551616",
    "date": "RUN_NAME: 2001-99-99",
    "no timestamp": "RUN_NAME: !!timestamp x",
    "no boolean": "TRAIN: {enable: !!bool x}",
    "empty integer": "RNG_SEED: !!int ''",
    "object": "RUN_NAME: !!python/object/apply:os.getcwd []",
    "list as key": "? [a, b]\n: 1",
    "mapping as key": "? {a: b}\n: 1",
    "number as key": "1: 2",
    "nothing as key": "null: 2",
    "long key": "x" * 500_000 + ": 1",
    "long value": "DATASET: {name: " + "x" * 500_000 + "}",
    "long file": "# " + "x" * 2_000_000,
    "two documents": "RNG_SEED: 1\n---\nRNG_SEED: 2",
    "a key twice": "RNG_SEED: 1\nRNG_SEED: 2",
    "a section twice": "DATASET: {shot: 2}\nTRAIN: {}\nDATASET: {split: 1}",
    "a key twice within": "TRAIN: {SOFS: {smooth_r: 1, reduce_dim: 8, smooth_r: 2}}",
    "a list": "- a",
    "many objects": "DATASET: {train_objects: [" + "a," * 9000 + "]}",
    "wide head": "TRAIN: {SOFS: {transformer_embed_dim: 9007199254740991, transformer_nums_heads: 2}}",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_no_text_ends_in_anything_but_a_short_message_soon(write, fault, kind):
    start = time.process_time()
    message = fault(load_config, write(TEXTS[kind]))
    assert time.process_time() - start < 5
    assert 0 < len(message) < 3000 and "my.yaml" in message


def test_aliases_and_merges_of_ordinary_size_load(write):
    cfg = load_config(write("DATASET: &a {shot: 3}\nTRAIN_SETUPS: {epochs: &n 7}\nRNG_SEED: *n"))
    assert (cfg.DATASET.shot, cfg.RNG_SEED) == (3, 7)
    cfg = load_config(write("TEST_SETUPS: &t {batch_size: 2}\nTRAIN_SETUPS: {<<: *t, epochs: 1}"))
    assert (cfg.TRAIN_SETUPS.batch_size, cfg.TRAIN_SETUPS.epochs) == (2, 1)


def test_a_file_that_is_no_text_is_refused(tmp_path, fault):
    path = tmp_path / "my.yaml"
    path.write_bytes(b"RUN_NAME: \xff")
    assert "my.yaml" in fault(load_config, path)
    assert "my.yaml" in fault(load_config, tmp_path / "my.yaml" / "x")
    assert "cannot be read" in fault(load_config, tmp_path)


@pytest.mark.parametrize(
    "value", ["1" * 5000, "[" * 1500, "0x" + "f" * 5000, "!!int ''", "x\0y", "2001-99-99"]
)
@pytest.mark.parametrize(
    "key", ["DATASET.shot", "DATASET.crop_ratio", "TEST.threshold", "TRAIN.enable"]
)
def test_odd_options_are_refused_in_few_words(load, fault, key, value):
    message = fault(load, key, value)
    assert message.startswith("command line: ") and key in message and len(message) < 500


@pytest.mark.parametrize(
    "key",
    [
        "DATASET.train_objects",
        "DATASET.test_objects",
        "DATASET.open_domain_test_object",
        "DATASET.sub_datasets",
    ],
)
@pytest.mark.parametrize("name", ["/etc", "..", "a/../..", "../a", "a/.."])
def test_folders_that_lead_out_are_refused(load, fault, key, name):
    message = fault(load, key, [name])
    assert key in message and "leads out" in message


@pytest.mark.parametrize(
    ("key", "where"), [("RUN_NAME", "OUTPUT_DIR"), ("DATASET.normal_folder", "data set")]
)
@pytest.mark.parametrize("name", ["/tmp/x", "..", "a/../../b"])
def test_paths_that_lead_out_are_refused(load, fault, key, where, name):
    message = fault(load, key, name)
    assert key in message and "leads out" in message and where in message


@pytest.mark.parametrize(
    "key", ["DATASET.train_objects", "DATASET.open_domain_test_object", "DATASET.sub_datasets"]
)
@pytest.mark.parametrize("name", ["Ring/", "./Ring", "a//Ring", ".", ""])
def test_another_spelling_of_a_folder_is_refused(load, fault, key, name):
    """Ring and Ring/ would be two objects, of the same images."""
    message = fault(load, key, [name])
    words = {".": "names no folder", "": "is empty", "a//Ring": "write 'a/Ring' for"}.get(
        name, "write 'Ring' for"
    )
    assert key in message and words in message


@pytest.mark.parametrize("name", ["gallery", "checkpoints/part", "metrics.json"])
def test_an_open_domain_object_named_as_files_of_a_run_is_refused(load, fault, name):
    """Its folder in the run's would be theirs."""
    message = fault(
        load,
        "DATASET.name",
        "opendomain_test_dataset_ND",
        "DATASET.open_domain_test_object",
        [name],
    )
    assert (
        "open_domain_test_object" in message
        and f"{name} is what a run calls files of its own" in message
    )


@pytest.mark.parametrize("name", ["a/b", "a..b", "..a", "a b", "ü\n漢"])
def test_names_that_stay_inside_load(load, name):
    cfg = load("RUN_NAME", name, "DATASET.test_objects", [name], "DATASET.normal_folder", name)
    assert cfg.RUN_NAME == cfg.DATASET.test_objects[0] == cfg.DATASET.normal_folder == name


@pytest.mark.parametrize("name", [".", "./", "././."])
def test_a_run_name_that_is_no_folder_is_refused(load, fault, name):
    message = fault(load, "RUN_NAME", name)
    assert "RUN_NAME" in message and "names no folder below OUTPUT_DIR" in message
