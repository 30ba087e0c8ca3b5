"""The trained part of the method `relation`: from relation maps and pixels to mask logits.

Shapes: B windows of S x S pixels, h x w tokens, R relation maps, P channels of a pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.relations import CONTRAST

TOKEN_WIDTH, PIXEL_WIDTH, FINE_WIDTH = 48, 32, 16  # channels at token, quarter and half resolution
SCALE, OFFSET = 8.0, -1.0  # first values of the learned factor of the contrast, and of its border


def _block(inputs: int, width: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, width, 3, stride, dilation, dilation, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(4, width), nn.GELU())


class RelationHead(nn.Module):
    """Corrects the contrast of tokens, and draws the outline by the pixels.

    Tokens: three 3 x 3 convolutions over the relation maps, and what they say of the whole window.
    Pixels: a small stem sees the window at half and at quarter resolution; pixels are compared with
    the mean marked and the mean unmarked pixel of the supports, in the stem's channels; the answer
    of the tokens is brought to quarter, then to half resolution beside them.

    Args:
        maps: number R of relation maps.
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.tokens = nn.Sequential(
            _block(maps, TOKEN_WIDTH),
            _block(TOKEN_WIDTH, TOKEN_WIDTH),
            _block(TOKEN_WIDTH, TOKEN_WIDTH, dilation=2),
        )
        self.context = nn.Linear(2 * TOKEN_WIDTH, TOKEN_WIDTH)
        self.dropout = nn.Dropout2d(0.1)
        self.token_logit = nn.Conv2d(TOKEN_WIDTH, 1, 1)
        self.scale = nn.Parameter(torch.tensor(SCALE))
        self.offset = nn.Parameter(torch.tensor(OFFSET))
        first = nn.Conv2d(3, FINE_WIDTH, 3, stride=2, padding=1)
        self.fine = nn.Sequential(first, nn.GELU(), _block(FINE_WIDTH, FINE_WIDTH))
        half = _block(FINE_WIDTH, PIXEL_WIDTH, stride=2)
        self.coarse = nn.Sequential(half, _block(PIXEL_WIDTH, PIXEL_WIDTH))
        self.token_mix = nn.Conv2d(TOKEN_WIDTH, PIXEL_WIDTH, 1)
        joined = _block(2 * PIXEL_WIDTH + 3, PIXEL_WIDTH)
        self.quarter_stage = nn.Sequential(joined, _block(PIXEL_WIDTH, PIXEL_WIDTH))
        self.half_stage = _block(PIXEL_WIDTH + FINE_WIDTH, FINE_WIDTH)
        self.logit = nn.Conv2d(FINE_WIDTH, 1, 1)

    def pixel_sums(self, images: Tensor, masks: Tensor) -> Tensor:
        """Of support views (V, 3, S, S) with masks (V, S, S) the sum over marked and the sum over
        unmarked pixels of their unit vectors in the stem, and how many these are: (V, 2, P + 1)."""
        pixels = F.normalize(self.coarse(self.fine(images)).float(), dim=1)
        share = F.adaptive_avg_pool2d(masks.unsqueeze(1).float(), pixels.shape[-2:])
        weights = torch.cat([share, 1 - share], dim=1)
        sums = torch.einsum("vphw,vkhw->vkp", pixels, weights)
        return torch.cat([sums, weights.sum((-2, -1)).unsqueeze(-1)], dim=-1)

    def forward(self, maps: Tensor, images: Tensor, sums: Tensor) -> Tensor:
        """Log-odds of defect (B, S / 2, S / 2), the half rounded up.

        Args:
            maps: (B, R, h, w) of `models.relations`.
            images: (B, 3, S, S) float32, the network inputs.
            sums: (B or 1, 2, P + 1), `pixel_sums` added over the views of the supports.
        """
        tokens = self.tokens(maps)
        pooled = torch.cat([tokens.mean((-2, -1)), tokens.amax((-2, -1))], dim=1)
        tokens = self.dropout(tokens + self.context(pooled)[..., None, None])
        contrast = maps[:, CONTRAST].unsqueeze(1)
        logits = self.token_logit(tokens) + self.scale * contrast + self.offset

        fine = self.fine(images)
        coarse = self.coarse(fine)
        means = F.normalize(sums[..., :-1] / sums[..., -1:].clamp(min=1), dim=-1)
        alike = torch.einsum("bphw,bkp->bkhw", F.normalize(coarse.float(), dim=1),
                             means.expand(len(coarse), -1, -1))  # fmt: skip
        size = coarse.shape[-2:]
        joined = [coarse, _resized(self.token_mix(tokens), size), alike, _resized(logits, size)]
        quarter = self.quarter_stage(torch.cat(joined, dim=1))
        half = self.half_stage(torch.cat([_resized(quarter, fine.shape[-2:]), fine], dim=1))
        return (self.logit(half) + _resized(logits, fine.shape[-2:])).squeeze(1)


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
