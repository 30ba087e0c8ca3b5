"""Which objects train and which test, as published."""

from __future__ import annotations

from utils.errors import ConfigError

NATIVE_SUFFIX = "_ND"  # small defects at native resolution: same data, so same objects

VISION_V1_TEST = (
    ("PCB_1", "Hemisphere", "Wood", "Ring", "Cable"),
    ("Casting", "Capacitor", "PCB_2", "Electronics", "Console"),
    ("Groove", "Lens", "Screw", "Cylinder"),
)
VISION_V1_TRAIN = (
    (
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
    ("PCB_1", "Groove", "Cable", "Hemisphere", "Screw", "Cylinder", "Wood", "Ring", "Lens"),
    (
        "Console",
        "PCB_1",
        "Casting",
        "Cable",
        "Hemisphere",
        "Capacitor",
        "PCB_2",
        "Wood",
        "Electronics",
        "Ring",
    ),
)
DS_SPECTRUM_TEST = (
    (
        "Screw_VISION",
        "Ring_VISION",
        "Capacitor_VISION",
        "toothbrush",
        "grid",
        "cable",
        "metal_nut",
        "tile",
    ),
    ("Wood_VISION", "Console_VISION", "pill", "leather", "carpet", "hazelnut", "transistor"),
    (
        "Groove_VISION",
        "DS-DAGM",
        "capsule",
        "screw",
        "wood",
        "zipper",
        "DS-Cotton-Fabric",
        "bottle",
    ),
)
CROSS_DOMAIN_TEST = (
    *(
        "pill",
        "leather",
        "carpet",
        "hazelnut",
        "transistor",
        "DS-DAGM",
        "capsule",
        "screw",
        "wood",
        "zipper",
    ),
    *("DS-Cotton-Fabric", "toothbrush", "grid", "cable", "metal_nut", "tile", "bottle"),
)
SPLIT_NAMES = ("VISION_V1", "DS_Spectrum", "DS_Spectrum_DS")


def split_objects(name: str, split: int) -> tuple[list[str], list[str]]:
    """Objects (train, test) of a data set by DATASET.name, with or without _ND, and DATASET.split, 0 to 2.

    DS_Spectrum_DS tests a model that was trained on VISION V1: no training objects, the same for every split.
    Raises ConfigError for a name or split that was not published.
    """
    base = name.removesuffix(NATIVE_SUFFIX)
    if base not in SPLIT_NAMES:
        known = ", ".join(SPLIT_NAMES)
        raise ConfigError(
            f"DATASET.name {name!r} has no published split; expected one of {known}, with or without _ND"
        )
    if split not in range(3):
        raise ConfigError(f"DATASET.split is {split!r}; expected 0, 1 or 2")
    if base == "VISION_V1":
        return list(VISION_V1_TRAIN[split]), list(VISION_V1_TEST[split])
    if base == "DS_Spectrum":
        train = [
            name for other, group in enumerate(DS_SPECTRUM_TEST) if other != split for name in group
        ]
        return train, list(DS_SPECTRUM_TEST[split])
    return [], list(CROSS_DOMAIN_TEST)
