"""Catalog: the data sets of a site. Every read asks `permit` first and is refused by default."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import Any

from hagane.catalog.cache import Caches
from hagane.catalog.columns import Columns, PictureMode
from hagane.catalog.convert import Entry
from hagane.catalog.fill import fill_from_logs, fill_journal, log_jobs
from hagane.catalog.gate import Gate
from hagane.catalog.lock import locked
from hagane.catalog.record import DatasetRecord
from hagane.catalog.sketch import channel_stats, merge_all, unpack_sketches
from hagane.catalog.store import OURS, Progress, StoredSet, Target, put_contract, refuse_other, write_stored
from hagane.catalog.workers import Mapper, Workers, working
from hagane.intake.lerobot_journal import disk_error, sync_folder
from hagane.intake.options import Options
from hagane.seal import Ledger, Memory, SignedContract, Site, TrustStore, check_name, load_contract, utc_today
from hagane.terms import (
    ChannelStats,
    ConfigError,
    ContractError,
    Decision,
    Embodiment,
    Episode,
    HaganeError,
    LogError,
    Refused,
    StoreError,
)

HERE = Workers()


class Catalog:
    """Open with `Catalog.open`."""

    def __init__(
        self, root: Path, site: Site, trust: TrustStore, ledger: Ledger | None, today: Callable[[], date]
    ) -> None:
        self.root, self.site, self.trust, self.ledger = root, site, trust, ledger
        self._gate = Gate(site, ledger, today, Memory(root / "memory.json"))
        self._sets: dict[str, StoredSet] = {}
        self._contracts: dict[str, SignedContract] = {}
        self.problems: dict[str, HaganeError] = {}
        """Why a data set or its contract cannot be used, by data set name."""
        self._caches = Caches(root / "cache", root / ".locks")
        self._refresh()

    @classmethod
    def open(
        cls,
        root: Path,
        site: Site,
        trust: TrustStore,
        ledger: Ledger | None = None,
        *,
        today: Callable[[], date] = utc_today,
    ) -> Catalog:
        """Open the catalog in a folder (made if absent); verifies every contract again.

        Args:
            root: the catalog's folder.
            site: where this process runs, for `permit`.
            trust: keys of the owners that this site knows.
            ledger: refusals, additions and reads are appended to it.
            today: the date (UTC) that contracts are judged at; for tests.

        Raises:
            StoreError: the folder cannot be used.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise disk_error(e, root) from None
        return cls(root, site, trust, ledger, today)

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
            name: of the data set.
            embodiment: whose channels are read.
            signed: the owner's contract.
            path: file or folder.
            options: what people told about the logs.
            seen: called with the facts of each episode, in order.
            progress: called with what is being done and how many episodes of it are done.
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
        signed = self._gate.require_any(signed, name, "", embodiment.owner)
        work = self.root / "staging" / name
        with self._locked(name):
            self._refresh()
            stored = self._stored(name) if name in self._sets or name in self.problems else None
            try:
                # the workers are gone before anything is removed: a late one would make its folder again
                with working(workers) as mapper:
                    entries = fill(work, mapper)
                    if stored is None:
                        target = Target(work, name, embodiment, signed, self.site.name)
                        digest = write_stored(target, entries, mapper, progress)
                        self._gate.accept(signed, name, digest, embodiment.owner)
                        # before it is there, so that nothing is there that the ledger does not know
                        self._gate.note("add", name, signed, {"digest": digest, "episodes": len(entries)})
                        self._publish(work, name)
            except (LogError, ConfigError, Refused):
                # the input itself is refused: nothing of it stays here
                shutil.rmtree(work, ignore_errors=True)
                raise
            except OSError as e:
                raise disk_error(e, work) from None
            shutil.rmtree(work, ignore_errors=True)
            if stored is not None:
                refuse_other(stored, embodiment, [e.content for e in entries], self._contracts.get(name), signed)
        return self.record(name)

    def renew(self, name: str, signed: SignedContract) -> DatasetRecord:
        """Put a newer contract of the same owner beside a data set.

        Raises:
            Refused: it is of another owner, for other data, expired, or not for this site.
            StoreError: there is no such data set.
        """
        stored = self._stored(name)
        digest = str(stored.record["digest"])
        with self._locked(name):
            self._gate.accept(signed, name, digest, stored.embodiment().owner)
            self._gate.note("renew", name, signed, {"digest": digest})
            put_contract(stored.folder / OURS, signed)
            self._refresh()
        return self.record(name)

    def ls(self) -> tuple[DatasetRecord, ...]:
        """Records of all data sets, by name. Needs no permission: nothing of the data is shown."""
        return tuple(self._record(stored) for _, stored in sorted(self._sets.items()))

    def unfinished(self) -> tuple[str, ...]:
        """Names of data sets whose `add` was interrupted; adding them again goes on."""
        return tuple(sorted(p.name for p in (self.root / "staging").glob("*/") if p.name not in self._sets))

    def contract(self, name: str) -> SignedContract:
        """The owner's contract of a data set, verified when the catalog was opened.

        Raises:
            StoreError: no such data set; ContractError: its contract does not verify.
        """
        self._stored(name)
        if name not in self._contracts:
            raise self.problems[name]
        return self._contracts[name]

    def record(self, name: str) -> DatasetRecord:
        """The record of one data set.

        Raises:
            StoreError: there is none; CorruptError: it is damaged.
        """
        return self._record(self._stored(name))

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
        return self._gate.decide(self._contracts.get(name), name, str(record["digest"]), str(record["owner"]), purpose)

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
        signed, digest = self._contracts[name], str(stored.record["digest"])
        self._gate.require(signed, name, digest, str(stored.record["owner"]), purpose)
        self._gate.note("read", name, signed, {"purpose": purpose, "digest": digest})

    def note(self, kind: str, name: str, body: Mapping[str, Any]) -> None:
        """Write down in the ledger what was done with a data set, under which contract."""
        self._gate.note(kind, name, self._contracts.get(name), body)

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
            path = f"{OURS}/stats.npz"
            parts.append(unpack_sketches(self._stored(one).bytes(path), str(self._stored(one).folder / path)))
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

        Raises:
            CorruptError: a file is missing or differs; names it.
            ContractError: the contract is not signed by the owner.
        """
        stored = self._stored(name)
        count = stored.verify()
        load_contract(stored.folder / OURS / "contract.toml", self.trust)
        self._caches.verify(stored)
        return count

    def _stored(self, name: str) -> StoredSet:
        if name in self._sets:
            return self._sets[name]
        if name in self.problems:
            raise self.problems[name]
        known = ", ".join(sorted(self._sets)) or "none"
        raise StoreError(f"no data set {name!r}", where=str(self.root), next_step=f"there are: {known}")

    def _publish(self, work: Path, name: str) -> None:
        """Renames only: the set first, since the cache can be built again from it."""
        sets = self.root / "sets"
        sets.mkdir(exist_ok=True)
        (work / "set").rename(sets / name)
        sync_folder(sets)
        self._refresh()
        self._caches.put(self._stored(name), work / "columns")

    def _refresh(self) -> None:
        """Read the folders and verify contracts. The folders are all there is: nothing beside them can be wrong."""
        self._sets, self._contracts, self.problems = {}, {}, {}
        for folder in sorted((self.root / "sets").glob("*/")):
            name = folder.name
            try:
                self._sets[name] = StoredSet(folder)
                self._contracts[name] = load_contract(folder / OURS / "contract.toml", self.trust)
            except (StoreError, ContractError, ConfigError) as e:
                self.problems[name] = e

    def _record(self, stored: StoredSet) -> DatasetRecord:
        r, name = stored.record, stored.folder.name
        contract = self._contracts[name].digest if name in self._contracts else ""
        path = stored.folder / OURS / "contract.toml"
        kept = (r["embodiment"], r["owner"], r["episodes"], r["steps"], r["seconds"], r["digest"])
        return DatasetRecord(name, *kept, contract, path, r["findings"], r.get("site", ""))

    def _locked(self, name: str) -> AbstractContextManager[None]:
        """One writer of a data set at a time; others are read and brought in meanwhile."""
        return locked(self.root / ".locks" / f"{name}.set")
