"""A run's data out of a catalog: what `train` needs, each read permitted by its contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hagane.catalog import Catalog, Loader, Mixture
from hagane.catalog.split import load_split
from hagane.terms import ChannelStats, Embodiment
from hagane.train.config import TrainConfig


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


def open_data(catalog: Catalog, config: TrainConfig) -> CatalogData:
    """Open every data set of a run.

    Raises:
        Refused: a contract does not permit the run's purpose; nothing was read of that data set.
        CorruptError: stored bytes differ from their digest.
    """
    mixture = Mixture(config.shares, config.temperature, config.seed)
    purpose, names = config.purpose, list(config.datasets)
    divided = load_split(Path(config.split)) if config.split else None
    train = Loader(
        catalog,
        names,
        mixture,
        purpose=purpose,
        samples_per_step=config.samples_per_step,
        pictures=config.pictures,
        divided=divided,
    )
    # a machine that is held out as a whole has no place in the model
    known = [c for c in train.opened if c.embodiment.name in train.embodiments]
    weights = {c.name: config.shares[c.name] for c in known}
    held_out = Loader(
        known,
        names,
        replace(mixture, weights=weights),
        purpose=purpose,
        samples_per_step=config.held_out_samples,
        split="held-out",
        divided=divided,
    )
    machines = {n: catalog.embodiment(n) for n in names}
    by_machine: dict[str, list[str]] = {}
    for name, machine in machines.items():
        by_machine.setdefault(machine.name, []).append(name)
    records = {n: catalog.record(n) for n in names}
    return CatalogData(
        embodiments=tuple(train.embodiments[n] for n in sorted(train.embodiments)),
        stats={machine: catalog.stats(sets, purpose) for machine, sets in by_machine.items()},
        lineage={n: (r.digest, r.contract_digest, r.owner) for n, r in records.items()},
        train=train,
        held_out=held_out,
    )
