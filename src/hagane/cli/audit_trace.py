"""`hagane audit trace ACTION|CHECKPOINT|MACHINE`: from what a machine did back to the owners of the data behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from hagane.cli.audit_books import Books, Where, open_books
from hagane.cli.audit_checkpoint import TensorPlace, contracts_in, find_checkpoint, read_manifest, tensors_of
from hagane.cli.audit_page import Page, print_evidence, served_actions, when
from hagane.cli.recorded import Action, read_recording
from hagane.seal import Ledger, SignedContract, TrustStore, is_digest, is_name, load_contract
from hagane.seal.lineage import checkpoint_in
from hagane.terms import ConfigError, ContractError, HaganeError


@dataclass(frozen=True)
class Trace(Where):
    """From an action, a checkpoint or a machine to the run, the data sets, their owners and contracts.

    Exit code 1 when the chain does not join somewhere: each place is printed as a PROBLEM.
    """

    what: Annotated[str, tyro.conf.Positional] = ""
    """FILE.mcap@SECONDS for one action, FILE.mcap for all of a recording; a checkpoint's or run's folder, or the id of
    a checkpoint; the name of a machine."""
    home: Path | None = None  # type: ignore[assignment]
    """The site's folder; its ledger, trust/ and contracts are used."""
    contracts: Path | None = None
    """Folder with the contracts' TOML files, where it is not the site's."""
    trust: Path | None = None
    """Folder of the owners' public keys, where it is not the site's."""
    ledger: Path | None = None
    """Ledger in which to look the checkpoint and the contracts up, where there is no site's folder."""
    tensors: bool = False
    """List every tensor with its owner."""
    json: Path | None = None
    """File for the inclusion proofs, which anybody can check."""


def trace(argv: list[str]) -> int:
    """Run `hagane audit trace`."""
    o = tyro.cli(Trace, args=argv, prog="hagane audit trace")
    books = (
        open_books(Where(o.home, o.site_key, o.heads, o.witness_keys, o.quorum))
        if o.home is not None and (o.home / "ledger.jsonl").is_file() and (o.home / "site.toml").is_file()
        else None
    )
    page, name, (file, at, seconds) = Page(), o.what, o.what.rpartition("@")
    used: list[int] = []
    if name.endswith(".mcap") or (at and file.endswith(".mcap")):
        used = _trace_recording(page, _need(books), Path(file if at and file else name), seconds if at and file else "")
    elif Path(name).is_dir():
        used = _trace_folder(page, o, books, Path(name))
    elif is_digest(name):
        used = trace_checkpoint(page, _need(books), name)
    elif is_name(name) and any(e.body.get("machine") == name for e in _need(books).lineage.deployments):
        used = _trace_machine(page, _need(books), name)
    else:
        raise ConfigError(
            f"{name!a} is no recording, no checkpoint, and no machine that this site knows",
            where="hagane audit trace",
            next_step="give FILE.mcap@SECONDS, a checkpoint's folder or id, or a machine's name",
        )
    if books is not None:
        print_evidence(books, used, o.json, page)
    print("This is what was recorded; it rests on the honesty of the site that recorded it.")
    return int(page.problems > 0)


def trace_checkpoint(page: Page, books: Books, checkpoint: str, own: Mapping[str, Any] | None = None) -> list[int]:
    """Print the runs behind a checkpoint, their data sets, owners and contracts; returns the entries used.

    Args:
        page: takes the lines.
        books: the site's.
        checkpoint: its id.
        own: the run's record inside the checkpoint, where it is at hand; it must agree with the ledger.
    """
    runs, broken = books.lineage.behind(checkpoint)
    used: list[int] = []
    stated = {name: sorted({*run.stated, *run.read}) for name, run in runs.items()}
    page.facts |= {"checkpoint": checkpoint, "runs": stated}
    for at, why in broken.items():
        page.problem(f"checkpoint {at[:16] or '(not told)'}: {why}")
    for position, run in enumerate(runs.values()):
        page.say("run", f"{run.name}{'' if not position else ', which the one above started from'}")
        used += [*run.begun, *run.checkpoints.values(), *run.begun_from.values()]
        for name in sorted({*run.stated, *run.read}):
            used += [*run.stated.get(name, ()), *run.read.get(name, ())]
            _print_set(page, books, name, run.stated.get(name, run.read.get(name, [])))
        for name in run.unstated():
            page.problem(f"{name!r} was read (entry {run.read[name][0]}), and the run's record does not name it")
        if position == 0 and own is not None:
            for name in sorted(set(run.stated) ^ set(own.get("datasets", {}))):
                page.problem(f"{name!r} is named by {'the ledger' if name in run.stated else 'the checkpoint'} alone")
    return used


