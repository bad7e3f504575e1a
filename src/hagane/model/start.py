"""Initial weights: each piece on disk (an expert, a row of a stacked parameter, a matrix) is drawn by itself.

The generator of a piece is keyed by (seed, name on disk). So a rank makes only what it holds, every layout starts
from the same weights, and a member's experts start the same whoever else takes part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hagane.model.generalist import Generalist
from hagane.model.naming import Piece, pieces

INTO_RESIDUAL = (".o.weight", ".down.weight", ".experts.down", "_out.weight")
QUIET_START = 0.2
"""Layers start as small corrections of their input."""
ZERO = ("tokeniser.b_in", "tokeniser.w_next", "tower.w_out")
"""The second loss starts at the mean, the tower at the mean action."""
STD = {"tokeniser.prompts": 0.5, "tokeniser.bytes.weight": 1.0, "tower.w_in": 0.5, "tower.steps": 0.5}


def start_pieces(
    model: Generalist,
    seed: int,
    names: tuple[str, ...],
    wanted: Callable[[Piece], bool] = lambda piece: True,
) -> Iterator[tuple[Piece, Tensor]]:
    """Initial values of the pieces of some parameters, one after another, float32 on the CPU.

    Args:
        model: gives whole shapes; it may be on the meta device.
        seed: of the run.
        names: parameters in memory.
        wanted: says which pieces to make.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    widths = {s.index: max(1, s.width) for layout in model.layouts for s in layout.slots}
    for piece in pieces(model, names):
        if not wanted(piece):
            continue
        shape = shapes[piece.stacked] if piece.row < 0 else shapes[piece.stacked][1:]
        yield piece, start_piece(piece, shape, seed, widths.get(piece.row, 1))


def start_piece(piece: Piece, shape: tuple[int, ...], seed: int, slot_width: int) -> Tensor:
    """Initial values of one piece.

    Args:
        piece: which.
        shape: its whole shape.
        seed: of the run.
        slot_width: numbers that enter a token of its slot; its row starts at that scale, not at the widest's.
    """
    name = piece.stacked
    if name.endswith(".gain"):
        return torch.ones(shape)
    if name.endswith(".bias") or name in ZERO:
        return torch.zeros(shape)
    std = STD.get(name) or fan_in(name, shape, slot_width) ** -0.5
    if name.endswith(INTO_RESIDUAL):
        std *= QUIET_START
    key = hashlib.sha256(f"{seed}/{piece.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
    return torch.randn(shape, generator=generator) * std


def fan_in(name: str, shape: tuple[int, ...], slot_width: int) -> int:
    """Numbers that one output of a piece adds up: columns of a linear layer, rows of an expert."""
    if name == "tokeniser.w_in":
        return slot_width
    return shape[0] if name.endswith((".experts.up", ".experts.down")) else shape[-1]


@torch.no_grad()
def reset_parameters(model: Generalist, seed: int) -> None:
    """Start a whole model from a seed, in place."""
    parameters = dict(model.named_parameters())
    for piece, values in start_pieces(model, seed, tuple(parameters)):
        target = parameters[piece.stacked]
        (target if piece.row < 0 else target[piece.row]).copy_(values)
