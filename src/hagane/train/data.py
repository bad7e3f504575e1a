"""A run's data out of a catalog: what `train` needs, read under the contracts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hagane.catalog import Loader
from hagane.terms import ChannelStats, Embodiment


@dataclass(frozen=True, eq=False)
class CatalogData:
    """Embodiments, statistics, lineage and loaders of a run."""

    embodiments: tuple[Embodiment, ...]
    """Machines in the data, by name."""
    stats: Mapping[str, Mapping[str, ChannelStats]]
    """By embodiment and channel."""
    lineage: Mapping[str, tuple[str, str, str]]
    """(digest, contract digest, owner) by data set."""
    train: Loader
    """Training batches."""
    held_out: Loader
    """Whole episodes that training never sees."""
