"""The data sets by DATASET.name; a new one is a module here and a line in READERS.

A reader is a module with a `kind` and the functions that jobs of that kind call. `key` is the
setting that holds root, which errors name.

- "episodes": `read_object(root, object, key)`, the samples of one object and a line for each kind
  of thing that was left out; `source_files(root, object, key)`, whose change makes a saved index
  stale; `normal_images(root, object, key)`, without defect, sorted; `has_object(root, object)`.
- "anomaly": `objects`, all names, and `read_object(root, name, key)`, an `AnomalyObject`.
- "open_domain": `read_open_domain(root, object, key)`.
"""

from __future__ import annotations

from types import ModuleType

from datasets.readers import ds_spectrum, mvtec, open_domain, visa, vision_v1
from datasets.splits import NATIVE_SUFFIX
from method_config.values import hint
from utils.errors import ConfigError

READERS: dict[str, ModuleType] = {
    "VISION_V1": vision_v1,
    "DS_Spectrum": ds_spectrum,
    "DS_Spectrum_DS": ds_spectrum,  # the objects of a cross-domain test
    "mvtec": mvtec,
    "visa": visa,
    "opendomain_test_dataset": open_domain,
}


def reader_of(name: str) -> ModuleType:
    """The reader of a data set by DATASET.name, with or without _ND; ConfigError if unknown."""
    if reader := READERS.get(name.removesuffix(NATIVE_SUFFIX)):
        return reader
    expected = f"one of {', '.join(READERS)}, each also with {NATIVE_SUFFIX}"
    near = hint(name, [*READERS, *(known + NATIVE_SUFFIX for known in READERS)], "")
    raise ConfigError(f"DATASET.name is {name!r:.200}, expected {expected}. {near}".strip())
