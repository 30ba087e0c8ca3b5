"""Keys that are accepted though they are not in the tree, and keys that were replaced."""

from __future__ import annotations

# ## Accepted without effect

# Published YAML files have these keys, which change nothing: key -> default, which gives the type.
WITHOUT_EFFECT = {
    "DATASET.transform_length_width_ratio": True,  # without effect in the published code, too
    "DATASET.unified_mask_size": 4000,  # masks need no common size
    "TEST.enable": False,  # test.py tests
    "TEST.semantic_threshold": 0.6,  # threshold of another method
    "TRAIN.enable": True,  # train.py trains
    "TRAIN_SETUPS.optimizer_momentum": 0.9,  # AdamW has none
}
# Keys of earlier versions -> what took their place.
_PROTOCOL = "TEST.protocol (ours or published) took its place."
REPLACED = dict.fromkeys(("TRAIN.SOFS.empty_supports", "TEST.merge", "TEST.query_scale"), _PROTOCOL)
