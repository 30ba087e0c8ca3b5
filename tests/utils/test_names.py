from __future__ import annotations

import os

import pytest

from utils.output_files import LONGEST, file_name


@pytest.mark.parametrize(
    "text", ["a", "a b", "ü 漢", "a\nb", "%s", "-", ".hidden", "a..b", os.fsdecode(b"\xff")]
)
def test_names_that_a_file_can_have_stay(text, tmp_path):
    assert file_name(text, ".png") == f"{text}.png"
    (tmp_path / file_name(text, ".png")).write_text("")


@pytest.mark.parametrize(
    "text",
    [
        "/etc/passwd",
        "../../x",
        "a/b",
        "a\\b",
        "\0",
        "\ud800",
        "..",
        ".",
        "",
        "x" * 300,
        "漢" * 100,
        "\udcff" * 400,
    ],
)
@pytest.mark.parametrize("suffix", ["", ".png", ".safetensors"])
def test_every_text_becomes_one_part_of_a_path(text, suffix, tmp_path):
    name = file_name(text, suffix)
    path = tmp_path / name
    path.write_text("")
    assert [p.name for p in tmp_path.iterdir()] == [
        name
    ] and path.resolve().parent == tmp_path.resolve()
    assert name.endswith(suffix) and len(os.fsencode(name)) <= LONGEST


def test_long_names_that_differ_at_the_end_stay_different():
    assert len({file_name("x" * 300 + end, ".png") for end in "abc"}) == 3