def _trace_recording(page: Page, books: Books, path: Path, seconds: str) -> list[int]:
    made = read_recording(path)
    try:
        action = made.at(float(seconds)) if seconds else None
    except ValueError:
        raise ConfigError(f"{seconds!a} is no time in seconds", where=str(path), next_step="write FILE@12.5") from None
    page.facts |= {"recording": path.name, "root": made.root, "machine": made.machine}
    page.say("recording", f"{path}, machine {made.machine}, {made.messages} messages, root {made.root}")
    if action is not None:
        _print_action(page, action)
    entries, problems = served_actions(books, made)
    for text in problems:
        page.problem(text)
    for entry in entries:
        limits = entry.body.get("envelope_sha256")
        more = f", limits {limits}" if limits else ""
        page.say("ledger", f"entry {entry.index}, {entry.kind}, {when(entry)}{more}")
    page.say("checkpoint", made.checkpoint or "(the server told none)")
    used = [e.index for e in entries] + trace_checkpoint(page, books, made.checkpoint)
    count = 1 if action is not None else len(made.actions)
    page.facts |= {"actions": count, "traced": 0 if page.problems else count}
    page.say("traced", f"{page.facts['traced']} of {count} actions")
    return used


def _print_action(page: Page, action: Action) -> None:
    page.facts |= {"time_s": action.time_ns / 1e9, "values": action.values}
    page.say("action", f"at {action.time_ns / 1e9:g} s, guard {action.state or 'not recorded'}")
    for name, values in action.values.items():
        page.say(f"  {name}", ", ".join("none" if v is None else f"{v:.6g}" for v in values))
    for words in action.changed:
        page.say("  guard", words)


def _trace_machine(page: Page, books: Books, machine: str) -> list[int]:
    used: list[int] = []
    for entry in books.lineage.deployments:
        if entry.body.get("machine") != machine:
            continue
        used.append(entry.index)
        checkpoint = checkpoint_in(entry)
        run = books.lineage.run_of(checkpoint)
        page.say(
            "deployment", f"{when(entry)}, entry {entry.index}: checkpoint {checkpoint or '(the server told none)'}"
        )
        limits = str(entry.body.get("envelope_sha256") or "")
        page.say("  limits", limits or "those of the machine's own guard; its drive notes them")
        if run is None:
            page.problem("no entry says which run made this checkpoint")
            continue
        names = sorted({*run.stated, *run.read})
        page.say("  run", f"{run.name}: {', '.join(names)}")
        used += run.begun
    for entry in books.lineage.recordings:
        if entry.body.get("machine") == machine:
            used.append(entry.index)
            page.say("recording", f"{when(entry)}, entry {entry.index}: root {entry.body.get('root_sha256')!s:.64}")
    return used


def _trace_folder(page: Page, o: Trace, books: Books | None, place: Path) -> list[int]:
    """A checkpoint on disk, or, of a run that lies sealed, what stands open beside it."""
    if (place / "lineage.json").is_file():
        return _trace_sealed(page, _need(books), place)
    folder = find_checkpoint(place)
    manifest = read_manifest(folder)
    record = manifest["record"]
    page.say("checkpoint", str(folder))
    page.say("  id", manifest["id"])
    page.say("  files", f"{len(manifest['files'])}, every sha256 as recorded")
    print_tensors(page, tensors_of(folder), record, every=o.tensors)
    page.say("run", f"{record.get('id', '?')}, {record.get('steps', '?')} steps, seed {record.get('seed', '?')}")
    page.say("  config", str(record.get("config_digest", "?")))
    page.say("  code", str(record.get("code_digest", "?")))
    for name, version in sorted(record.get("environment", {}).items()):
        page.say(f"  {name}", str(version))
    if books is not None:
        return trace_checkpoint(page, books, str(manifest["id"]), record)
    _print_record(page, o, record)
    return []


