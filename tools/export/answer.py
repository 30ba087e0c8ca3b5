"""Comparison and head as an ONNX graph: features of windows and a memory in, scores out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from models.comparison import Comparison
from models.memory import Memory
from models.methods import Method
from models.runtime import onnx_model, write_model
from models.similarity import Keys

OUTPUT = "score"


def graph_memory(memory: Memory, method: Method) -> dict[str, Tensor]:
    """A memory of one scale as the inputs of the graph, all float32 but `foreground_view`, int64,
    and `covered`, bool; of L layers, F foreground, M background tokens and K views:

    - `foreground.l` (1, F, C_l), `background.l` (1, M, C_l), `mean.l` (1, 1, C_l), `share` (1, F),
      `covered` (1, K): those of `models.memory.Memory`; `foreground_view` (F,): that of each token.
    - `joint_foreground` (1, T, C), `joint_background` (1, M, C), `prototype` (1, 1, C), `middle`
      (1,), `probe` (1, 1, C), `border` (1,): over all layers, see there.
    - `normal.n.l` (1, N, C_l), `joint_normal.n` (1, N, C): of each normal image.
    - `extras.name`: what the method keeps beside the tokens.
    """
    sizes = torch.tensor(memory.sizes)
    foreground, background, *normal = memory.joint_keys
    named: dict[str, Tensor] = {
        "share": memory.share, "covered": memory.covered, "joint_foreground": foreground.tokens,
        "joint_background": background.tokens, "prototype": memory.prototypes[0],
        "middle": memory.middle, "probe": memory.probe[0], "border": memory.probe[1],
        "foreground_view": torch.arange(len(sizes)).repeat_interleave(sizes),
    }  # fmt: skip
    for part in ("foreground", "background", "mean"):
        named |= {f"{part}.{i}": layer for i, layer in enumerate(getattr(memory, part))}
    for n, (image, joint) in enumerate(zip(memory.normal, normal, strict=True)):
        named |= {f"normal.{n}.{i}": layer for i, layer in enumerate(image)}
        named[f"joint_normal.{n}"] = joint.tokens
    named |= {f"extras.{n}": value for n, value in memory.extras.get(method.name, {}).items()}
    return {n: v.float() if v.is_floating_point() else v for n, v in named.items()}


class AnswerGraph(nn.Module):
    """A method's answer to windows of a side of `size` pixels, by a memory of `graph_memory`."""

    def __init__(self, method: Method, size: int) -> None:
        super().__init__()
        self.method, self.size = method, size

    def forward(self, features: Sequence[Tensor], memory: dict[str, Tensor]) -> Tensor:
        """Per layer (B, h, w, C_l), as the exported encoder gives them, to scores (B, S, S)."""
        layers, images = range(len(features)), sum(name.startswith("joint_n") for name in memory)
        parts = {part: [memory[f"{part}.{i}"] for i in layers]
                 for part in ("foreground", "background", "mean")}  # fmt: skip
        normal = [[memory[f"normal.{n}.{i}"] for i in layers] for n in range(images)]
        extras = {n.removeprefix("extras."): v for n, v in memory.items() if n.startswith("extras")}
        known = Memory(
            **parts, share=memory["share"], sizes=[], covered=memory["covered"],
            views=memory["share"].new_ones(1, 1, 1), normal=normal,
            extras={self.method.name: extras},
        )  # fmt: skip
        joint = ["joint_foreground", "joint_background"]
        joint += [f"joint_normal.{n}" for n in range(images)]
        prepared = {  # in place of what the properties of these names compute
            "is_marked": True, "joint_keys": [Keys(memory[name]) for name in joint],
            "prototypes": (memory["prototype"], None), "middle": memory["middle"],
            "probe": (memory["probe"], memory["border"]),
        }  # fmt: skip
        vars(known).update(prepared)
        maps = self.method.backbone.without_position([m.movedim(-1, 1) for m in features])
        compared = _AnyViews(maps, known, memory["foreground_view"])
        return self.method.answer(compared, (self.size, self.size))


class _AnyViews(Comparison):
    """A comparison with a memory of any number of views; `view` is that of each token."""

    def __init__(self, features: list[Tensor], memory: Memory, view: Tensor) -> None:
        super().__init__(features, memory)
        self.view = view

    def by_view(self, values: Tensor) -> Tensor:
        shape = (*values.shape[:2], self.memory.covered.shape[1])
        least = values.new_full(shape, -2.0)  # below any cosine
        return least.scatter_reduce(-1, self.view.expand(values.shape), values, "amax")


def write_answer(
    method: Method, memory: Memory, grid: tuple[int, int], size: int, path: Path
) -> list[str]:
    """Write the graph of a method on the CPU as ONNX, for memories with as many normal images as
    this one, which must have two or more of all else, of which there may be any number; returns
    the names of the inputs that it needs, features first."""
    backbone, example = method.backbone, graph_memory(memory, method)
    features = [torch.zeros(2, *grid, count) for count in backbone.channels]
    shapes = {n: {1: Dim.AUTO} if v.shape[1:2] > (1,) else {} for n, v in example.items()}
    shapes["foreground_view"] = {0: Dim.AUTO}
    names = [f"layer_{number}" for number in backbone.layers]
    program = onnx_model(
        AnswerGraph(method, size), (features, example, {}), [*names, *example], [OUTPUT],
        {"features": [{0: Dim("batch")} for _ in features], "memory": shapes},
    )  # fmt: skip
    graph = program.graph
    used = {name for node in graph.node for name in node.input}
    for unused in [value for value in graph.input if value.name not in used]:
        graph.input.remove(unused)
    write_model(program, path)
    return [value.name for value in graph.input]
