"""The data sets that lie in a catalog's folder. The folders are all there is: nothing beside them can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hagane.catalog.record import DatasetRecord
from hagane.catalog.shelf import Shelf
from hagane.catalog.store import OURS, StoredSet
from hagane.seal import SignedContract, TrustStore, load_contract
from hagane.terms import ConfigError, ContractError, HaganeError, StoreError


@dataclass(frozen=True)
class Held:
    """Data sets by name."""

    sets: dict[str, StoredSet] = field(default_factory=dict)
    """Those that can be opened."""
    contracts: dict[str, SignedContract] = field(default_factory=dict)
    """Their contracts, verified."""
    problems: dict[str, HaganeError] = field(default_factory=dict)
    """Why a data set or its contract cannot be used."""

    def record(self, name: str) -> DatasetRecord:
        """The record of a data set that can be opened."""
        stored = self.sets[name]
        r = stored.record
        contract = self.contracts[name].digest if name in self.contracts else ""
        path = stored.folder / OURS / "contract.toml"
        kept = (r["embodiment"], r["owner"], r["episodes"], r["steps"], r["seconds"], r["digest"])
        return DatasetRecord(name, *kept, contract, path, r["findings"], r.get("site", ""))


def find_sets(folder: Path, shelf: Callable[[Path, str], Shelf], trust: TrustStore) -> Held:
    """Open every data set of a folder and verify its contract."""
    held = Held()
    for place in sorted(folder.glob("*/")):
        name = place.name
        try:
            held.sets[name] = StoredSet(shelf(place, name))
            held.contracts[name] = load_contract(place / OURS / "contract.toml", trust)
        except (StoreError, ContractError, ConfigError) as e:
            held.problems[name] = e
    return held
