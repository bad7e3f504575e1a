"""Lineage: what a site's ledger says of data sets, runs, checkpoints and machines, joined, and where it does not join.

Runs behind a keeper and runs without one write different entries ("jail" and "sealed"; "run"); both are read here. A
run's name is not unique over time: runs of one name count as one, with the sources of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hagane.seal.entry import Entry

INTO_WEIGHTS = frozenset({"anchor", "member-training", "finetune", "distil"})
"""Purposes whose reads end in weights."""
_MOST = 100_000


@dataclass
class RunTrace:
    """All that the ledger says of the runs of one name."""

    name: str
    """The run."""
    begun: list[int] = field(default_factory=list)
    """Entries that say that it began, or went on."""
    stated: dict[str, list[int]] = field(default_factory=dict)
    """Data set that it is recorded to be made of, to the entries that say so."""
    read: dict[str, list[int]] = field(default_factory=dict)
    """Data set that it read for training, to the entries that say so."""
    checkpoints: dict[str, int] = field(default_factory=dict)
    """Id of a checkpoint (of a sealed one, of its list of files) to the entry."""
    begun_from: dict[str, int] = field(default_factory=dict)
    """Id of a checkpoint that it started from, to the entry."""

    def unstated(self) -> tuple[str, ...]:
        """Data sets that it read and that its record leaves out."""
        return tuple(sorted(set(self.read) - set(self.stated)))


@dataclass
class SetTrace:
    """All that the ledger says of one data set."""

    name: str
    """The data set."""
    contents: set[str] = field(default_factory=set)
    """sha256 of what it held, from every entry that says so."""
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    """Kind to entries: add, renew, read, ask, refusal, export, left, erase, withdrawal."""
    loose: list[Entry] = field(default_factory=list)
    """Reads for training that no run answers for."""

    def of(self, *kinds: str) -> list[Entry]:
        """Entries of some kinds, in order."""
        return sorted((e for k in kinds for e in self.entries.get(k, ())), key=lambda e: e.index)


@dataclass
class Lineage:
    """A ledger, joined."""

    sets: dict[str, SetTrace] = field(default_factory=dict)
    """By name of the data set."""
    runs: dict[str, RunTrace] = field(default_factory=dict)
    """By name of the run."""
    made: dict[str, str] = field(default_factory=dict)
    """Id of a checkpoint to the run that made it."""
    deployments: list[Entry] = field(default_factory=list)
    """In the order of time."""
    recordings: list[Entry] = field(default_factory=list)
    """In the order of time."""
    exports: list[Entry] = field(default_factory=list)
    """What left, refused or not."""
    entries: dict[int, Entry] = field(default_factory=dict)
    """All that were joined, by place."""
    sites: set[str] = field(default_factory=set)
    """Sites that the entries name."""
    size: int = 0
    """Entries that were read."""

    def run_of(self, checkpoint: str) -> RunTrace | None:
        """The run that made a checkpoint; None when no entry says so."""
        return self.runs.get(self.made.get(checkpoint, ""))

    def behind(self, checkpoint: str) -> tuple[dict[str, RunTrace], dict[str, str]]:
        """Runs behind a checkpoint, its own first, then those that each started from; and what breaks the chain.

        Returns:
            (runs by name in the order in which they are met, checkpoint to why its origin is not known).
        """
        runs: dict[str, RunTrace] = {}
        broken: dict[str, str] = {}
        todo, seen = [checkpoint], set[str]()
        while todo:
            at = todo.pop(0)
            if at in seen:
                continue
            seen.add(at)
            run = self.run_of(at)
            if run is None:
                broken[at] = "no entry says which run made it"
            elif not run.begun:
                broken[at] = f"no entry says that run {run.name!r} began, with which data"
            if run is not None and run.name not in runs:
                runs[run.name] = run
                todo += list(run.begun_from)
        return runs, broken

    def alike(self, dataset: str) -> set[str]:
        """Names under which the content of a data set was ever here, its own among them."""
        contents = self.sets[dataset].contents if dataset in self.sets else set[str]()
        return {dataset} | {s.name for s in self.sets.values() if s.contents & contents}

    def descendants(self, dataset: str) -> dict[str, tuple[RunTrace, str]]:
        """Checkpoints with a data set behind them: id to (its run, the run by way of which; "" when it read itself)."""
        names, out = self.alike(dataset), dict[str, tuple[RunTrace, str]]()
        for checkpoint in self.made:
            runs, _ = self.behind(checkpoint)
            own = self.runs[self.made[checkpoint]]
            hits = [r for r in runs.values() if names & (set(r.stated) | set(r.read))]
            if hits:
                out[checkpoint] = own, "" if own in hits else hits[0].name
        return out

    def problems(self) -> list[str]:
        """Where the chain does not join, in words, each naming its entry."""
        out = []
        for run in self.runs.values():
            out += [
                f"run {run.name!r} read {n!r} (entry {run.read[n][0]}), and its record does not name it"
                for n in run.unstated()
            ]
            if not run.begun:
                out.append(f"run {run.name!r} made a checkpoint, and no entry says that it began")
        out += [
            f"entry {e.index}: {s.name!r} was read for {e.body.get('purpose')!s:.40} and no run answers for it"
            for s in self.sets.values()
            for e in s.loose
        ]
        deployed = {(str(e.body.get("machine")), checkpoint_in(e)) for e in self.deployments}
        for e in self.deployments:
            if self.run_of(checkpoint_in(e)) is None:
                out.append(f"entry {e.index}: machine {e.body.get('machine')!s:.64} runs a checkpoint of no known run")
        for e in self.recordings:
            if (str(e.body.get("machine")), checkpoint_in(e)) not in deployed:
                out.append(f"entry {e.index}: a recording of {e.body.get('machine')!s:.64} without a deployment")
        return out


def follow(entries: Iterable[Entry]) -> Lineage:
    """Join a ledger's entries. Bodies are free JSON: what has another form than ours is passed over, never trusted."""
    found = Lineage()
    for entry in entries:
        found.size += 1
        take = _TAKES.get(entry.kind)
        if entry.body.get("site") and isinstance(entry.body["site"], str):
            found.sites.add(entry.body["site"])
        if take is not None:
            found.entries[entry.index] = entry
            take(found, entry)
    for one in found.sets.values():
        one.loose = [e for e in one.of("read", "ask") if _loose(found, e)]
    return found


