"""Attention of the vision transformers and of the head: which kernel computes it where.

Shapes: B images, H heads, N tokens, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import ConfigError

HALF = (torch.bfloat16, torch.float16)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot product attention, three times (B, H, N, D) to (B, H, N, D).

    torch's kernel, but for half precision on a CPU without matrix units, where that kernel runs at a third of the speed
    of plain products: there head by head.
    """
    if (
        q.device.type == "cpu"
        and q.dtype in HALF
        and not torch.is_grad_enabled()
        and not _torch_is_fast()
    ):
        return attend_by_head(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def attend_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by two plain products per head, whose scores (N, N) stay in the cache.

    The scores are rounded to the type of q. The mean key is taken off before: it adds the same to all scores of a
    query, which the softmax does not see, and what is left is smaller and loses less (SageAttention, arXiv 2410.02367).
    """
    b, h, n, d = q.shape
    q, k = q * d**-0.5, k - k.mean(-2, keepdim=True)
    out = torch.empty(b, n, h, d, dtype=q.dtype).transpose(1, 2)
    for image in range(b):
        for head in range(h):
            out[image, head] = (q[image, head] @ k[image, head].T).softmax(-1) @ v[image, head]
    return out


class ViTAttention(nn.Module):
    """The attention of a timm block, computed by another kernel.

    It shares the projections of the block it replaces, so parameter names and values stay the same.

    Args:
        attention: timm's.
        kernel: three times (B, H, N, D) to (B, H, N, D).
    """

    def __init__(
        self, attention: Attention, kernel: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.q_norm, self.k_norm, self.norm = attention.q_norm, attention.k_norm, attention.norm
        self.num_heads = attention.num_heads
        self.kernel = kernel

    def forward(self, x: Tensor, **_: object) -> Tensor:
        """Attend: (B, N, C) tokens to (B, N, C) tokens."""
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        return self.proj(
            self.norm(self.kernel(self.q_norm(q), self.k_norm(k), v).transpose(1, 2).flatten(2))
        )


def use_kernel(model: nn.Module, kernel: Callable[[Tensor, Tensor, Tensor], Tensor]) -> int:
    """Have every plain attention of a timm model computed by a kernel, in place; how many there were."""
    blocks = [b for b in getattr(model, "blocks", []) if _is_plain(getattr(b, "attn", None))]
    for block in blocks:
        block.attn = ViTAttention(block.attn, kernel)
    return len(blocks)


def use_xformers(model: nn.Module) -> None:
    """Have the attention of a timm vision transformer computed by xformers, in place.

    Raises:
        ConfigError: xformers is not installed, or the model is no plain vision transformer.
    """
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise ConfigError(
            "TRAIN.attention: xformers is not installed; run `pip install xformers` on a machine with CUDA, "
            "or set TRAIN.attention to sdpa"
        ) from error
    if not use_kernel(model, by_token(memory_efficient_attention)):
        raise ConfigError(
            "TRAIN.attention: xformers needs a plain vision transformer; set TRAIN.attention to sdpa"
        )


def by_token(
    operator: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A kernel out of an operator in the layout (B, N, H, D), which is that of xformers."""
    return lambda q, k, v: operator(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)


def _is_plain(attention: nn.Module | None) -> bool:
    return type(attention) is Attention and attention.gate is None


def _torch_is_fast() -> bool:
    """Whether torch's kernel has matrix units to run on, or is being traced by the compiler."""
    return torch.compiler.is_compiling() or bool(torch.cpu.get_capabilities().get("amx_bf16"))
