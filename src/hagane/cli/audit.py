"""`hagane audit`: the ledger (audit_ledger.py); trace a checkpoint to its run, data sets, owners and contracts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Annotated, Any

import tyro

from hagane.cli.audit_ledger import head, verify, witness
from hagane.seal import Entry, Ledger, SignedContract, TrustStore, load_contract
from hagane.terms import (
    CheckpointError,
    ContractError,
    CorruptError,
    digest_bytes,
    digest_file,
    digest_value,
)

Place = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class Trace:
    """From a checkpoint to the run, the data sets, their owners and contracts. Every file's sha256 is checked."""

    checkpoint: Place
    """A checkpoint's folder, or a run's folder for its newest one."""
    contracts: Path | None = None
    """Folder with the contracts' TOML files, to print their terms."""
    trust: Path | None = None
    """Folder of the owners' public keys, to check the contracts' signatures."""
    ledger: Path | None = None
    """Ledger in which to look the checkpoint and the contracts up."""
    home: Path | None = None
    """A site's folder: its catalog/, trust/ and ledger.jsonl stand for the three above."""

    def completed(self) -> Trace:
        """With the parts of `home` that are there in the places left empty."""
        if self.home is None:
            return self
        parts = {"contracts": "catalog", "trust": "trust", "ledger": "ledger.jsonl"}
        empty = {k: self.home / p for k, p in parts.items() if getattr(self, k) is None and (self.home / p).exists()}
        return replace(self, **empty)


def trace(argv: list[str]) -> int:
    """Run `hagane audit trace`."""
    o = tyro.cli(Trace, args=argv, prog="hagane audit trace").completed()
    folder = find_checkpoint(o.checkpoint)
    manifest = read_manifest(folder)
    record = manifest["record"]
    entries = list(Ledger(o.ledger).entries()) if o.ledger else []
    known = contracts_in(o.contracts) if o.contracts else {}
    print(f"checkpoint  {folder}")
    print(f"  id        {manifest['id']}")
    print(f"  files     {len(manifest['files'])}, every sha256 as recorded")
    for owner, (tensors, numbers) in sorted(weights_by_owner(folder).items()):
        print(f"  weights   {owner}: {tensors} tensors, {numbers:,} numbers")
    _print_entries(entries, manifest["id"], o.ledger)
    print(f"run         {record.get('id', '?')}, {record.get('steps', '?')} steps, seed {record.get('seed', '?')}")
    print(f"  config    {record.get('config_digest', '?')}")
    print(f"  code      {record.get('code_digest', '?')}")
    for name, version in sorted(record.get("environment", {}).items()):
        print(f"  {name:<9} {version}")
    bad = 0
    for name, digest in sorted(record.get("datasets", {}).items()):
        owner = record.get("owners", {}).get(name, "?")
        contract = record.get("contracts", {}).get(name, "?")
        print(f"data set    {name}, owner {owner}")
        print(f"  content   {digest}")
        print(f"  contract  {contract}")
        bad += _print_contract(known.get(contract), owner, name, o)
        _print_entries(entries, contract, o.ledger)
    print("This is what the recorded run read; it rests on the honesty of the site that recorded it.")
    return int(bad > 0)


VERBS: dict[str, Callable[[list[str]], int]] = {"verify": verify, "head": head, "witness": witness, "trace": trace}


def main(argv: list[str]) -> int:
    """Run `hagane audit VERB ...`."""
    if argv and argv[0] in VERBS:
        return VERBS[argv[0]](argv[1:])
    usage = f"usage: hagane audit {'|'.join(VERBS)} [options]   (--help after one of them)"
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    print(f"hagane audit: no verb {argv[0]!r}\n{usage}", file=sys.stderr)
    return 2


