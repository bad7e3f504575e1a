"""Weights on disk: a checkpoint folder read back, every byte compared with its sha256 first.

step-000600/
    model.toml                                   shape of the weights (ModelConfig)
    weights/<owner>.r00000.0.safetensors         learning weights: files by owner and by the rank that wrote them
    served/<owner>.r00000.0.safetensors          averaged weights and buffers: what a policy loads
    moments/<owner>.r00000.0.safetensors         optimiser state, a name being <kind>/<weight>
    manifest.json                                step, data cursor, layout, run record, digests: written last

A tensor is an expert, a row of a stacked parameter or a whole one (`naming`), under the same name in each table; one
that ranks shared is spread over their files (`chunks`). What `hagane export` wrote is a checkpoint with one table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hagane.model.chunks import Chunk, read_chunks, read_index, whole
from hagane.model.config import ModelConfig
from hagane.model.generalist import Generalist
from hagane.model.naming import pieces
from hagane.terms import CheckpointError, CorruptError, RunRecord, digest_file, digest_value, load_toml

MANIFEST = "manifest.json"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    id: str
    """sha256 over everything below, the files' digests among it: names these weights."""
    step: int
    """Optimiser steps done."""
    cursor: Mapping[str, str]
    """Digests of data and mixture that the next step goes on with."""
    record: RunRecord
    """The run that made it."""
    files: Mapping[str, str]
    """File name, with its table's folder, to sha256."""
    layout: Mapping[str, int] = field(default_factory=dict)
    """Ranks along each axis when it was written; it may be read on any other."""
    ranks: int = 1
    """Ranks that wrote it."""
    torch_version: str = ""
    """Version of torch that wrote it."""
    noise: str = ""
    """What random numbers go on from."""
    source: str = ""
    """Id of the checkpoint that was exported; empty for a checkpoint."""


def make_manifest(
    step: int, cursor: Mapping[str, str], record: RunRecord, files: Mapping[str, str], **more: object
) -> Manifest:
    """A manifest with its id."""
    blank = Manifest("", step, dict(cursor), record, dict(files), **more)  # type: ignore[arg-type]
    return Manifest(**{**vars(blank), "id": manifest_id(asdict(blank))})


def manifest_id(raw: Mapping[str, object]) -> str:
    """sha256 over a manifest without its id."""
    return digest_value({k: v for k, v in raw.items() if k != "id"})


def load_config(checkpoint: Path) -> ModelConfig:
    """Shape of a checkpoint's weights.

    Raises:
        CheckpointError: there is no complete checkpoint.
    """
    if not (checkpoint / MANIFEST).is_file():
        raise CheckpointError(
            "no complete checkpoint",
            where=str(checkpoint),
            next_step="name a folder like runs/<id>/checkpoints/step-000600",
        )
    return load_toml(checkpoint / "model.toml", ModelConfig)


def parse_manifest(checkpoint: Path) -> Manifest:
    """The manifest as it is written, compared with nothing.

    Raises:
        CheckpointError: no complete checkpoint, or a manifest that is not one.
    """
    if not (checkpoint / MANIFEST).is_file():
        load_config(checkpoint)
    try:
        raw = json.loads((checkpoint / MANIFEST).read_text("utf-8"))
        manifest = Manifest(**{**raw, "record": RunRecord(**raw["record"]), "files": dict(raw["files"])})
        if not all(isinstance(x, str) for x in (manifest.id, *manifest.files, *manifest.files.values())):
            raise TypeError("a name or a digest is no text")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise CheckpointError(f"the manifest cannot be read: {e}", where=str(checkpoint / MANIFEST)) from None
    return manifest


