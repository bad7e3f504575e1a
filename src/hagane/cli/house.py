"""What the keeper knows of a site while one verb runs: contracts, keys, ledger, and what the verb may open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hagane.cli.opens import Opens
from hagane.cli.sealed_run import SealedRun, Source, is_sealed_run, read_sealed_run
from hagane.terms import Decision, Embodiment, HaganeError, Refused, code_digest, errors

if TYPE_CHECKING:
    from hagane.catalog import Catalog
    from hagane.jail import JailRecord
    from hagane.seal import Keyring, Ledger, SignedContract

ERRORS = frozenset(c.__name__ for c in vars(errors).values() if isinstance(c, type) and issubclass(c, HaganeError))
"""What may be told of a failure: its kind."""
HEX = frozenset("0123456789abcdef")
NOTES = ("export",)
"""Kinds of entries that a jail may have written, where the purpose is to export: they are marked, and hold known names,
digests and numbers. 64 hex digits could be anything, so a jail whose data may not leave has nothing written at all:
what the ledger says of its run and its checkpoints is what the keeper itself saw."""


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

    @cached_property
    def shows(self) -> bool:
        """True where people may look at what the verb prints: every contract grants to view here and now."""
        if self.opens.purpose == "export" and not self.opens.handed:
            return True
        came = all("view" in c.contract.purposes for c in self.brings.values())
        return came and all(self.catalog.decide(name, "view").allowed for name in self.datasets)

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
        for name, signed in self.brings.items():
            self.catalog.gate.require_any(signed, name, "", signed.contract.owner)

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
        if dataset not in self.opens.datasets:
            return ()
        root = self.catalog.root
        places = (root / "sets" / dataset, *sorted((root / "cache").glob(f"{dataset}-*")))
        return tuple(p for p in places if (p / "sealed.json").exists())

    def machines(self) -> tuple[Embodiment, ...]:
        """Machines of all data sets that are asked for, as their sealed files say; read out here, with our own keys.

        Raises:
            Refused: the key of one was erased; CorruptError: a file is not the one that was sealed.
        """
        from hagane.catalog.sealed import open_shelf
        from hagane.catalog.stored import StoredSet
        from hagane.seal import OwnKeys, open_folder

        found = []
        for name in self.datasets:
            folder = self.catalog.root / "sets" / name
            keys = OwnKeys(open_folder(folder), self.keyring) if self.catalog.record(name).sealed else None
            found.append(StoredSet(open_shelf(folder, name, keys)).embodiment())
        return tuple(found)

    def sources(self) -> tuple[Source, ...]:
        """What a run made now reads: data sets, and those behind the weights that it starts from."""
        found = {s.dataset: s for run in self.runs for s in run.sources}
        for name in self.opens.datasets:
            record = self.catalog.record(name)
            found[name] = Source(name, record.digest, record.contract_digest, record.owner)
        return tuple(found[name] for name in sorted(found))

    def caches(self) -> dict[str, str]:
        """Names of the training caches that there can be, and their data sets."""
        from hagane.catalog.columns import PICTURE_MODES
        from hagane.cli.site import open_catalog

        catalog = open_catalog(self.opens.home, noted=False, jailed=True)
        names = dict.fromkeys((*self.brings, *self.datasets))
        there = {r.name: r.digest for r in catalog.ls() if r.name in names}
        ends = ["" if mode == "jpeg" else f"-{mode}" for mode in PICTURE_MODES]
        return {f"{name}-{digest[:16]}{end}": name for name, digest in there.items() for end in ends}

    def steps_of(self, run: Path) -> int:
        """Optimiser steps that a run has at most: as its configuration says now, or said when it was begun."""
        return self.opens.steps or max((r.steps for r in self.runs if r.folder == run), default=0)

    def came_in(self, name: str) -> None:
        """Write down that a data set lies here now, and remember its contract.

        Raises:
            Refused: its content is not what its contract says.
        """
        from hagane.cli.site import open_catalog

        catalog, signed = open_catalog(self.opens.home, jailed=True), self.brings[name]
        record = catalog.record(name)
        catalog.gate.accept(signed, name, record.digest, record.owner)
        catalog.note("add", name, {"digest": record.digest, "episodes": record.episodes})

    def note_jail(self, record: JailRecord) -> None:
        """Write down which walls stood, around what, for which data."""
        contracts = {n: self.catalog.record(n).contract_digest for n in self.datasets}
        contracts |= {n: c.digest for n, c in self.brings.items()}
        body = {"purpose": self.opens.purpose, "contracts": contracts, "code": code_digest(), "jail": record.digest}
        walls = {"layers": list(record.layers), "kernel": record.kernel, "landlock_abi": record.landlock_abi}
        about = {
            "as_root": record.as_root,
            "swap": record.swap,
            "verb": record.command[3] if record.command[3:] else "",
        }
        self.ledger.append("jail", {**body, **walls, **about, "makes": [p.name for p in self.opens.makes]})

    def note_text(self, size_bytes: int) -> None:
        """Write down that text of a jail was shown, as its contracts grant."""
        for name in (*self.datasets, *self.brings):
            body = {"dataset": name, "site": self.catalog.site.name, "purpose": "view", "text_bytes": size_bytes}
            self.ledger.append("shown", body)

    def words(self) -> frozenset[str]:
        """Words that may be told outside: names that stand open here anyway, and those that the verb knows."""
        machines = {self.catalog.record(n).embodiment for n in self.datasets if n not in self.catalog.problems}
        return frozenset({*self.datasets, *self.brings, *machines, *ERRORS, *self.opens.words})

    @property
    def notes(self) -> dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]:
        """By kind: checks what a jail wants written into the ledger."""
        return dict.fromkeys(NOTES, self.checked) if self.opens.purpose == "export" else {}

    def checked(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """A note of the jail, when every word in it is one that is known, a digest, or a number.

        Raises:
            Refused: anything else stands in it.
        """
        known = {*self.words(), *(run.folder.name for run in self.runs), *(p.name for p in self.opens.makes)}
        if not _plain(body, known):
            raise Refused("a note from a jail may hold known names, digests and numbers only")
        return body


def asks_for_jail(home: Path) -> bool:
    """Whether a contract of a data set here asks for a jail, or cannot be read; False where there is no site."""
    from hagane.cli.site import open_catalog

    if not (home / "site.toml").exists():
        return False
    catalog = open_catalog(home, noted=False, jailed=True)
    names = [r.name for r in catalog.ls()]
    return any(n in catalog.problems or catalog.contract(n).contract.protection == "jail" for n in names)


def open_house(opens: Opens) -> House | None:
    """Open a site on behalf of a verb; None where there is no site and no sealed run, so that no contract asks.

    Raises:
        HaganeError: no site here, a contract to come in that does not verify.
    """
    sealed = any(is_sealed_run(p) for p in (*opens.runs, *opens.makes))
    if not sealed and not opens.brings and not (opens.home / "site.toml").exists():
        return None
    from hagane.cli.site import keyring_of, ledger_of, open_catalog
    from hagane.seal import load_contract

    catalog = open_catalog(opens.home, jailed=True)
    brings = {name: load_contract(path, catalog.trust) for name, path in opens.brings}
    folders = [p for p in (*opens.runs, *opens.makes) if is_sealed_run(p)]
    runs = tuple(read_sealed_run(p) for p in dict.fromkeys(folders))
    if opens.makes:
        catalog.gate = replace(catalog.gate, run=opens.makes[0].name)  # reads say which run they are for
    return House(opens, catalog, catalog.ledger or ledger_of(opens.home), keyring_of(opens.home), brings, runs)


def _plain(value: object, known: set[str], depth: int = 0) -> bool:
    if isinstance(value, str):
        return value in known or (len(value) in (16, 64) and not set(value) - HEX)
    if isinstance(value, Mapping):
        return (
            depth < 4 and len(value) <= 64 and all(_word(k) and _plain(v, known, depth + 1) for k, v in value.items())
        )
    if isinstance(value, list | tuple):
        return depth < 4 and len(value) <= 64 and all(_plain(v, known, depth + 1) for v in value)
    return value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) < 1e9)


def _word(key: object) -> bool:
    return isinstance(key, str) and len(key) <= 32 and key.isascii()
