"""Catalog: the data sets of a site. Every read asks `permit` first and is refused by default."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import Any

from hagane.catalog.brokered import Desk, make_gate
from hagane.catalog.cache import Caches
from hagane.catalog.columns import Columns, PictureMode
from hagane.catalog.convert import Entry
from hagane.catalog.fill import fill_from_logs, fill_journal, log_jobs
from hagane.catalog.gate import Gate
from hagane.catalog.held import find_sets, publish
from hagane.catalog.record import DatasetRecord
from hagane.catalog.sealed import open_shelf
from hagane.catalog.shelf import Shelf
from hagane.catalog.sketch import channel_stats, merge_all
from hagane.catalog.store import Progress, Target, put_contract, write_stored
from hagane.catalog.stored import StoredSet, refuse_other, refuse_sealed
from hagane.catalog.workers import Mapper, Workers, working
from hagane.intake.lerobot_journal import disk_error
from hagane.intake.options import Options
from hagane.seal import Keys, Ledger, SignedContract, Site, TrustStore, check_name, load_contract, utc_today
from hagane.terms import (
    ChannelStats,
    ConfigError,
    Decision,
    Embodiment,
    Episode,
    HaganeError,
    LogError,
    Refused,
    StoreError,
)
from hagane.terms.files import alone

HERE = Workers()


class Catalog:
    """Open with `Catalog.open`."""

    def __init__(
        self, root: Path, site: Site, trust: TrustStore, ledger: Ledger | None, gate: Gate, keys: Keys | None
    ) -> None:
        self.root, self.site, self.trust, self.ledger = root, site, trust, ledger
        self.gate, self._keys = gate, keys
        self._caches = Caches(root / "cache", root / ".locks", self.shelf)
        self._refresh()

    @property
    def problems(self) -> dict[str, HaganeError]:
        """Why a data set or its contract cannot be used, by data set name."""
        return self._held.problems

    @classmethod
    def open(
        cls,
        root: Path,
        site: Site,
        trust: TrustStore,
        ledger: Ledger | None = None,
        *,
        today: Callable[[], date] = utc_today,
        keys: Keys | None = None,
        desk: Desk | None = None,
        jailed: bool = False,
    ) -> Catalog:
        """Open the catalog in a folder (made if absent); verifies every contract again.

        Args:
            root: the catalog's folder.
            site: where this process runs, for `permit`.
            trust: keys of the owners that this site knows.
            ledger: refusals, additions and reads are appended to it.
            today: the date (UTC) that contracts are judged at; for tests.
            keys: gives the keys of sealed data sets; without one only their records can be read.
            desk: who is asked instead of `permit`, and notes instead of the ledger: the broker's client, in a jail.
            jailed: asked by a keeper, on behalf of the jail that it starts.

        Raises:
            StoreError: the folder cannot be used.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise disk_error(e, root) from None
        gate = make_gate(site, ledger, today, root / "memory.json", desk, jailed)
        return cls(root, site, trust, ledger, gate, keys)

    def add(
        self,
        name: str,
        embodiment: Embodiment,
        signed: SignedContract | None,
        episodes: Iterable[Episode],
        *,
        progress: Progress = lambda what, count: None,
        workers: Workers = HERE,
    ) -> DatasetRecord:
        """Bring episodes in under a contract. Killed on the way, the catalog is unchanged; call again to go on.

        Adding the same content again changes nothing and returns the record.

        Raises:
            Refused: the contract is missing, of another owner, for other data, expired, or not for this site.
            StoreError: the name holds other content, or the disk refuses.
            LogError: no episode, an id used twice, or streams that do not fit the embodiment.
        """

        def fill(work: Path, _: Mapper) -> list[Entry]:
            return fill_journal(work / "journal", embodiment, episodes, progress)

        return self._bring_in(name, embodiment, signed, fill, progress, workers)

    def add_logs(
        self,
        name: str,
        embodiment: Embodiment,
        signed: SignedContract | None,
        path: Path,
        options: Options | None = None,
        *,
        seen: Callable[[Mapping[str, Any]], None] = lambda facts: None,
        progress: Progress = lambda what, count: None,
        workers: Workers = HERE,
    ) -> DatasetRecord:
        """As `add`, out of a log or a folder of logs; logs are read side by side by the workers.

        A second call after a crash does not read those logs again that were read to their end.

        Args:
            name, embodiment, signed: of the data set, whose channels are read, under whose contract.
            path: file or folder.
            options: what people told about the logs.
            seen, progress: called with the facts of each episode in order; with what is being done, and how far.
            workers: who reads and converts; the result is the same bytes.

        Raises:
            as `add`, and LogError for logs that cannot be read.
        """

        def fill(work: Path, mapper: Mapper) -> list[Entry]:
            jobs = log_jobs(work, path, embodiment, options or Options())
            return fill_from_logs(jobs, path, mapper, seen, progress)

        return self._bring_in(name, embodiment, signed, fill, progress, workers)

    def _bring_in(
        self,
        name: str,
        embodiment: Embodiment,
        signed: SignedContract | None,
        fill: Callable[[Path, Mapper], list[Entry]],
        progress: Progress,
        workers: Workers,
    ) -> DatasetRecord:
        check_name(name, "data set name")
        signed = self.gate.require_any(signed, name, "", embodiment.owner)
        work = self.root / "staging" / name
        with self._locked(name):
            self._refresh()
            stored = self._stored(name) if name in self._held.sets or name in self.problems else None
            try:
                # the workers are gone before anything is removed: a late one would make its folder again
                with working(workers) as mapper:
                    entries = fill(work, mapper)
                    if stored is None:
                        target = Target(work, name, embodiment, signed, self.site.name)
                        digest = write_stored(target, entries, mapper, progress)
                        self.gate.accept(signed, name, digest, embodiment.owner)
                        # before it is there, so that nothing is there that the ledger does not know
                        self.gate.note("add", name, signed, {"digest": digest, "episodes": len(entries)})
                        # renames only: the set first, since the cache can be built again from it
                        publish(work / "set", self.root / "sets" / name)
                        self._refresh()
                        self._caches.put(self._stored(name), work / "columns")
            except (LogError, ConfigError, Refused):
                # the input itself is refused: nothing of it stays here
                shutil.rmtree(work, ignore_errors=True)
                raise
            except OSError as e:
                raise disk_error(e, work) from None
            shutil.rmtree(work, ignore_errors=True)
            if stored is not None:
                refuse_other(stored, embodiment, [e.content for e in entries], self._held.contracts.get(name), signed)
        return self.record(name)

    def renew(self, name: str, signed: SignedContract) -> DatasetRecord:
        """Put a newer contract of the same owner beside a data set.

        Raises:
            Refused: it is of another owner, for other data, expired, or not for this site.
            StoreError: there is no such data set, or it is sealed (`hagane.catalog.sealing.renew_set`).
        """
        stored = self._stored(name)
        refuse_sealed(stored)
        digest = str(stored.record["digest"])
        with self._locked(name):
            self.gate.accept(signed, name, digest, str(stored.record["owner"]))
            self.gate.note("renew", name, signed, {"digest": digest})
            put_contract(stored.contract_path.parent, signed)
            self._refresh()
        return self.record(name)

    def ls(self) -> tuple[DatasetRecord, ...]:
        """Records of all data sets, by name. Needs no permission: nothing of the data is shown."""
        return tuple(self._held.record(name) for name in sorted(self._held.sets))

    def unfinished(self) -> tuple[str, ...]:
        """Names of data sets whose `add` was interrupted; adding them again goes on."""
        return tuple(sorted(p.name for p in (self.root / "staging").glob("*/") if p.name not in self._held.sets))

    def contract(self, name: str) -> SignedContract:
        """The owner's contract of a data set, verified when the catalog was opened.

        Raises:
            StoreError: no such data set; ContractError: its contract does not verify.
        """
        self._stored(name)
        if name not in self._held.contracts:
            raise self.problems[name]
        return self._held.contracts[name]

    def record(self, name: str) -> DatasetRecord:
        """The record of one data set.

        Raises:
            StoreError: there is none; CorruptError: it is damaged.
        """
        self._stored(name)
        return self._held.record(name)

    def embodiment(self, name: str) -> Embodiment:
        """The machine of a data set.

        Raises:
            StoreError: as `record`.
        """
        return self._stored(name).embodiment()

    def decide(self, name: str, purpose: str) -> Decision:
        """What `permit` says about reading a data set here, today, for a purpose.

        Raises:
            StoreError: as `record`.
        """
        record = self._stored(name).record
        return self.gate.decide(
            self._held.contracts.get(name), name, str(record["digest"]), str(record["owner"]), purpose
        )

    def ask(self, name: str, purpose: str) -> None:
        """Go on only if the contract permits to read a data set for a purpose; the ledger notes it. Whatever gives
        data away asks here first.

        Raises:
            StoreError: as `record`; ContractError: its contract does not verify.
            Refused: the contract does not permit it.
        """
        stored = self._stored(name)
        if name in self.problems:
            raise self.problems[name]
        signed, digest = self._held.contracts[name], str(stored.record["digest"])
        self.gate.require(signed, name, digest, str(stored.record["owner"]), purpose)
        self.gate.note("read", name, signed, {"purpose": purpose, "digest": digest})

    def shelf(self, folder: Path, name: str) -> Shelf:
        """A folder of a data set, sealed or plain, to be read from.

        Raises:
            CorruptError: the list of its sealed files was changed, or is that of another data set.
        """
        return open_shelf(folder, name, self._keys)

    def note(self, kind: str, name: str, body: Mapping[str, Any]) -> None:
        """Write down in the ledger what was done with a data set, under which contract."""
        self.gate.note(kind, name, self._held.contracts.get(name), body)

    def episodes(self, name: str, purpose: str, only: Container[int] | None = None) -> Iterator[Episode]:
        """The episodes as they were added: native rates, findings included; all, or those of some numbers from 0.

        Raises:
            Refused: the contract does not permit it.
            CorruptError: stored bytes differ from their digest; names the file.
        """
        self.ask(name, purpose)
        return self._stored(name).episodes(only)

    def stats(self, name: str | Sequence[str], purpose: str) -> dict[str, ChannelStats]:
        """Statistics by channel, action channels included; of several data sets of one machine together.

        Raises:
            Refused: a contract does not permit it.
            ConfigError: data sets of different machines.
            CorruptError: stored bytes differ from their digest.
        """
        names = [name] if isinstance(name, str) else list(name)
        parts = []
        for one in names:
            self.ask(one, purpose)
            parts.append(self._stored(one).sketches())
        if len({self._stored(n).record["embodiment"] for n in names}) != 1:
            raise ConfigError(f"statistics of different machines cannot be merged: {', '.join(names)}")
        return {channel: channel_stats(s) for channel, s in merge_all(parts).items()}

    def columns(self, name: str, purpose: str, pictures: PictureMode = "jpeg") -> Columns:
        """Training columns, memory-mapped; built from the canonical set where the cache is absent.

        Raises:
            Refused: the contract does not permit it.
            CorruptError: stored bytes differ from their digest; names the file.
        """
        self.ask(name, purpose)
        return self._caches.columns(self._stored(name), pictures)

    def verify(self, name: str) -> int:
        """Check every file of a data set, its contract, and its cache; returns the number of files checked.

        Of a sealed one without keys: that every file is, to the byte, the one that was sealed.

        Raises:
            CorruptError: a file is missing or differs; names it.
            ContractError: the contract is not signed by the owner.
        """
        stored = self._stored(name)
        load_contract(stored.contract_path, self.trust)
        return self._caches.verify(stored, with_keys=self._keys is not None)

    def _stored(self, name: str) -> StoredSet:
        if name in self._held.sets:
            return self._held.sets[name]
        if name in self.problems:
            raise self.problems[name]
        known = ", ".join(sorted(self._held.sets)) or "none"
        raise StoreError(f"no data set {name!r}", where=str(self.root), next_step=f"there are: {known}")

    def _refresh(self) -> None:
        """Read the folders and verify contracts."""
        self._held = find_sets(self.root / "sets", self.shelf, self.trust)

    def _locked(self, name: str) -> AbstractContextManager[int]:
        """One writer of a data set at a time; others are read and brought in meanwhile."""
        return alone(self.root / ".locks" / f"{name}.set")
