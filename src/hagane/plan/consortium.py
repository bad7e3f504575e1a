"""A consortium that does not exist yet: members with machines like those they will bring, and what a rank reads.

The machines are embodiment files beside this one: their cameras, histories, agents and tags decide how long samples
are, hence how a microbatch is packed, and whose experts its tokens may reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from hagane.model import ModelConfig, split_experts
from hagane.model.sizes import size_named
from hagane.model.slots import sample_layouts
from hagane.terms import ConfigError, Embodiment, load_toml

FOLDER = Path(__file__).parent / "machines"


def machines() -> tuple[Embodiment, ...]:
    """The kinds of machine, by name."""
    return tuple(load_toml(path, Embodiment) for path in sorted(FOLDER.glob("*.toml")))


def consortium(members: int, kinds: tuple[Embodiment, ...] = ()) -> tuple[Embodiment, ...]:
    """One machine a member, the kinds in turn: "member-03" owns "car-03".

    Raises:
        ConfigError: no member.
    """
    if members < 1:
        raise ConfigError(f"a consortium needs members, not {members}")
    kinds = kinds or machines()
    made = []
    for i in range(members):
        kind = kinds[i % len(kinds)]
        made.append(replace(kind, name=f"{kind.name}-{i + 1:02d}", owner=f"member-{i + 1:02d}"))
    return tuple(sorted(made, key=lambda e: e.name))


def consortium_config(size: str, members: int = 0) -> ModelConfig:
    """A model for a consortium: 16 members from 400b up, else as many as leave each four experts, at least one.

    384 experts over 16 members are 22 each and 32 of the consortium.
    """
    experts = size_named(size).experts
    members = members or (16 if experts >= 256 else max(1, experts // 5))
    owned = consortium(members)
    return ModelConfig(size, owned, split_experts(experts, tuple(e.owner for e in owned)))


@dataclass(frozen=True)
class Reading:
    """What every rank reads in one microbatch: its samples, dealt from an even mixture of all machines."""

    samples: tuple[Mapping[int, int], ...]
    """By data rank: embodiment row to samples, every row in order, some with none."""
    lengths: tuple[int, ...]
    """Tokens of one sample, by embodiment row."""
    tokens: tuple[int, ...]
    """By data rank: tokens of the trunk."""


def deal(config: ModelConfig, data_ranks: int, tokens: int) -> Reading:
    """Deal samples to ranks, machine after machine, so that each has about so many tokens a microbatch.

    Every rank has the same number of samples, since that is what a loader deals; so ranks differ in tokens as the
    machines' samples differ in length.

    Raises:
        ConfigError: fewer tokens than one sample needs.
    """
    layouts = sample_layouts(config)
    mean = sum(layout.length for layout in layouts) / len(layouts)
    each = round(tokens / mean)
    if each < 1:
        raise ConfigError(
            f"{tokens} tokens hold no sample: machines' samples have {ceil(mean)} on average",
            next_step=f"use at least {ceil(mean)} tokens a microbatch",
        )
    dealt, sums = [], []
    for rank in range(data_ranks):
        rows = [(rank * each + i) % len(layouts) for i in range(each)]
        dealt.append({row: rows.count(row) for row in range(len(layouts))})
        sums.append(sum(layouts[row].length for row in rows))
    return Reading(tuple(dealt), tuple(layout.length for layout in layouts), tuple(sums))
