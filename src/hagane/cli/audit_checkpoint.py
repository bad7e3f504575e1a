"""A checkpoint on disk, as an auditor reads it: without torch, every byte compared with its digest."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from hagane.terms import CheckpointError, CorruptError, digest_bytes, digest_file, digest_value
from hagane.terms.ownership import owner_of

_LONGEST_HEADER = 100 << 20


@dataclass(frozen=True)
class TensorPlace:
    """One tensor of a checkpoint, and whose it is."""

    name: str
    """Name on disk."""
    owner: str
    """Member that owns it, "consortium" for the anchor; "" when nobody can be named."""
    numbers: int
    """Numbers in it, over all its parts."""
    problem: str
    """Why nobody can be named, or who disagrees; "" when all is well."""


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


def tensors_of(folder: Path) -> tuple[TensorPlace, ...]:
    """Every served tensor of a checkpoint with its owner, by name: as the model's names say it, and as the file's does.

    A tensor with no owner, or with two, is given too, with its problem: none is passed over.

    Raises:
        CheckpointError: a file is no safetensors file, or model.toml cannot be read.
    """
    machines, members = _machines(folder)
    numbers: dict[str, int] = {}
    holders: dict[str, set[str]] = {}
    weights = folder / "weights" if (folder / "weights").is_dir() else folder
    for path in sorted(weights.glob("*.safetensors")):
        for name, size in _header(path).items():
            numbers[name] = numbers.get(name, 0) + size
            holders.setdefault(name, set()).add(path.name.split(".")[0])
    out = []
    for name in sorted(numbers):
        owner, files, problem = owner_of(name, machines, members), sorted(holders[name]), ""
        if not owner:
            problem = "its name is none that this model has: no owner is known"
        elif files != [owner]:
            problem = f"its name says {owner}, its file {', '.join(files)}"
        out.append(TensorPlace(name, owner, numbers[name], problem))
    return tuple(out)


def _machines(folder: Path) -> tuple[Mapping[str, str], frozenset[str]]:
    """Owner by machine, and owners of experts, from model.toml."""
    path = folder / "model.toml"
    try:
        table = tomllib.loads(path.read_text("utf-8"))
        machines = {str(e["name"]): str(e["owner"]) for e in table.get("embodiments", [])}
        return machines, frozenset(map(str, table.get("experts", {})))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise CheckpointError(f"the model's shape cannot be read: {e}", where=str(path)) from None


def _header(path: Path) -> dict[str, int]:
    """Tensor to its numbers, from a safetensors file's header."""
    try:
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if length > _LONGEST_HEADER:
                raise ValueError
            header = json.loads(f.read(length))
        return {name: prod(t["shape"]) for name, t in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError):
        raise CheckpointError("not a safetensors file", where=str(path)) from None


def contracts_in(folder: Path) -> dict[str, Path]:
    """Contract files below a folder, by the sha256 of their bytes."""
    return {digest_bytes(p.read_bytes()): p for p in sorted(folder.rglob("*.toml"))}
