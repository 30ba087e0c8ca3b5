"""Relation: a small trained head on relation maps and pixels, on a frozen backbone."""

from __future__ import annotations

import torch
from torch import Tensor
from yacs.config import CfgNode

from models import relations
from models.backbone import Backbone
from models.comparison import Comparison
from models.memory import comparison_type, label
from models.methods import Method
from models.priors import upsample
from models.relation_head import RelationHead

FLIPS = ((), (-1,), (-2,), (-2, -1))  # axes


class Relation(Method):
    """Corrects the contrast of `models.relations` and draws its outline by the pixels.

    What it keeps of the supports: `pixels` (B, K, 2, P + 1), `RelationHead.pixel_sums` of each view
    times how often it was given.
    """

    name = "relation"
    needs_training = True
    needs_images = True

    def __init__(self, backbone: Backbone, head: RelationHead) -> None:
        super().__init__(backbone)
        self.head = head

    @classmethod
    def from_config(cls, cfg: CfgNode, backbone: Backbone) -> Relation:
        """With a random head for the layers of the backbone."""
        return cls(backbone, RelationHead(relations.count(len(backbone.layers))))

    def encode(
        self, features: list[Tensor], share: Tensor, counts: Tensor | None = None,
        images: Tensor | None = None, masks: Tensor | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        sums = self.head.pixel_sums(images, masks).unflatten(0, share.shape[:2])
        return {"pixels": sums if counts is None else sums * counts[..., None, None]}

    def episode_logits(
        self, query: list[Tensor], supports: list[Tensor], support_masks: Tensor, *,
        images: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """Log-odds (B, S / 2, S / 2) of a training batch, flipped at random: the maps of a flipped
        window are nearly those of the window, flipped."""
        share, (own, views) = self.shares(support_masks), images
        given = views.flatten(1).any(1).view(share.shape[:2])  # blank views fill up
        maps = []
        for i, rows in enumerate(given):
            some = [layer.unflatten(0, given.shape)[i, rows] for layer in supports]
            memory = label(some, share[i, rows].unsqueeze(0)).in_type(comparison_type(share.device))
            maps.append(Comparison([layer[i : i + 1] for layer in query], memory).relations)
        kept = self.encode(supports, share, given.float(), views, support_masks.flatten(0, 1))
        axes = FLIPS[int(torch.randint(len(FLIPS), ()))]
        sums = kept["pixels"].sum(1)
        return self.head(torch.cat(maps).flip(axes), own.flip(axes), sums).flip(axes)

    def answer(self, compared: Comparison, size: tuple[int, int]) -> Tensor:
        """Probability of defect; without a marked token the largest abnormal prior."""
        if not compared.memory.is_marked:
            return upsample(compared.anomaly, size)
        sums = compared.memory.extras[self.name]["pixels"].sum(1)
        logits = self.head(compared.relations, compared.images, sums)
        return upsample(logits.float(), size).sigmoid()