def manifest_of(checkpoint: Path) -> Manifest:
    """The manifest, after it was compared with its id and with the names in the folder; no file is hashed yet.

    Raises:
        CheckpointError: no complete checkpoint, or a manifest that is not one.
        CorruptError: it was changed, a file is missing, or one is there that it does not name.
    """
    manifest = parse_manifest(checkpoint)
    if manifest_id(asdict(manifest)) != manifest.id:
        raise CorruptError(
            "the manifest was changed", where=str(checkpoint / MANIFEST), next_step="use another checkpoint"
        )
    for name in sorted(set(manifest.files) ^ names_in(checkpoint)):
        raise CorruptError(
            "is missing" if name in manifest.files else "is not named by the manifest",
            where=str(checkpoint / name),
            next_step="use another checkpoint of the run, or copy this one again from its source",
        )
    return manifest


def names_in(checkpoint: Path) -> set[str]:
    """Names of the files that a manifest names, as they are in a folder; what else lies there is none of ours."""
    found = [*checkpoint.rglob("*.safetensors"), checkpoint / "model.toml", checkpoint / INDEX]
    return {p.relative_to(checkpoint).as_posix() for p in found if p.is_file()}


def verify_files(checkpoint: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Compare some of a checkpoint's files with their sha256.

    Raises:
        CorruptError: one differs or is missing.
    """
    for name in names:
        path = checkpoint / name
        if not path.is_file() or digest_file(path) != manifest.files[name]:
            raise CorruptError(
                "differs from its sha256 in the manifest" if path.is_file() else "is missing",
                where=str(path),
                next_step="use another checkpoint of the run, or copy this one again from its source",
            )


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest, after every file was compared with its sha256.

    Raises:
        CheckpointError: no complete checkpoint, or a manifest that is not one.
        CorruptError: a file differs from its digest, is missing or left over, or the manifest was changed.
    """
    manifest = manifest_of(checkpoint)
    verify_files(checkpoint, manifest, sorted(manifest.files))
    return manifest


def table_folder(checkpoint: Path, table: str) -> Path:
    """Where the files of a table are: weights, served or moments; an export is one table."""
    inside = checkpoint / table
    return inside if inside.is_dir() else checkpoint


def served_files(checkpoint: Path, manifest: Manifest) -> list[str]:
    """Names of the files that a policy needs."""
    folder = table_folder(checkpoint, "served")
    return sorted(n for n in manifest.files if (checkpoint / n).parent == folder or n == "model.toml")


def load_served(checkpoint: Path, model: Generalist) -> Manifest:
    """Load averaged weights and buffers, for a policy. Files that a policy does not need are not read.

    Raises:
        CheckpointError: incomplete, or made for another model.
        CorruptError: a file was changed.
    """
    manifest = manifest_of(checkpoint)
    verify_files(checkpoint, manifest, served_files(checkpoint, manifest))
    folder = table_folder(checkpoint, "served")
    read_chunks(folder, whole_chunks(model, served_state(model, None)), read_index(folder))
    return manifest


def whole_chunks(model: Generalist, state: Mapping[str, Tensor]) -> list[Chunk]:
    """A state of a model that is all here as pieces on disk; a chunk shares its numbers with the state."""
    with torch.no_grad():
        return [
            whole(p.name, (state[p.stacked] if p.row < 0 else state[p.stacked][p.row]).detach())
            for p in pieces(model, tuple(state))
        ]


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint folder's name; -1 for another name."""
    number = checkpoint.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints of a run's checkpoint folder, oldest first."""
    found = [p for p in folder.glob("step-*") if step_of(p) >= 0 and (p / MANIFEST).is_file()]
    return sorted(found, key=step_of)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run's checkpoint folder."""
    found = complete(folder)
    return found[-1] if found else None


def served_state(model: Generalist, ema: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Averaged parameters (or the model's own) and all saved buffers."""
    parameters = ema if ema is not None else dict(model.named_parameters())
    return {**parameters, **saved_buffers(model)}


def saved_buffers(model: Generalist) -> dict[str, Tensor]:
    """Buffers that are saved with the weights: the normaliser's and the experts' balance."""
    kept = set(model.state_dict())
    return {n: b for n, b in model.named_buffers() if n in kept}
