"""`hagane audit uses` and `recorded-absence`: where a data set went, and whether it is behind a checkpoint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hagane.cli.audit_books import Books, Where, open_books
from hagane.cli.audit_checkpoint import find_checkpoint, read_manifest
from hagane.cli.audit_page import print_evidence, when
from hagane.seal import Entry, is_digest
from hagane.seal.lineage import SetTrace, checkpoint_in
from hagane.terms import ConfigError, digest_file

DOES_NOT_READ = "what the ledger leaves out was done by somebody who went round hagane, or by a site that lies"


@dataclass(frozen=True)
class Uses(Where):
    """Every recorded use of a data set: reads, runs, checkpoints, exports, deployments, machines, erasure."""

    dataset: Annotated[str, tyro.conf.Positional] = ""
    """Name of the data set."""
    json: Path | None = None
    """File for the inclusion proofs."""


@dataclass(frozen=True)
class Absence(Where):
    """Whether the recorded runs behind a checkpoint read a data set.

    Exit code 0: they did not, as far as is recorded; 1: they did; 2: it cannot be said.
    """

    dataset: Annotated[str, tyro.conf.Positional] = ""
    """Name of the data set."""
    checkpoint: Annotated[str, tyro.conf.Positional] = ""
    """A checkpoint's or run's folder, or the id of a checkpoint."""
    witnessed: bool = False
    """Say nothing that does not rest on entries that other members countersigned."""
    json: Path | None = None
    """File for the inclusion proofs."""


def uses(argv: list[str]) -> int:
    """Run `hagane audit uses`."""
    o = tyro.cli(Uses, args=argv, prog="hagane audit uses")
    books = open_books(o)
    one = _known(books, o.dataset)
    used = [e.index for e in one.of(*one.entries)]
    others = sorted(books.lineage.alike(o.dataset) - {o.dataset})
    print(f"data set    {o.dataset}" + (f"; the same content also under {', '.join(others)}" if others else ""))
    for entry in one.of(*one.entries):
        print(f"{entry.kind:<11} {when(entry)}, entry {entry.index}{_detail(entry)}")
    for entry in one.loose:
        print(f"  PROBLEM   entry {entry.index}: read for training, and no run answers for it")
    down = books.lineage.descendants(o.dataset)
    for run, indices in _runs(books, one):
        print(f"run         {run}, entries {', '.join(map(str, indices[:6]))}")
        used += indices
    for checkpoint, (maker, by_way_of) in down.items():
        more = f", by way of run {by_way_of}" if by_way_of else ""
        print(f"checkpoint  {checkpoint[:16]} of run {maker.name}{more}")
        used += [*maker.begun, maker.checkpoints[checkpoint]]
    for entry in (*books.lineage.deployments, *books.lineage.exports):
        lineage = entry.body.get("lineage")
        inside = lineage.get("checkpoint") if isinstance(lineage, dict) else ""
        if checkpoint_in(entry) in down or inside in down:
            print(f"{entry.kind:<11} {when(entry)}, entry {entry.index}{_detail(entry)}")
            used.append(entry.index)
    print_evidence(books, used, o.json)
    print(f"These are the recorded uses; {DOES_NOT_READ}.")
    return 0


def recorded_absence(argv: list[str]) -> int:
    """Run `hagane audit recorded-absence`."""
    o = tyro.cli(Absence, args=argv, prog="hagane audit recorded-absence")
    if o.witnessed and o.heads is None:
        raise ConfigError("--witnessed needs --heads, --site-key and --witness-keys", where="hagane audit")
    books = open_books(o)
    checkpoint, stated = id_of(o.checkpoint)
    if o.dataset not in books.lineage.sets:
        print(f"CANNOT BE SAID: {_unknown(books, o.dataset)}")
        return 2
    names = books.lineage.alike(o.dataset)
    runs, broken = books.lineage.behind(checkpoint)
    print(f"checkpoint  {checkpoint}\nits whole recorded lineage:")
    used, present, doubts = list[int](), list[str](), [f"checkpoint {c[:16]}: {why}" for c, why in broken.items()]
    for run in runs.values():
        sources = sorted({*run.stated, *run.read})
        print(f"  run       {run.name}: {', '.join(sources) or 'no data set'}")
        used += [*run.begun, *run.checkpoints.values(), *run.begun_from.values()]
        for name in sources:
            at = sorted({*run.stated.get(name, ()), *run.read.get(name, ())})
            used += at
            if name in names:
                alias = "" if name == o.dataset else f" (the content of {o.dataset})"
                present.append(f"run {run.name} names or read {name}{alias}: entries {', '.join(map(str, at))}")
        doubts += [f"run {run.name} read {n!r}, and its record does not name it" for n in run.unstated()]
    present += [f"the checkpoint's own record names {n}" for n in sorted(names & stated)]
    loose = [e for n in names if n in books.lineage.sets for e in books.lineage.sets[n].loose]
    doubts += [f"entry {e.index} read it for {e.body['purpose']}, and names no run" for e in loose]
    used += [e.index for e in loose]
    if o.witnessed and (late := [i for i in set(used) if i >= books.covered]):
        doubts.append(f"entries {', '.join(map(str, sorted(late)[:8]))} are pending: nobody else vouches for them")
    print_evidence(books, used, o.json)
    return _verdict(books, o.dataset, present, doubts)


def _verdict(books: Books, dataset: str, present: list[str], doubts: list[str]) -> int:
    if present:
        print(f"PRESENT: {dataset} is behind this checkpoint")
        print("".join(f"  {line}\n" for line in present), end="")
        return 1
    if doubts:
        print(f"CANNOT BE SAID whether {dataset} is behind this checkpoint")
        print("".join(f"  {line}\n" for line in doubts), end="")
        return 2
    sites = ", ".join(sorted(books.lineage.sites | {books.site.name}))
    print(f"NOT RECORDED: no recorded run behind this checkpoint read {dataset}")
    print(
        f"  proved    the entries above stand in the ledger; all {books.head.size} were read, and none says otherwise"
    )
    print(f"  vouched   for the first {books.covered} entries by other members; for the rest by the site alone")
    print(f"  assumed   that {sites} recorded what they did: {DOES_NOT_READ}")
    return 0


def id_of(place: str) -> tuple[str, set[str]]:
    """Id of a checkpoint, and the data sets that its own record names, where it lies open.

    Raises:
        CheckpointError: no checkpoint there; CorruptError: it was changed.
    """
    path = Path(place)
    if is_digest(place):
        return place, set()
    if (path / "lineage.json").is_file():
        newest = sorted((path / "sealed").glob("step-*/sealed.json"))
        if newest:
            return digest_file(newest[-1]), set()
    manifest = read_manifest(find_checkpoint(path))
    return str(manifest["id"]), set(manifest["record"].get("datasets", {}))


def _known(books: Books, dataset: str) -> SetTrace:
    if dataset not in books.lineage.sets:
        raise ConfigError(_unknown(books, dataset), where=str(books.ledger.path))
    return books.lineage.sets[dataset]


def _unknown(books: Books, dataset: str) -> str:
    near = difflib.get_close_matches(dataset, books.lineage.sets, 1)
    return f"no entry names a data set {dataset[:64]!a}" + (f"; did you mean {near[0]!r}?" if near else "")


def _runs(books: Books, one: SetTrace) -> Iterable[tuple[str, list[int]]]:
    for run in books.lineage.runs.values():
        at = sorted({*run.stated.get(one.name, ()), *run.read.get(one.name, ())})
        if at:
            yield run.name, at


def _detail(entry: Entry) -> str:
    """What is worth saying of an entry, in words."""
    parts = []
    for key in ("purpose", "run", "site", "to", "machine", "reason", "file", "out", "manifest", "owner"):
        value = entry.body.get(key)
        if isinstance(value, str) and value:
            parts.append(f"{key} {value[:80]}")
    return "".join(f", {p}" for p in parts)
