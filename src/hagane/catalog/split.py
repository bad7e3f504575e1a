"""What is trained on and what is held out: by episode or by site, never by frame, copies always on the same side.

The side of an episode is a hash of the seed and its content, so nothing moves when episodes are added; a copy goes
where the episode that came first went (sets count in the order they are given: append new ones at the end). By
site, whole sites are held out, and a training site's copy of a held episode is held as well.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from hagane.catalog.catalog import Catalog
from hagane.catalog.contents import EpisodeFacts, episodes_of
from hagane.catalog.duplicates import Copy, copy_groups
from hagane.terms import ConfigError, StoreError, dump_toml, load_toml
from hagane.terms.files import write_whole

Side = Literal["train", "held"]
By = Literal["episode", "site"]
Key = tuple[str, str]
"""(data set, episode id)."""


@dataclass(frozen=True)
class SplitSet:
    """One data set's part of a split."""

    name: str
    """Data set."""
    digest: str
    """Content digest it had when it was split."""
    site: str
    """Where it was brought in; "" when unknown."""
    episodes: int
    """Episodes in all."""
    held: tuple[str, ...]
    """Ids of the episodes that are held out."""


@dataclass(frozen=True)
class Split:
    """A split as its TOML file holds it.

    Raises:
        ConfigError: a share that is not between 0 and 1, a data set twice.
    """

    by: By
    """episode or site."""
    share: float
    """Part of the episodes that was to be held out."""
    seed: int
    """Seed of the hash."""
    moved: int = 0
    """Episodes that changed sides to be with their copies."""
    sets: tuple[SplitSet, ...] = ()
    """The data sets, in the order given."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"the held share must be between 0 and 1, not {self.share:g}")
        names = [s.name for s in self.sets]
        if len(set(names)) < len(names):
            raise ConfigError("a data set is split twice", next_step="name each data set once")

    @cached_property
    def held(self) -> frozenset[Key]:
        """All held episodes."""
        return frozenset((s.name, e) for s in self.sets for e in s.held)


def split_of(split: Split, dataset: str, digest: str, episode_ids: Iterable[str]) -> list[Side]:
    """The side of each of a data set's episodes: what a loader asks.

    Args:
        split: from `load_split` or `make_split`.
        dataset: data set name.
        digest: its content digest now.
        episode_ids: ids, in any order.

    Raises:
        ConfigError: the split does not know the data set, or knew it with other content.
    """
    part = next((s for s in split.sets if s.name == dataset), None)
    step = "split again with the same seed: episodes stay on their sides"
    if part is None:
        raise ConfigError(f"the split does not cover data set {dataset!r}", next_step=step)
    if part.digest != digest:
        raise ConfigError(f"data set {dataset!r} holds other content than when it was split", next_step=step)
    return ["held" if (dataset, e) in split.held else "train" for e in episode_ids]


def make_split(
    catalog: Catalog, names: Sequence[str], by: By, share: float, seed: int, copies: Iterable[Copy] = ()
) -> Split:
    """Decide the side of every episode of some data sets.

    Args:
        catalog: where they are; only facts are read, no data.
        names: data sets, oldest first.
        by: episode or site.
        share: part of the episodes to hold out, about; by site at least one site is held and one is not.
        seed: another seed gives another split.
        copies: from `find_copies` over these data sets.

    Raises:
        ConfigError: one site only, a site that is not recorded, or a side that would be empty.
        StoreError: no such data set.
    """
    empty = Split(by, share, seed)  # refuses a wrong share before anything is read
    facts = {name: episodes_of(catalog, name) for name in names}
    sites = {name: catalog.record(name).site for name in names}
    sides = _by_site(facts, sites, share, seed) if by == "site" else _by_episode(facts, share, seed)
    moved = _together(sides, copies, held_wins=by == "site")
    parts = tuple(
        SplitSet(
            name,
            catalog.record(name).digest,
            sites[name],
            len(facts[name]),
            tuple(e.id for e in facts[name] if sides[name, e.id] == "held"),
        )
        for name in names
    )
    split = Split(by, share, seed, moved, parts)
    held, every = len(split.held), sum(s.episodes for s in parts)
    if not 0 < held < every:
        raise ConfigError(
            f"{held} of {every} episodes would be held out",
            where=f"--share {empty.share:g} --seed {seed}",
            next_step="take another share or seed, or more episodes",
        )
    return split


def save_split(split: Split, path: Path) -> None:
    """Write a split as TOML, whole or not at all.

    Raises:
        StoreError: the file exists, or the disk refuses.
    """
    if path.exists():
        raise StoreError("the file exists and is not overwritten", where=str(path), next_step="choose another --out")
    try:
        write_whole(path, [dump_toml(split).encode()])
    except OSError as e:
        raise StoreError(f"the split cannot be written: {e.strerror}", where=str(path)) from None


def load_split(path: Path) -> Split:
    """Read a split strictly.

    Raises:
        ConfigError: missing file, unknown or missing key, wrong type.
    """
    return load_toml(path, Split)


def _fraction(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on seed and key only."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") / 2**64


def _by_episode(facts: Mapping[str, Sequence[EpisodeFacts]], share: float, seed: int) -> dict[Key, Side]:
    return {
        (name, e.id): "held" if _fraction(seed, e.content) < share else "train" for name in facts for e in facts[name]
    }


def _by_site(
    facts: Mapping[str, Sequence[EpisodeFacts]], sites: Mapping[str, str], share: float, seed: int
) -> dict[Key, Side]:
    if unknown := [name for name, site in sites.items() if not site]:
        raise ConfigError(
            "its record does not say at which site it was brought in",
            where=unknown[0],
            next_step="split by episode, or bring its logs in again",
        )
    order = sorted(set(sites.values()), key=lambda site: _fraction(seed, site))
    if len(order) < 2:
        raise ConfigError(f"all data is of one site, {order[0]!r}", next_step="add data of another site")
    chosen = {site for site in order if _fraction(seed, site) < share} or {order[0]}
    chosen.discard(order[-1])  # one site is always left to train on
    return {(name, e.id): "held" if sites[name] in chosen else "train" for name in facts for e in facts[name]}


def _together(sides: dict[Key, Side], copies: Iterable[Copy], *, held_wins: bool) -> int:
    """Bring copies to one side; returns how many moved."""
    order = {key: k for k, key in enumerate(sides)}
    moved = 0
    for group in copy_groups(copies):
        there = sorted((key for key in group if key in sides), key=order.__getitem__)
        if not there:
            continue
        count = Counter(sides[key] for key in there)
        side: Side = "held" if held_wins and count["held"] else sides[there[0]]
        moved += len(there) - count[side]
        sides.update(dict.fromkeys(there, side))
    return moved
