"""Attention of the vision transformers and of the head: which kernel computes it where.

A kernel takes queries, keys and values (B, H, N, D) to (B, H, N, D): B images, H heads, N tokens, D
channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import ConfigError

HALF = (torch.bfloat16, torch.float16)
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot product attention; a kernel.

    In half precision on a CPU without units for products of bf16 matrices (AMX), torch's kernel
    runs at a third of the speed of plain products: there it is computed head by head.
    """
    exact = q.device.type != "cpu" or q.dtype not in HALF or torch.is_grad_enabled()
    if exact or torch.compiler.is_compiling() or torch.cpu.get_capabilities().get("amx_bf16"):
        return F.scaled_dot_product_attention(q, k, v)
    return attend_by_head(q, k, v)


def attend_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by two plain products per head, whose scores (N, N) stay in the cache.

    The scores are rounded to the type of q. The mean key is subtracted first: it adds the same to
    all scores of a query, which the softmax does not see, and what is left is smaller and loses
    less (SageAttention, arXiv 2410.02367).
    """
    b, h, n, d = q.shape
    q, k = q * d**-0.5, k - k.mean(-2, keepdim=True)
    out = torch.empty(b, n, h, d, dtype=q.dtype).transpose(1, 2)
    for image in range(b):
        for head in range(h):
            out[image, head] = (q[image, head] @ k[image, head].T).softmax(-1) @ v[image, head]
    return out


class ViTAttention(nn.Module):
    """The attention of a timm block by another kernel, with the same parameters and names."""

    def __init__(self, attention: Attention, kernel: Kernel) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.q_norm, self.k_norm, self.norm = attention.q_norm, attention.k_norm, attention.norm
        self.num_heads, self.kernel = attention.num_heads, kernel

    def forward(self, x: Tensor, **_: object) -> Tensor:
        """Attend: (B, N, C) tokens to (B, N, C) tokens."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = self.kernel(self.q_norm(q), self.k_norm(k), v)
        return self.proj(self.norm(attended.transpose(1, 2).flatten(2)))


def use_kernel(model: nn.Module, kernel: Kernel) -> int:
    """Compute every plain attention of a timm model by a kernel, in place; how many there are."""
    count = 0
    for block in getattr(model, "blocks", []):
        attention = getattr(block, "attn", None)
        if type(attention) is Attention and attention.gate is None:
            block.attn, count = ViTAttention(attention, kernel), count + 1
    return count


def use_xformers(model: nn.Module) -> None:
    """Compute the attention of a timm vision transformer by xformers, in place.

    ConfigError: xformers is not installed, or the model is no plain vision transformer.
    """
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise ConfigError(
            "TRAIN.attention: xformers is not installed; run `pip install xformers` on a machine "
            "with CUDA, or set TRAIN.attention to sdpa"
        ) from error
    if not use_kernel(model, by_token(memory_efficient_attention)):
        raise ConfigError("TRAIN.attention: xformers needs a plain vision transformer; set sdpa")


def by_token(operator: Kernel) -> Kernel:
    """A kernel out of an operator in the layout (B, N, H, D), which is that of xformers."""
    return lambda q, k, v: operator(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
