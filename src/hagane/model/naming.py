"""Names of weights on disk: one tensor an expert, one a row of a stacked parameter, each under its owner.

In memory experts and embodiments are rows of stacked parameters; on disk each row is a tensor of its own, so a
member's part can be taken out or left away without touching another byte.
"""

from __future__ import annotations

from dataclasses import dataclass

from hagane.model.generalist import Generalist
from hagane.model.sizes import CONSORTIUM
from hagane.terms.ownership import BY_EMBODIMENT, BY_EXPERT, BY_GATE, BY_SLOT


@dataclass(frozen=True)
class Piece:
    """A tensor on disk, and the row of the stacked parameter it is (-1: the whole)."""

    name: str
    """Name on disk."""
    owner: str
    """Member that owns it; "consortium" for the anchor."""
    stacked: str
    """Name of the parameter or buffer in memory."""
    row: int
    """Row, or -1."""


def is_stacked(name: str) -> bool:
    """Whether each row of a parameter or buffer is a piece of its own on disk."""
    return name in BY_SLOT or name in BY_EMBODIMENT or name.endswith((*BY_EXPERT, BY_GATE))


def pieces(model: Generalist, names: tuple[str, ...]) -> list[Piece]:
    """The pieces on disk of some of the model's parameters and buffers, in a canonical order."""
    config = model.config
    owners = config.expert_owners()
    slots = [(layout.embodiment, s) for layout in model.layouts for s in layout.slots]
    out: list[Piece] = []
    for name in names:
        if name in BY_SLOT:
            out += [Piece(f"{name}.{e.name}.{s.channel.name}", e.owner, name, i) for i, (e, s) in enumerate(slots)]
        elif name in BY_EMBODIMENT or name.endswith(BY_GATE):
            out += [Piece(f"{name}.{e.name}", e.owner, name, i) for i, e in enumerate(config.embodiments)]
        elif name.endswith(BY_EXPERT):
            numbers = [owners[:i].count(owner) for i, owner in enumerate(owners)]
            out += [
                Piece(f"{name}.{o}.{k:03d}", o, name, i) for i, (o, k) in enumerate(zip(owners, numbers, strict=True))
            ]
        else:
            out.append(Piece(name, CONSORTIUM, name, -1))
    return out
