"""The method without training: a pixel is defect where it looks more like the marked tokens than like the others, or,
where nothing is marked, as far as it looks like none of them."""

from __future__ import annotations

from torch import Tensor, nn

from models.backbone import Backbone
from models.comparison import Comparison
from models.priors import downsample_mask, upsample
from models.support_tokens import SupportTokens, label, ready


class PriorMethod(nn.Module):
    """Nearest labelled token, the baseline of every evaluation.

    Args:
        backbone: frozen features.
    """

    needs_joint = True

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def shares(self, masks: Tensor) -> Tensor:
        """Share of marked pixels per token: masks (..., H, W) {0, 1} to (..., h, w)."""
        return downsample_mask(masks, self.backbone.stride)

    def encode_support(self, images: Tensor, masks: Tensor) -> SupportTokens:
        """Encode one set of supports: images (1, K, 3, H, W) float, masks (1, K, H, W) {0, 1}."""
        return ready(label(self.backbone(images.flatten(0, 1)), self.shares(masks)), joint=True)

    def segment(self, windows: Tensor, known: SupportTokens) -> Tensor:
        """Segment windows (B, 3, H, W); see `answer`."""
        return self.answer(Comparison(self.backbone(windows), known), None, windows.shape[-2:])

    def answer(self, compared: Comparison, summary: None, size: tuple[int, int]) -> Tensor:
        """Score windows that are compared with the supports; there is no summary of them.

        Returns:
            (B, *size) float32 in [0, 1], over 0.5 where the best cosine to the foreground exceeds that to the
            background: 0.5 + difference / 4. Without any marked token the largest abnormal prior.
        """
        if not compared.known.is_marked:
            return upsample(compared.anomaly, size)
        return 0.5 + upsample(compared.gap, size) / 4
