"""`hagane release`: weights that leave: checked by the export gate, signed by their owners, noted in the ledger."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hagane.cli.handed import handed, write_shape
from hagane.cli.sealed_run import sealed_run_at
from hagane.cli.site import ledger_of, site_of
from hagane.cli.witnessing import demand_witnessed
from hagane.seal import TrustStore, load_private
from hagane.seal.release import Expected, Gate, Passed, Rounding, pass_tensors
from hagane.seal.release_claims import MOST_BYTES, lineage_of, membership_of
from hagane.seal.release_record import RELEASE, check_release, digest_of, sign_release
from hagane.terms import CheckpointError, ConfigError, HaganeError, digest_file

Place = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class Make:
    """Let weights leave: check them against a list from outside, write them again, sign, note it in the ledger.

    Nothing in SOURCE is believed. What is refused is noted too, and nothing of it is left.
    """

    source: Place
    """Folder that `hagane export` wrote, or one safetensors file."""
    out: Path
    """Folder to make."""
    model: Path
    """model.toml with the shape of the weights; not one from inside SOURCE."""
    home: Path
    """The site's folder: its trust/ holds the owners' public keys, its ledger is written."""
    key: tuple[str, ...]
    """OWNER=KEY.pem for every owner whose weights leave."""
    only: tuple[str, ...] = ()
    """Only the parts of these owners leave: a bundle, which serves no machine by itself."""
    anchor: Path | None = None
    """Plain safetensors of the anchor: the consortium's parts must equal it to the bit."""
    budget_mib: float = 0.0
    """Most MiB of weights that may leave; 0 for what the model comes to."""
    round: Rounding = "none"
    """bf16 rounds what is not the anchor's: half the bits for anything hidden in them."""
    membership: Path | None = None
    """Figures of `hagane release membership`, to put in the record."""


@dataclass(frozen=True)
class Check:
    """Check weights that came from somebody: signatures of all owners, and every byte."""

    folder: Place
    """A released folder."""
    trust: Path
    """Folder of the owners' public keys."""


@dataclass(frozen=True)
class ShapeArgs:
    """Write the shape of a sealed run's weights for a person to read; then it may say what leaves (--model)."""

    run: Place
    """The run's folder."""
    out: Path
    """The TOML file to write."""
    home: Path = Path()
    """The site's folder."""


def make(argv: list[str]) -> int:
    """Run `hagane release make`; weights of a sealed run are written out in a jail first."""
    o = tyro.cli(Make, args=argv, prog="hagane release make")
    run = sealed_run_at(o.source)
    if run is None:
        return _make(o)
    with handed(["export", str(o.source)], "--out", o.home, run, "export") as weights:
        return _make(replace(o, source=weights))


def shape(argv: list[str]) -> int:
    """Run `hagane release shape`."""
    o = tyro.cli(ShapeArgs, args=argv, prog="hagane release shape")
    print(f"{o.out}: {write_shape(o.run, o.home, o.out)}")
    print("  read it: what it lists may leave with `hagane release make --model`")
    return 0


def _make(o: Make) -> int:
    site = site_of(o.home)
    ledger = ledger_of(o.home)
    about = {"what": "weights", "site": site.name, "out": o.out.name}
    try:
        print(f"  {demand_witnessed(o.home)}")
        if o.out.exists():
            raise CheckpointError("is there already", where=str(o.out), next_step="choose another --out")
        with _making(o.out) as making:
            passed, facts = _let_out(o, making)
            # noted before it is there: what the ledger does not know has not left
            index = ledger.append("export", {**about, "allowed": True, **facts})
            making.rename(o.out)
    except HaganeError as e:
        ledger.append("export", {**about, "allowed": False, "reason": e.what})
        raise
    print(f"{o.out}: {passed.size / 2**20:,.1f} MiB in {len(passed.files)} files of weights, ledger entry {index}")
    print(f"  signed by {', '.join(facts['owners'])}; {passed.frozen:,} of {passed.numbers:,} numbers are the anchor's")
    print(f"  the others could carry {passed.free_bits:,} bits and seem to tell {passed.told_bits:,}")
    return 0


def check(argv: list[str]) -> int:
    """Run `hagane release check`."""
    o = tyro.cli(Check, args=argv, prog="hagane release check")
    release = check_release(o.folder, TrustStore(o.trust))
    facts = release.facts
    print(f"{o.folder}: {len(release.files)} files as released, signed by {', '.join(release.owners)}")
    print(f"  statement {release.digest}")
    for key in ("numbers", "frozen_numbers", "rounding", "free_bits", "told_bits"):
        print(f"  {key:<15} {facts[key]}")
    for row in (facts["membership"] or {}).get("rows", ()):
        print(f"  membership      {row['dataset']}, {row['attack']}: AUC {row['auc']} [{row['low']}, {row['high']}]")
    if facts["membership"] is None:
        print("  membership      not checked")
    print(f"  not excluded: {facts['cannot_exclude']}")
    return 0


