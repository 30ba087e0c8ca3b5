"""Names of the published checkpoint, translated to ours."""

from __future__ import annotations

import re

from torch import Tensor

from utils.errors import WeightsError

_TRANSFORMER = r"feature_recorrect\.query_semantic_transformer\.mix_transformer\."
RENAMES = [
    (
        r"^(?:module\.|model\.|_orig_mod\.)+",
        "",
    ),  # of DistributedDataParallel, Lightning, torch.compile
    (
        rf"^{_TRANSFORMER}sa_layers\.(\d+)\.attn\.attn\.linear_q\.",
        r"head.transformer.\1.attention.query.",
    ),
    (
        rf"^{_TRANSFORMER}sa_layers\.(\d+)\.attn\.attn\.linear_k\.",
        r"head.transformer.\1.attention.key.",
    ),
    (
        rf"^{_TRANSFORMER}sa_layers\.(\d+)\.attn\.attn\.linear_v\.",
        r"head.transformer.\1.attention.value.",
    ),
    (
        rf"^{_TRANSFORMER}sa_layers\.(\d+)\.attn\.attn\.linear_o\.",
        r"head.transformer.\1.attention.out.",
    ),
    (rf"^{_TRANSFORMER}sa_layers\.(\d+)\.ffn\.layers\.", r"head.transformer.\1.feed_forward."),
    (rf"^{_TRANSFORMER}sa_layers\.(\d+)\.", r"head.transformer.\1."),
    (rf"^{_TRANSFORMER}support_prototype\.", "head.support_prototype."),
    (r"^feature_recorrect\.down_query\.", "head.query_reduce."),
    (r"^feature_recorrect\.down_supp\.", "head.support_reduce."),
    (r"^feature_recorrect\.down_supp_semantic\.", "head.prototype_reduce."),
    (r"^feature_recorrect\.supp_merge_semantic\.", "head.support_mix."),
    (r"^feature_recorrect\.query_merge_semantic\.", "head.query_mix."),
    (r"^feature_recorrect\.cls_semantic\.", "head.classifier."),
]


def our_name(published: str) -> str:
    """Our name of a published parameter; a name of ours is returned as it is."""
    for pattern, replacement in RENAMES:
        published = re.sub(pattern, replacement, published)
    return published


def head_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The head's part of a checkpoint, published or ours, under the names of `models.head.Head`.

    Published names are accepted with or without `module.` and with or without the `backbone.`
    entries, which are left
    out: the frozen backbone has its own file.

    Raises:
        WeightsError: two names stand for one parameter.
    """
    renamed: dict[str, Tensor] = {}
    given: dict[str, str] = {}
    for name, value in state.items():
        ours = our_name(name)
        if ours.startswith("head.") and ours in renamed:
            raise WeightsError(
                f"{given[ours]} and {name} are one parameter of the head; keep one copy of it in "
                "the file"
            )
        renamed[ours], given[ours] = value, name
    return {
        name.removeprefix("head."): value
        for name, value in renamed.items()
        if name.startswith("head.")
    }
