"""Stages: which layers each rank of a pipeline holds, and what one stage computes.

The first stage holds what makes tokens, the last one the norm, the second loss's heads and the action tower. With
the interleaved schedule a rank has two stages, one in each half of the trunk (Narayanan et al. 2021, arXiv
2104.04473).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hagane.engine.tokens import TokenShares
from hagane.model import Generalist, LossSums, Packed, TrainSample, by_part
from hagane.model.trunk import TrunkLayer

ENTRY = ("w_in", "b_in", "prompts", "bytes", "text", "describe", "image")
"""Of the tokeniser: what makes tokens."""
EXIT = ("w_next", "image_next")
"""Of the tokeniser: what predicts from tokens."""


def stage_layers(layers: int, stages: int) -> list[range]:
    """The layers of each stage: as even as it goes; the last stage, which has the tower too, is never the larger."""
    counts = [layers // stages + (i < layers % stages) for i in range(stages)]
    starts = [sum(counts[:i]) for i in range(stages)]
    return [range(start, start + n) for start, n in zip(starts, counts, strict=True)]


def cut_stages(model: Generalist, held: tuple[int, ...], stages: int) -> None:
    """Leave only what some stages need; the rest is gone, under its name."""
    ranges = stage_layers(model.config.widths.layers, stages)
    kept = {str(i) for s in held for i in ranges[s]}
    for name in [n for n in model.trunk.layers if n not in kept]:
        del model.trunk.layers[name]
    if 0 not in held:
        drop(model.tokeniser, ENTRY)
    if stages - 1 not in held:
        drop(model.tokeniser, EXIT)
        drop(model.trunk, ("norm",))
        drop(model.tower, tuple(n for n, _ in [*model.tower.named_children(), *model.tower.named_parameters()]))


def drop(module: nn.Module, names: tuple[str, ...]) -> None:
    """Take parameters and children out of a module."""
    for name in names:
        if name in module._parameters:
            module.register_parameter(name, None)
        elif name in module._modules:
            lists = isinstance(module._modules[name], nn.ModuleList)
            module._modules[name] = nn.ModuleList() if lists else None


@dataclass(eq=False)
class Work:
    """What the stages of a rank need of the microbatches that run, beside the tokens that travel."""

    micros: list[list[TrainSample]] = field(default_factory=list)
    """Samples of each microbatch; all ranks of a pipeline have the same."""
    packed: list[Packed] = field(default_factory=list)
    """Where their tokens lie."""
    pick: slice = field(default_factory=lambda: slice(None))
    """Samples whose losses are this rank's."""
    rows: int = 0
    """Rows of the tensors that travel: the largest microbatch's tokens."""


class Stage(nn.Module):
    """One stage of a pipeline: tokens of one microbatch in, tokens (or each part's loss sums) out."""

    def __init__(self, model: Generalist, index: int, stages: int, work: Work, shares: TokenShares) -> None:
        super().__init__()
        self.index, self.is_first, self.is_last = index, index == 0, index == stages - 1
        held = stage_layers(model.config.widths.layers, stages)[index]
        self.layers = nn.ModuleList(model.trunk.layers[str(i)] for i in held)
        # what is shared with the model is registered here too, so that FSDP finds it under this root
        self.entry = model.tokeniser if self.is_first else None
        self.exit = nn.ModuleList([model.tokeniser, model.trunk.norm, model.tower]) if self.is_last else None
        self._model, self.work, self.shares = [model], work, shares
        self.at = 0

    @property
    def model(self) -> Generalist:
        """The model that the stage is a part of (not a child: its other layers are other stages')."""
        return self._model[0]

    def forward(self, x: Tensor) -> Tensor:
        """[rows, D] to [rows, D], or [parts, 2] loss sums after the last stage.

        Called once a microbatch, in their order. The first stage ignores its argument.
        """
        micro = self.at
        self.at += 1
        packed = self.work.packed[micro]
        mine, position = self.shares.mine(packed.gate_M), self.shares.of_cp(packed.position_M)
        if self.is_first:
            x = self.shares.mine(self.model.embed([t.sample for t in self.work.micros[micro]]))
        else:
            x = x[: len(mine)]
        blocks = [layer for layer in self.layers if isinstance(layer, TrunkLayer)]
        x = self.model.trunk.through(blocks, x, position, packed.place_M, packed.mask, mine)
        if not self.is_last:
            return nn.functional.pad(x, (0, 0, 0, self.work.rows - len(x)))
        x = self.shares.whole(self.model.trunk.norm(x), len(packed.gate_M))
        sums = self.model.losses(self.work.micros[micro], by_part(x, packed.seen), packed.seen, self.work.pick)
        return as_tensor(sums)


def as_tensor(sums: list[LossSums]) -> Tensor:
    """[parts, 2] sums of the action loss and of the second loss."""
    return torch.stack([torch.stack((s.action, s.next)) for s in sums])
