"""xformers attention for timm vision transformers: an option on CUDA; scaled dot product attention is the default."""

from __future__ import annotations

from torch import Tensor, nn

from utils.errors import ConfigError


class XformersAttention(nn.Module):
    """A timm attention block that computes with `xformers.ops.memory_efficient_attention`.

    It shares the projections of the block it replaces, so parameter names and values stay the same.
    """

    def __init__(self, attention: nn.Module, operator: object) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.num_heads = attention.num_heads
        self.operator = operator

    def forward(self, x: Tensor, **_: object) -> Tensor:
        """Attend: (B, N, C) tokens to (B, N, C) tokens."""
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).unbind(2)
        return self.proj(self.operator(q, k, v).reshape(b, n, c))


def use_xformers(model: nn.Module) -> None:
    """Replace the attention of every block of a timm vision transformer, in place.

    Raises:
        ConfigError: xformers is not installed, or the model is no vision transformer.
    """
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise ConfigError(
            "TRAIN.attention: xformers is not installed; run `pip install xformers` on a machine with CUDA, "
            "or set TRAIN.attention to sdpa"
        ) from error
    if not hasattr(model, "blocks") or not hasattr(model.blocks[0], "attn"):
        raise ConfigError("TRAIN.attention: xformers needs a vision transformer; set TRAIN.attention to sdpa")
    for block in model.blocks:
        block.attn = XformersAttention(block.attn, memory_efficient_attention)
