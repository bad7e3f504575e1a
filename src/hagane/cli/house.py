"""What the keeper knows of a site while one verb runs: contracts, keys, ledger, and what the verb may open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hagane.cli.opens import Opens
from hagane.cli.sealed_run import SealedRun, Source, is_sealed_run, read_sealed_run
from hagane.terms import Decision, HaganeError, Refused

if TYPE_CHECKING:
    from hagane.catalog import Catalog
    from hagane.seal import Keyring, Ledger, SignedContract

HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, eq=False)
class House:
    """A site, as one call of a verb opens it."""

    opens: Opens
    """What the verb said that it opens."""
    catalog: Catalog
    """The site's, asked as on behalf of a jail."""
    ledger: Ledger
    """The site's."""
    keyring: Keyring
    """The site's wrapping keys."""
    brings: Mapping[str, SignedContract]
    """By data set that comes in: its contract."""
    runs: tuple[SealedRun, ...]
    """Sealed runs that the verb reads or adds to."""

    @property
    def datasets(self) -> tuple[str, ...]:
        """All data sets that are asked for: those that it opens, and those behind the runs."""
        behind = [s.dataset for run in self.runs for s in run.sources]
        return tuple(dict.fromkeys((*self.opens.datasets, *behind)))

    @property
    def jailed(self) -> bool:
        """True when a contract asks for a jail, or a run lies sealed already."""
        contracts = [*self.brings.values()]
        contracts += [self.catalog.contract(n) for n in self.datasets if n not in self.catalog.problems]
        return bool(self.runs) or any(c.contract.protection == "jail" for c in contracts)

    def ask_all(self) -> None:
        """Ask every contract before anything starts.

        Raises:
            Refused: one does not permit it; ContractError: one does not verify; StoreError: a data set is not here.
        """
        for name in self.datasets:
            self.catalog.ask(name, self.opens.purpose)

    def decide(self, dataset: str, purpose: str) -> Decision:
        """The broker's answer to code in the jail: only what the verb was started for."""
        if purpose != self.opens.purpose or dataset not in self.datasets:
            return Decision(False, f"this jail was not started to use {dataset!r} for {purpose!r}")
        try:
            return self.catalog.decide(dataset, purpose)
        except HaganeError as e:
            return Decision(False, e.what)

    def folders(self, dataset: str) -> Sequence[Path]:
        """Sealed folders of a data set on disk, for the broker."""
        if dataset not in self.datasets:
            return ()
        root = self.catalog.root
        places = (root / "sets" / dataset, *sorted((root / "cache").glob(f"{dataset}-*")))
        return tuple(p for p in places if (p / "sealed.json").exists())

    def sources(self) -> tuple[Source, ...]:
        """What a run made now reads: data sets, and those behind the weights that it starts from."""
        found = {s.dataset: s for run in self.runs for s in run.sources}
        for name in self.opens.datasets:
            record = self.catalog.record(name)
            found[name] = Source(name, record.digest, record.contract_digest, record.owner)
        return tuple(found[name] for name in sorted(found))

    def words(self) -> frozenset[str]:
        """Words that may be told outside: names that stand open here anyway, and those that the verb knows."""
        machines = {self.catalog.record(n).embodiment for n in self.datasets if n not in self.catalog.problems}
        return frozenset({*self.datasets, *self.brings, *machines, *self.opens.words})

    def checked(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """A note of the jail, when every word in it is one that is known, a digest, or a number.

        Raises:
            Refused: anything else stands in it.
        """
        known = {*self.words(), *(run.folder.name for run in self.runs), *(p.name for p in self.opens.makes)}
        if not _plain(body, known):
            raise Refused("a note from a jail may hold known names, digests and numbers only")
        return body


def open_house(opens: Opens) -> House:
    """Open a site on behalf of a verb.

    Raises:
        HaganeError: no site here, a contract to come in that does not verify.
    """
    from hagane.cli.site import keyring_of, open_catalog
    from hagane.seal import Ledger, load_contract

    catalog = open_catalog(opens.home, jailed=True)
    brings = {name: load_contract(path, catalog.trust) for name, path in opens.brings}
    folders = [p for p in (*opens.runs, *opens.makes) if is_sealed_run(p)]
    runs = tuple(read_sealed_run(p) for p in dict.fromkeys(folders))
    ledger = catalog.ledger or Ledger(opens.home / "ledger.jsonl")
    return House(opens, catalog, ledger, keyring_of(opens.home), brings, runs)


def _plain(value: object, known: set[str], depth: int = 0) -> bool:
    if isinstance(value, str):
        return value in known or (len(value) in (16, 64) and not set(value) - HEX)
    if isinstance(value, Mapping):
        return depth < 4 and len(value) <= 64 and all(_word(k) and _plain(v, known, depth + 1) for k, v in value.items())
    if isinstance(value, list | tuple):
        return depth < 4 and len(value) <= 64 and all(_plain(v, known, depth + 1) for v in value)
    return value is None or isinstance(value, bool) or (type(value) in (int, float) and abs(value) < 1e9)  # type: ignore[operator]


def _word(key: object) -> bool:
    return isinstance(key, str) and len(key) <= 32 and key.isascii()
