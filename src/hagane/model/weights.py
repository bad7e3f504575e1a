"""Weights on disk: a checkpoint folder read back, every byte compared with its sha256 first.

step-000600/
    model.toml                       shape of the weights (ModelConfig)
    weights-<owner>.safetensors      learning weights, a file an owner, a tensor an expert
    served-<owner>.safetensors       averaged weights and buffers: what a policy loads
    moments-<owner>.safetensors      optimiser state
    manifest.json                    step, data cursor, run record, digests: written last
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hagane.model.config import ModelConfig
from hagane.model.generalist import Generalist
from hagane.model.naming import from_disk
from hagane.terms import CheckpointError, CorruptError, RunRecord, digest_file, digest_value, load_toml

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    id: str
    """sha256 over the files' digests and the record: names these weights."""
    step: int
    """Optimiser steps done."""
    cursor: Mapping[str, str]
    """Digests of data and mixture that the next step goes on with."""
    record: RunRecord
    """The run that made it."""
    files: Mapping[str, str]
    """File name to sha256."""


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


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest, after every file was compared with its sha256.

    Raises:
        CheckpointError: no complete checkpoint, or a manifest that is not one.
        CorruptError: a file differs from its digest, or is missing.
    """
    load_config(checkpoint)
    try:
        raw = json.loads((checkpoint / MANIFEST).read_text("utf-8"))
        manifest = Manifest(**{**raw, "record": RunRecord(**raw["record"])})
    except (ValueError, TypeError, KeyError) as e:
        raise CheckpointError(f"the manifest cannot be read: {e}", where=str(checkpoint / MANIFEST)) from None
    for name, digest in manifest.files.items():
        path = checkpoint / Path(name).name
        if not path.is_file() or digest_file(path) != digest:
            raise CorruptError(
                "differs from its sha256 in the manifest" if path.is_file() else "is missing",
                where=str(path),
                next_step="use another checkpoint of the run, or copy this one again from its source",
            )
    if digest_value([manifest.files, manifest.step, manifest.record]) != manifest.id:
        raise CorruptError(
            "the manifest was changed", where=str(checkpoint / MANIFEST), next_step="use another checkpoint"
        )
    return manifest


def load_served(checkpoint: Path, model: Generalist) -> Manifest:
    """Load averaged weights and buffers, for a policy."""
    manifest = read_manifest(checkpoint)
    with readable(checkpoint):
        from_disk(model, served_state(model, None), read_tensors(checkpoint, "served"), str(checkpoint))
    return manifest


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run's checkpoint folder."""
    found = sorted(p for p in folder.glob("step-*") if (p / MANIFEST).is_file())
    return found[-1] if found else None


def served_state(model: Generalist, ema: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Averaged parameters (or the model's own) and all saved buffers."""
    parameters = ema if ema is not None else dict(model.named_parameters())
    kept = set(model.state_dict())
    return {**parameters, **{n: b for n, b in model.named_buffers() if n in kept}}


def read_tensors(checkpoint: Path, table: str) -> dict[str, Tensor]:
    """All owners' tensors of a table: weights, served or moments."""
    out: dict[str, Tensor] = {}
    for path in sorted(checkpoint.glob(f"{table}-*.safetensors")):
        out.update(load_file(path))
    return out


@contextmanager
def readable(checkpoint: Path) -> Iterator[None]:
    """One message for files that cannot be read.

    Raises:
        CheckpointError: instead of the reader's own errors.
    """
    try:
        yield
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"cannot be read: {e}", where=str(checkpoint)) from None
