"""Optimizer groups and learning rate of the published training."""

from __future__ import annotations

from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from models.head import Head

POWER = 0.9


def polynomial_factor(iteration: int, max_iter: int, power: float = POWER) -> float:
    """Factor on the learning rate before iteration `iteration` (from 0) of `max_iter`: (1 - i / max_iter) ** power."""
    return max(0.0, 1 - iteration / max_iter) ** power


def build_optimizer(
    head: Head, learning_rate: float, lr_multiple: float, weight_decay: float
) -> AdamW:
    """AdamW (0.9, 0.999): the transformer at `learning_rate`, all else of the head at `lr_multiple` times that."""
    transformer = list(head.transformer.parameters())
    chosen = {id(p) for p in transformer}
    others = [p for p in head.parameters() if id(p) not in chosen]
    groups = [
        {"params": transformer, "lr": learning_rate},
        {"params": others, "lr": learning_rate * lr_multiple},
    ]
    return AdamW(groups, betas=(0.9, 0.999), weight_decay=weight_decay)


def build_schedule(optimizer: AdamW, max_iter: int, polynomial: bool, done: int = 0) -> LambdaLR:
    """Polynomial decay per iteration, or a constant rate, after so many iterations."""
    return LambdaLR(
        optimizer,
        lambda i: polynomial_factor(i, max_iter) if polynomial else 1.0,
        last_epoch=done - 1,
    )
