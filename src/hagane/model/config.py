"""ModelConfig: everything that fixes the shape of the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hagane.model.sizes import CONSORTIUM, Size, size_named, split_experts
from hagane.terms import ConfigError, Embodiment

Head = Literal["flow", "l1"]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a generalist; saved with every checkpoint.

    Raises:
        ConfigError: no embodiment, two of one name, experts that do not add up to the size's, or an owner whose name
            cannot be that of a file.
    """

    size: str
    """1m, 4m, 40m, 400m, 4b, 40b, 400b or 1t."""
    embodiments: tuple[Embodiment, ...]
    """Machines that the weights know, in the order of their rows."""
    experts: Mapping[str, int]
    """Routed experts of each owner in every layer; see `make_config` for the default split."""
    head: Head = "flow"
    """flow (flow matching) or l1 (one parallel pass, for the edge)."""
    euler_steps: int = 5
    """Integration steps of the flow head."""
    patch: int = 16
    """Side of an image patch, pixels."""

    def __post_init__(self) -> None:
        names = [e.name for e in self.embodiments]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"a model needs embodiments with different names, not {names}")
        total = sum(self.experts.values())
        if total != self.widths.experts or any(n < 0 for n in self.experts.values()):
            raise ConfigError(f"owners' experts add up to {total}; size {self.size} has {self.widths.experts} a layer")
        if odd := sorted(owner for owner in self.experts if not re.fullmatch(r"[\w-]+", owner)):
            # files of weights carry their owner's name, up to the first dot
            raise ConfigError(f"owner {odd[0]!r} cannot be a file's name", next_step="use letters, digits, - and _")
        for e in self.embodiments:
            if not any(self.experts.get(owner, 0) for owner in e.permitted_owners):
                raise ConfigError(f"embodiment {e.name!r} is permitted no expert", next_step="give its owner one")

    @property
    def widths(self) -> Size:
        """The widths that the size stands for."""
        return size_named(self.size)

    @property
    def horizon(self) -> int:
        """H: the longest chunk of any embodiment."""
        return max(e.horizon for e in self.embodiments)

    @property
    def action_width(self) -> int:
        """A: the widest action of any embodiment."""
        return max(e.action_width for e in self.embodiments)

    def expert_owners(self) -> tuple[str, ...]:
        """Owner of each expert index: the consortium first, then the members by name."""
        order = sorted(self.experts, key=lambda owner: (owner != CONSORTIUM, owner))
        return tuple(owner for owner in order for _ in range(self.experts[owner]))

    def index(self, embodiment: str) -> int:
        """Row of an embodiment.

        Raises:
            ConfigError: the weights were not made for it.
        """
        for i, e in enumerate(self.embodiments):
            if e.name == embodiment:
                return i
        known = ", ".join(e.name for e in self.embodiments)
        raise ConfigError(f"this model does not know the embodiment {embodiment!r}", next_step=f"it knows: {known}")


def make_config(size: str, embodiments: tuple[Embodiment, ...], *, head: Head = "flow") -> ModelConfig:
    """A config with experts in equal shares for the embodiments' owners (see `split_experts`)."""
    ordered = tuple(sorted(embodiments, key=lambda e: e.name))
    owners = tuple({owner for e in ordered for owner in e.permitted_owners})
    return ModelConfig(size, ordered, split_experts(size_named(size).experts, owners), head)
