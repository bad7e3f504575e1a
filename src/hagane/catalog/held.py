"""The data sets that lie in a catalog's folder. The folders are all there is: nothing beside them can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hagane.catalog.record import DatasetRecord
from hagane.catalog.shelf import Shelf
from hagane.catalog.stored import StoredSet
from hagane.seal import SignedContract, TrustStore, load_contract
from hagane.terms import ConfigError, ContractError, HaganeError, StoreError
from hagane.terms.files import sync_folder


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
        kept = (r["embodiment"], r["owner"], r["episodes"], r["steps"], r["seconds"], r["digest"])
        more = (r["findings"], r.get("site", ""), r.get("domain", ""), stored.shelf.sealed)
        return DatasetRecord(name, *kept, contract, stored.contract_path, *more)


def find_sets(folder: Path, shelf: Callable[[Path, str], Shelf], trust: TrustStore) -> Held:
    """Open every data set of a folder and verify its contract."""
    held = Held()
    for place in sorted(folder.glob("*/")):
        name = place.name
        try:
            held.sets[name] = StoredSet(shelf(place, name))
            held.contracts[name] = load_contract(held.sets[name].contract_path, trust)
        except (StoreError, ContractError, ConfigError) as e:
            held.problems[name] = e
    return held


def publish(made: Path, target: Path) -> None:
    """Rename a finished data set into its place; on disk when this returns."""
    target.parent.mkdir(exist_ok=True)
    made.rename(target)
    sync_folder(target.parent)
