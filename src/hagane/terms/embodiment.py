"""Embodiment: what one kind of machine observes, does, and how fast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from hagane.terms.channel import Channel
from hagane.terms.errors import ConfigError

Domain = Literal["robot", "vehicle", "plant", "game"]
DOMAINS: tuple[str, ...] = get_args(Domain)
Convention = Literal["absolute", "delta", "rate"]


@dataclass(frozen=True)
class Embodiment:
    """A kind of machine: its observed channels, its action channels, its clock.

    Actions are the action channels' columns side by side, in file order: A = `action_width`.

    Raises:
        ConfigError: no action channel, two channels of one name, an unknown domain, a rate that is not positive.
    """

    name: str
    """Name, unique in a catalog: "arm", "line-3"."""
    domain: Domain
    """robot, vehicle, plant or game."""
    owner: str
    """The member that owns the machine, its adapters and its experts."""
    rate_hz: float
    """Control rate: one action every 1 / rate_hz seconds."""
    horizon: int
    """Actions in a chunk (H)."""
    observe: tuple[Channel, ...]
    """Channels the model sees."""
    act: tuple[Channel, ...]
    """Channels the model commands; vectors only."""
    execute: int = 0
    """Actions of a chunk carried out before the next is asked for; 0 means half the horizon."""
    convention: Convention = "absolute"
    """Whether an action is a target, a difference from the present state, or a rate of change."""
    experts: tuple[str, ...] = ()
    """Owners whose experts may serve this machine beside the consortium's; empty means its own owner only."""

    def __post_init__(self) -> None:
        where = f"embodiment {self.name!r}"
        if self.domain not in DOMAINS:
            raise ConfigError(
                f"unknown domain {self.domain!r}", where=where, next_step=f"use one of {', '.join(DOMAINS)}"
            )
        if not self.act or any(c.kind != "vector" for c in self.act):
            raise ConfigError("needs at least one action channel, all of kind vector", where=where)
        if not self.observe:
            raise ConfigError("needs at least one observed channel", where=where)
        names = [c.name for c in self.channels()]
        if len(set(names)) < len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            raise ConfigError(f"channel names used twice: {', '.join(twice)}", where=where)
        if not self.rate_hz > 0 or self.horizon < 1:
            raise ConfigError("rate_hz and horizon must be positive", where=where)
        if not 0 <= self.execute <= self.horizon:
            raise ConfigError(f"execute must be between 0 and the horizon {self.horizon}", where=where)

    def channels(self) -> Iterator[Channel]:
        """Observed channels, then action channels."""
        yield from self.observe
        yield from self.act

    def channel(self, name: str) -> Channel:
        """The channel of that name.

        Raises:
            ConfigError: there is none.
        """
        for c in self.channels():
            if c.name == name:
                return c
        raise ConfigError(f"no channel {name!r}", where=f"embodiment {self.name!r}")

    @property
    def action_width(self) -> int:
        """A: columns of one action."""
        return sum(c.columns for c in self.act)

    @property
    def step_ns(self) -> int:
        """Nanoseconds between two actions."""
        return round(1e9 / self.rate_hz)

    @property
    def execute_steps(self) -> int:
        """Actions carried out before the next chunk is asked for."""
        return self.execute or max(1, self.horizon // 2)

    @property
    def permitted_owners(self) -> tuple[str, ...]:
        """Owners whose routed experts this machine's tokens may reach (the consortium's always)."""
        return ("consortium", *(self.experts or (self.owner,)))
