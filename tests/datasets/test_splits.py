from __future__ import annotations

import pytest

from datasets.splits import split_objects
from utils.errors import ConfigError

VISION = {
    *(
        "Console",
        "Casting",
        "Groove",
        "Capacitor",
        "PCB_2",
        "Screw",
        "Cylinder",
        "Electronics",
        "Lens",
    ),
    *("PCB_1", "Hemisphere", "Wood", "Ring", "Cable"),
}


def test_vision_v1_splits_partition_the_products():
    tested = []
    for split in range(3):
        train, test = split_objects("VISION_V1", split)
        assert set(train) | set(test) == VISION and not set(train) & set(test)
        assert len(train) + len(test) == len(VISION)
        tested += test
    assert sorted(tested) == sorted(VISION)


def test_vision_v1_as_published():
    assert split_objects("VISION_V1", 0)[1] == ["PCB_1", "Hemisphere", "Wood", "Ring", "Cable"]
    assert split_objects("VISION_V1", 1)[1] == [
        "Casting",
        "Capacitor",
        "PCB_2",
        "Electronics",
        "Console",
    ]
    assert split_objects("VISION_V1", 2)[1] == ["Groove", "Lens", "Screw", "Cylinder"]


def test_defect_spectrum_trains_on_the_other_two_groups():
    groups = [split_objects("DS_Spectrum", split)[1] for split in range(3)]
    assert [len(group) for group in groups] == [8, 7, 8]
    assert len({name for group in groups for name in group}) == 23
    for split in range(3):
        others = [name for other in range(3) if other != split for name in groups[other]]
        assert split_objects("DS_Spectrum", split)[0] == others
    assert "Ring_VISION" in groups[0] and "Wood_VISION" in groups[1] and "DS-DAGM" in groups[2]


def test_cross_domain_tests_all_of_defect_spectrum_but_vision():
    train, test = split_objects("DS_Spectrum_DS", 1)
    everything = {name for split in range(3) for name in split_objects("DS_Spectrum", split)[1]}
    assert train == [] and len(test) == len(set(test)) == 17
    assert set(test) == {name for name in everything if not name.endswith("_VISION")}


@pytest.mark.parametrize("name", ["VISION_V1", "DS_Spectrum", "DS_Spectrum_DS"])
def test_native_resolution_has_the_same_objects(name):
    for split in range(3):
        assert split_objects(f"{name}_ND", split) == split_objects(name, split)


def test_callers_may_change_what_they_get():
    split_objects("VISION_V1", 0)[1].clear()
    assert split_objects("VISION_V1", 0)[1]


@pytest.mark.parametrize(
    ("name", "split", "named"), [("mvtek", 0, "DATASET.name"), ("VISION_V1", 3, "DATASET.split")]
)
def test_unpublished_splits(name, split, named):
    with pytest.raises(ConfigError, match=named):
        split_objects(name, split)