def find_checkpoint(place: Path) -> Path:
    """The folder that holds a manifest: the place itself, or the newest checkpoint of a run.

    Raises:
        CheckpointError: there is none.
    """
    found = [place, *sorted((place / "checkpoints").glob("step-*"), reverse=True)]
    for folder in found:
        if (folder / "manifest.json").is_file():
            return folder
    raise CheckpointError(
        "no complete checkpoint here", where=str(place), next_step="name runs/<id> or runs/<id>/checkpoints/step-..."
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest, after every file and the manifest itself were compared with their digests.

    It is read here without torch, so that an auditor needs none.

    Raises:
        CheckpointError: the manifest is no manifest.
        CorruptError: a file is missing or differs, or the manifest was changed.
    """
    where = str(folder / "manifest.json")
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        files, record = dict(manifest["files"]), dict(manifest["record"])
        stated = digest_value({k: v for k, v in manifest.items() if k != "id"}) == manifest["id"]
        tables = [record.get(k, {}) for k in ("datasets", "contracts", "owners", "environment")]
        if not all(isinstance(t, dict) for t in tables):
            raise TypeError("a table of the record is none")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise CheckpointError(f"the manifest cannot be read: {e}", where=where) from None
    if not stated:
        raise CorruptError("the manifest was changed", where=where, next_step="use another checkpoint")
    for name, digest in files.items():
        path = folder / name
        if not path.is_file() or digest_file(path) != digest:
            what = "differs from its sha256 in the manifest" if path.is_file() else "is missing"
            raise CorruptError(what, where=str(path), next_step="use another checkpoint, or copy this one again")
    return dict(manifest)


def weights_by_owner(folder: Path) -> dict[str, tuple[int, int]]:
    """Owner to (tensors, numbers) of the weights, from the headers of the files: see `hagane.model.weights`.

    Raises:
        CheckpointError: a file is no safetensors file.
    """
    names: dict[str, set[str]] = {}
    numbers: dict[str, int] = {}
    weights = folder / "weights" if (folder / "weights").is_dir() else folder
    for path in sorted(weights.glob("*.safetensors")):
        try:
            with path.open("rb") as f:
                header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
            shapes = {name: t["shape"] for name, t in header.items() if name != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
            raise CheckpointError("not a safetensors file", where=str(path)) from None
        owner = path.name.split(".")[0]
        names.setdefault(owner, set()).update(shapes)
        numbers[owner] = numbers.get(owner, 0) + sum(prod(s) for s in shapes.values())
    return {owner: (len(found), numbers[owner]) for owner, found in names.items()}


def contracts_in(folder: Path) -> dict[str, Path]:
    """Contract files below a folder, by the sha256 of their bytes."""
    return {digest_bytes(p.read_bytes()): p for p in sorted(folder.rglob("*.toml"))}


def _print_contract(path: Path | None, owner: str, dataset: str, o: Trace) -> int:
    """Print what the contract says; 1 when its signature or its terms do not bear the record out."""
    if path is None:
        print(f"  terms     not at hand{'' if o.contracts else ' (give --contracts DIR)'}")
        return 0
    print(f"  terms     {path}")
    if o.trust is None:
        print("  signed    not checked (give --trust DIR)")
        return 0
    try:
        signed: SignedContract = load_contract(path, TrustStore(o.trust))
    except ContractError as e:
        print(f"  signed    NO: {e.what}")
        return 1
    contract = signed.contract
    print(f"  signed    by {contract.owner}; until {contract.until}; {', '.join(contract.purposes)}")
    if contract.owner == owner and dataset in contract.datasets:
        return 0
    print("  PROBLEM   this contract is not about this data set of this owner")
    return 1


def _print_entries(entries: list[Entry], digest: str, ledger: Path | None) -> None:
    if ledger is None:
        return
    found = [e for e in entries if digest in _words(e.body)]
    for e in found[:3]:
        print(f"  ledger    entry {e.index}, {e.kind}")
    if len(found) > 3:
        print(f"  ledger    and {len(found) - 3} more")
    if not found:
        print("  ledger    no entry names it")


def _words(value: Any) -> Iterator[str]:
    """All texts inside JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _words(v)
    elif isinstance(value, list):
        for v in value:
            yield from _words(v)