def _trace_sealed(page: Page, books: Books, place: Path) -> list[int]:
    from hagane.seal.folder import check_folder
    from hagane.terms import digest_file

    used: list[int] = []
    for sealed in sorted((place / "sealed").glob("step-*")):
        check_folder(sealed)
        page.say("checkpoint", f"{sealed}, sealed: its tensors are named by whoever holds the key")
        used += trace_checkpoint(page, books, digest_file(sealed / "sealed.json"))
    if not used:
        page.problem("no sealed checkpoint of this run is in the ledger")
    return used


def print_tensors(page: Page, found: tuple[TensorPlace, ...], record: Mapping[str, Any], *, every: bool) -> None:
    """Print whose the tensors are. All of a run's data may be in every tensor that it trained: experts are parted by
    owner, gradients of what they share are not."""
    made = f"run {record.get('id', '?')} from {', '.join(sorted(record.get('datasets', {}))) or 'no data set'}"
    for owner in sorted({t.owner for t in found if t.owner}):
        mine = [t for t in found if t.owner == owner]
        page.say("  weights", f"{owner}: {len(mine)} tensors, {sum(t.numbers for t in mine):,} numbers, {made}")
    for t in found if every else ():
        page.say("  tensor", f"{t.name}  owner {t.owner or '?'}  {t.numbers:,} numbers, {made}")
    for t in found:
        if t.problem:
            page.problem(f"tensor {t.name[:80]!a}: {t.problem}")
    page.say("  traced", f"{sum(not t.problem for t in found)} of {len(found)} tensors")


def _print_set(page: Page, books: Books, name: str, entries: list[int]) -> None:
    one = books.lineage.sets.get(name)
    digests = {
        e.body.get("contract") or e.body.get("contract_sha256") for e in (one.of("add", "renew", "read") if one else ())
    }
    known = [(d, books.contracts.get(d)) for d in sorted(str(d) for d in digests if d)]
    page.say("data set", f"{name}, entries {', '.join(map(str, entries[:4]))}")
    for content in sorted(one.contents)[:3] if one else ():
        page.say("  content", content)
    for digest, signed in known:
        page.say("  contract", digest)
        if isinstance(signed, SignedContract):
            c = signed.contract
            page.say("  signed", f"by {c.owner}; until {c.until}; {', '.join(c.purposes)}")
            if name not in c.datasets:
                page.problem("this contract is not about this data set")
        elif signed is None:
            page.say("  terms", "not at hand")
        else:
            page.problem(f"the contract does not count: {signed.what}")
    if not known:
        page.problem(f"no entry names a contract of {name!r}")


def _print_record(page: Page, o: Trace, record: Mapping[str, Any]) -> None:
    """What the checkpoint says of itself, where there are no site's books."""
    entries = list(Ledger(o.ledger).entries()) if o.ledger else []
    folder, trust = o.contracts or _part(o.home, "catalog"), o.trust or _part(o.home, "trust")
    known = contracts_in(folder) if folder else {}
    for name, digest in sorted(record.get("datasets", {}).items()):
        owner, contract = record.get("owners", {}).get(name, "?"), record.get("contracts", {}).get(name, "?")
        page.say("data set", f"{name}, owner {owner}")
        page.say("  content", str(digest))
        page.say("  contract", str(contract))
        path = known.get(contract)
        if path is None:
            page.say("  terms", f"not at hand{'' if folder else ' (give --contracts DIR)'}")
        elif trust is None:
            page.say("  signed", "not checked (give --trust DIR)")
        else:
            _print_terms(page, path, TrustStore(trust), owner, name)
        for entry in [e for e in entries if contract in json.dumps(dict(e.body))][:3]:
            page.say("  ledger", f"entry {entry.index}, {entry.kind}")


def _print_terms(page: Page, path: Path, trust: TrustStore, owner: str, dataset: str) -> None:
    try:
        contract = load_contract(path, trust).contract
    except ContractError as e:
        page.say("  signed", f"NO: {e.what}")
        page.problems += 1
        return
    page.say("  signed", f"by {contract.owner}; until {contract.until}; {', '.join(contract.purposes)}")
    if contract.owner != owner or dataset not in contract.datasets:
        page.problem("this contract is not about this data set of this owner")


def _part(home: Path | None, name: str) -> Path | None:
    return home / name if home is not None and (home / name).exists() else None


def _need(books: Books | None) -> Books:
    if books is None:
        raise HaganeError("this needs a site's ledger", where="hagane audit trace", next_step="give --home SITE")
    return books