def membership(argv: list[str]) -> int:
    """Run `hagane release membership`."""
    from hagane.cli.release_membership import main as measure

    return measure(argv)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "shape": shape,
    "membership": membership,
    "make": make,
    "check": check,
}


def main(argv: list[str]) -> int:
    """Run `hagane release VERB ...`."""
    if argv and argv[0] in VERBS:
        return VERBS[argv[0]](argv[1:])
    usage = f"usage: hagane release {'|'.join(VERBS)} [options]   (--help after one of them)"
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    print(f"hagane release: no verb {argv[0]!r}\n{usage}", file=sys.stderr)
    return 2


@contextmanager
def _making(out: Path) -> Any:
    """An empty folder beside `out`; gone again after an error."""
    making = out.with_name(f".making-{out.name}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        yield making
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _let_out(o: Make, making: Path) -> tuple[Passed, dict[str, Any]]:
    """Check, write and sign into a folder; what passed, and the ledger's facts."""
    if o.source.resolve() in o.model.resolve().parents:
        raise ConfigError(
            "the list of what may leave has to come from outside",
            where=str(o.model),
            next_step="give --model a model.toml of your own: the one that the run was started with",
        )
    expected, stay = expected_of(o.model, o.only)
    gate = Gate(expected, stay, o.anchor, int(o.budget_mib * 2**20), o.round)
    keys, trust = _keys(o.key), TrustStore(o.home / "trust")
    passed = pass_tensors(o.source, making, gate)
    lineage = lineage_of(_read(o.source / "manifest.json")) if o.source.is_dir() else None
    membership = membership_of(_read(o.membership)) if o.membership else None
    if membership and (lineage is None or membership["checkpoint"] != lineage["checkpoint"]):
        raise ConfigError("these membership figures are about other weights", where=str(o.membership))
    if lineage and not o.only:
        _finish(making, o.model, passed, lineage)
    files = {p.name: digest_file(p) for p in sorted(making.iterdir())}
    statement = sign_release(files, passed, gate, keys, trust, lineage=lineage, membership=membership)
    (making / RELEASE).write_bytes(statement)
    check_release(making, trust)
    owners = sorted({e.owner for e in gate.expected})
    facts = {
        "owners": owners,
        "statement_sha256": digest_of(statement),
        "size_bytes": passed.size,
        "rounding": gate.rounding,
    }
    return passed, {**facts, "free_bits": passed.free_bits, "lineage": lineage, "membership": membership}


def expected_of(model_toml: Path, only: tuple[str, ...] = ()) -> tuple[tuple[Expected, ...], tuple[str, ...]]:
    """The tensors of a model as a policy loads them that leave, and the names of those that stay.

    Args:
        model_toml: shape of the weights.
        only: owners whose tensors leave; empty for all.

    Raises:
        ConfigError: no such configuration, or an owner that has no part in it.
    """
    from hagane.model import ModelConfig
    from hagane.model.export import exported_tensors
    from hagane.terms import load_toml

    expected = tuple(Expected(*about) for about in exported_tensors(load_toml(model_toml, ModelConfig)))
    if unknown := set(only) - {e.owner for e in expected}:
        raise ConfigError(f"{sorted(unknown)[0]!r} has no part in this model", where=str(model_toml))
    stay = tuple(e.name for e in expected if only and e.owner not in only)
    return tuple(e for e in expected if not only or e.owner in only), stay


def _finish(making: Path, model_toml: Path, passed: Passed, lineage: Mapping[str, Any]) -> None:
    """What makes the folder a checkpoint that serves: shape, index and a manifest of the gate's own."""
    from hagane.model.export import finished
    from hagane.model.weights import INDEX, Manifest
    from hagane.terms import RunRecord

    shutil.copyfile(model_toml, making / "model.toml")
    text = json.dumps({"metadata": {"total_size": passed.size}, "weight_map": passed.places}, indent=1, sort_keys=True)
    (making / INDEX).write_text(text, "utf-8")
    tables = {key: lineage[key] for key in ("datasets", "contracts", "owners")}
    digests = {key: lineage[key] for key in ("config_digest", "code_digest")}
    record = RunRecord(lineage["run"], **digests, **tables, seed=lineage["seed"], steps=lineage["steps"])
    finished(making, Manifest(lineage["checkpoint"], lineage["step"], {}, record, {}))


def _keys(words: tuple[str, ...]) -> dict[str, Ed25519PrivateKey]:
    if odd := [w for w in words if "=" not in w]:
        raise ConfigError(f"{odd[0]!a} is not OWNER=KEY.pem", where="--key")
    return {owner: load_private(Path(path)) for owner, path in (w.split("=", 1) for w in words)}


def _read(path: Path) -> bytes:
    """A small file that somebody else wrote.

    Raises:
        ConfigError: none, or too long.
    """
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise ConfigError("no file of a size that is read here", where=str(path))
    return path.read_bytes()
