"""Which objects train and which test, as published."""

from __future__ import annotations

from utils.errors import ConfigError

NATIVE_SUFFIX = "_ND"  # small defects at native resolution: same data, so same objects


def _names(*lines: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(line.split()) for line in lines)


VISION_V1_TEST = _names(
    "PCB_1 Hemisphere Wood Ring Cable",
    "Casting Capacitor PCB_2 Electronics Console",
    "Groove Lens Screw Cylinder",
)
# The order is that of the published lists: it decides what a seed draws.
VISION_V1_TRAIN = _names(
    "Console Casting Groove Capacitor PCB_2 Screw Cylinder Electronics Lens",
    "PCB_1 Groove Cable Hemisphere Screw Cylinder Wood Ring Lens",
    "Console PCB_1 Casting Cable Hemisphere Capacitor PCB_2 Wood Electronics Ring",
)
DS_SPECTRUM_TEST = _names(
    "Screw_VISION Ring_VISION Capacitor_VISION toothbrush grid cable metal_nut tile",
    "Wood_VISION Console_VISION pill leather carpet hazelnut transistor",
    "Groove_VISION DS-DAGM capsule screw wood zipper DS-Cotton-Fabric bottle",
)
(CROSS_DOMAIN_TEST,) = _names(
    "pill leather carpet hazelnut transistor DS-DAGM capsule screw wood zipper DS-Cotton-Fabric "
    "toothbrush grid cable metal_nut tile bottle"
)


def split_objects(name: str, split: int) -> tuple[list[str], list[str]]:
    """Objects (train, test) by DATASET.name, with or without _ND, and DATASET.split (0 to 2).

    DS_Spectrum_DS tests a model that was trained on VISION V1: it has no training objects, and the
    same test objects in every split. Raises ConfigError for what was not published.
    """
    if split not in range(3):
        raise ConfigError(f"DATASET.split is {split!r}; expected 0, 1 or 2")
    match name.removesuffix(NATIVE_SUFFIX):
        case "VISION_V1":
            return list(VISION_V1_TRAIN[split]), list(VISION_V1_TEST[split])
        case "DS_Spectrum":
            others = [group for other, group in enumerate(DS_SPECTRUM_TEST) if other != split]
            return [name for group in others for name in group], list(DS_SPECTRUM_TEST[split])
        case "DS_Spectrum_DS":
            return [], list(CROSS_DOMAIN_TEST)
    remedy = "name the objects in DATASET.train_objects and DATASET.test_objects"
    raise ConfigError(f"DATASET.name {name!r} has no published split; {remedy}")
