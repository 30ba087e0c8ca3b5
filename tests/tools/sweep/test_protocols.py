from __future__ import annotations

import pytest

from tools.sweep.protocols import FOLDER, protocol_names, read_protocol
from utils.errors import ConfigError


@pytest.fixture
def broken(tmp_path):
    """The message that a protocol of this text is refused with."""

    def message(text):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(ConfigError) as error:
            read_protocol("mine", tmp_path)
        return str(error.value)

    return message


def test_every_protocol_is_read_and_starts_from_a_config_that_is_there():
    assert set(protocol_names()) == {"vision_v1", "ds_spectrum", "vision_to_ds", "mvtec", "visa"}
    for name in protocol_names():
        assert read_protocol(name).config.is_file()


@pytest.mark.parametrize("name", ["mvtec", "visa"])
def test_anomaly_detection_trains_nothing_and_has_one_unnamed_part(name):
    protocol = read_protocol(name)
    assert (protocol.train, protocol.splits, protocol.shots) == (None, {None: {}}, [1, 2, 4])


def test_settings_may_be_nested_or_dotted(tmp_path):
    text = "config: a.yaml\nshots: [3]\nsplits: {1: {DATASET: {crop_size: 28}}, 2: }\ntest: {TEST.threshold: 0.4}"
    (tmp_path / "mine.yaml").write_text(text)
    protocol = read_protocol("mine", tmp_path)
    assert protocol.splits == {1: {"DATASET.crop_size": 28}, 2: {}} and protocol.test == {
        "TEST.threshold": 0.4
    }
    assert protocol.config == FOLDER.parent / "a.yaml" and protocol.train is None


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"vison_v1: no such protocol.*ds_spectrum, .*Did you mean vision_v1\?"
    ):
        read_protocol("vison_v1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shots: [1]", "'config'"),
        ("config: a", "'shots'"),
        ("config: a\nshots: []", "no shots"),
        ("config: a\nshots: one", "invalid literal"),
        ("config: a\nshots: [1]\nsplit: {}", "unknown: split"),
        ("config: a\nshots: [1]\nsplits: [0, 1]", "splits"),
        ("config: a\nshots: [1]\ntest: {TEST.treshold: 1}", "Did you mean TEST.threshold?"),
        ("config: a\nshots: [1]\ntrain: {TEST.threshold: high}", "a finite number"),
    ],
)
def test_a_broken_file_is_named(broken, tmp_path, text, words):
    message = broken(text)
    assert message.startswith(str(tmp_path / "mine.yaml")) and words in message