def checkpoint_in(entry: Entry) -> str:
    """Id of the checkpoint that an entry is about; "" when it names none."""
    value = entry.body.get("checkpoint_sha256") or entry.body.get("checkpoint")
    return value if isinstance(value, str) else ""


def _set(found: Lineage, name: Any, entry: Entry) -> None:
    if not isinstance(name, str) or not name or len(found.sets) > _MOST:
        return
    one = found.sets.setdefault(name, SetTrace(name))
    one.entries.setdefault(entry.kind, []).append(entry)
    for key in ("digest", "content_sha256"):
        value = entry.body.get(key)
        if isinstance(value, str) and len(value) == 64:
            one.contents.add(value)


def _run(found: Lineage, name: Any) -> RunTrace | None:
    if not isinstance(name, str) or not name:
        return None
    return found.runs.setdefault(name, RunTrace(name))


def _state(found: Lineage, run: RunTrace, entry: Entry, *tables: Any) -> None:
    """Data sets that an entry says a run is made of: a table by data set, or a list."""
    for table in tables:
        for name in table if isinstance(table, Mapping | list) else ():
            if isinstance(name, str):
                run.stated.setdefault(name, []).append(entry.index)
                digest = table[name] if isinstance(table, Mapping) else ""
                one = found.sets.setdefault(name, SetTrace(name))
                if isinstance(digest, str) and len(digest) == 64:
                    one.contents.add(digest)


