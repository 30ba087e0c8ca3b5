from __future__ import annotations

import pytest

from datasets.splits import split_objects
from utils.errors import ConfigError


def test_vision_v1_as_published():
    tests = [split_objects("VISION_V1", split)[1] for split in range(3)]
    assert tests[0] == ["PCB_1", "Hemisphere", "Wood", "Ring", "Cable"]
    assert tests[1] == ["Casting", "Capacitor", "PCB_2", "Electronics", "Console"]
    assert tests[2] == ["Groove", "Lens", "Screw", "Cylinder"]
    products = {name for test in tests for name in test}
    for split, test in enumerate(tests):
        train = split_objects("VISION_V1_ND", split)[0]
        assert set(train) == products - set(test) and len(train) == len(set(train))
    assert split_objects("VISION_V1", 0)[0][:3] == ["Console", "Casting", "Groove"]


def test_defect_spectrum_trains_on_the_other_two_groups():
    groups = [split_objects("DS_Spectrum", split)[1] for split in range(3)]
    assert [len(group) for group in groups] == [8, 7, 8]
    assert len({name for group in groups for name in group}) == 23
    assert "Ring_VISION" in groups[0] and "Wood_VISION" in groups[1] and "DS-DAGM" in groups[2]
    for split in range(3):
        others = [name for other in range(3) if other != split for name in groups[other]]
        assert split_objects("DS_Spectrum_ND", split)[0] == others
    train, test = split_objects("DS_Spectrum_DS", 1)
    everything = {name for group in groups for name in group}
    assert train == [] and len(test) == 17
    assert set(test) == {name for name in everything if not name.endswith("_VISION")}


def test_unpublished_splits():
    with pytest.raises(ConfigError, match=r"DATASET\.name 'mvtec' has no published split"):
        split_objects("mvtec", 0)