def _take_set(found: Lineage, entry: Entry) -> None:
    body = entry.body
    names = body.get("datasets") if entry.kind == "withdrawal" else [body.get("dataset")]
    for name in names if isinstance(names, list) else ():
        _set(found, name, entry)
    if entry.kind == "read" and body.get("purpose") in INTO_WEIGHTS:
        run = _run(found, body.get("run"))
        if run is not None and isinstance(body.get("dataset"), str):
            run.read.setdefault(body["dataset"], []).append(entry.index)


def _take_run(found: Lineage, entry: Entry) -> None:
    body, run = entry.body, _run(found, entry.body.get("run"))
    if run is None:
        return
    run.begun.append(entry.index)
    _state(found, run, entry, body.get("datasets_sha256"))
    began = body.get("begun_from_sha256")
    for checkpoint in began.values() if isinstance(began, Mapping) else ():
        run.begun_from.setdefault(str(checkpoint), entry.index)


def _take_jail(found: Lineage, entry: Entry) -> None:
    """A keeper's run: the jail could open these data sets, and no others; what it made is named."""
    makes = entry.body.get("makes")
    for name in makes if isinstance(makes, list) else ():
        run = _run(found, name)
        if run is not None and entry.body.get("purpose") in INTO_WEIGHTS:
            run.begun.append(entry.index)
            _state(found, run, entry, list(_names(entry.body.get("contracts"))))


def _take_checkpoint(found: Lineage, entry: Entry) -> None:
    run, checkpoint = _run(found, entry.body.get("run")), checkpoint_in(entry) or entry.body.get("list")
    if run is None or not isinstance(checkpoint, str) or entry.body.get("folder") == "rest":
        return  # what a run leaves beside its checkpoints holds no weights
    run.checkpoints.setdefault(checkpoint, entry.index)
    found.made.setdefault(checkpoint, run.name)
    _state(found, run, entry, entry.body.get("datasets"))


def _take_mixture(found: Lineage, entry: Entry) -> None:
    run = _run(found, entry.body.get("run"))
    if run is not None:
        _state(found, run, entry, entry.body.get("datasets"))


def _take_export(found: Lineage, entry: Entry) -> None:
    found.exports.append(entry)
    lineage = entry.body.get("lineage")
    tables = [entry.body.get("contracts_sha256"), lineage.get("datasets") if isinstance(lineage, Mapping) else None]
    for name in {*_names(tables[0]), *_names(tables[1]), entry.body.get("dataset")}:
        _set(found, name, entry)


def _take_left(found: Lineage, entry: Entry) -> None:
    found.exports.append(entry)
    _set(found, entry.body.get("dataset"), entry)


def _names(table: Any) -> Iterable[str]:
    return [n for n in table if isinstance(n, str)] if isinstance(table, Mapping | list) else ()


def _loose(found: Lineage, entry: Entry) -> bool:
    """A read for training that names no run, and that no jail for the same purpose and data set accounts for."""
    body = entry.body
    if body.get("purpose") not in INTO_WEIGHTS or (entry.kind == "read" and body.get("run")):
        return False
    jails = (e for e in found.entries.values() if e.kind == "jail" and e.body.get("purpose") == body["purpose"])
    # the keeper asks before it starts the jail, code in the jail after
    later = entry.kind == "read"
    return not any(
        body.get("dataset") in list(_names(e.body.get("contracts"))) and (e.index > entry.index) == later for e in jails
    )


_TAKES: dict[str, Callable[[Lineage, Entry], None]] = {
    **dict.fromkeys(("add", "renew", "read", "ask", "refusal", "erase", "withdrawal"), _take_set),
    "run": _take_run,
    "jail": _take_jail,
    "checkpoint": _take_checkpoint,
    "sealed": _take_checkpoint,
    "mixture": _take_mixture,
    "export": _take_export,
    "left": _take_left,
    "deployment": lambda found, entry: found.deployments.append(entry),
    "recording": lambda found, entry: found.recordings.append(entry),
}
