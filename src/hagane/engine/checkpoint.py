"""Checkpoints: complete or absent. Written beside, synced, then renamed; every file's sha256 in the manifest.

step-000600/
    model.toml                       shape of the weights (ModelConfig)
    weights-<owner>.safetensors      learning weights, a file an owner, a tensor an expert
    served-<owner>.safetensors       averaged weights and buffers: what a policy loads
    moments-<owner>.safetensors      optimiser state
    manifest.json                    step, data cursor, run record, digests: written last
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hagane.engine.naming import from_disk, to_disk
from hagane.engine.step import Engine
from hagane.model import Generalist, ModelConfig
from hagane.terms import (
    CheckpointError,
    CorruptError,
    RunRecord,
    TrainingError,
    digest_file,
    digest_value,
    dump_toml,
    load_toml,
)

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


def save_checkpoint(folder: Path, engine: Engine, record: RunRecord, cursor: Mapping[str, str]) -> Manifest:
    """Write `folder`/step-NNNNNN, whole or not at all.

    Raises:
        TrainingError: the disk is full or cannot be written; earlier checkpoints are untouched.
    """
    final = folder / f"step-{engine.step:06d}"
    making = folder / f".making-{final.name}"
    try:
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        manifest = _write(making, engine, record, cursor)
        _sync(making)
        if final.exists():
            shutil.rmtree(final)
        making.rename(final)
        _sync(folder)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(making, ignore_errors=True)
        full = (isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left" in str(e)
        raise TrainingError(
            "the disk is full" if full else f"cannot write the checkpoint: {e}",
            where=str(final),
            next_step="free space, then go on with `hagane train --resume`; earlier checkpoints are whole",
        ) from None
    return manifest


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
    with _readable(checkpoint):
        from_disk(model, served_state(model, None), _read(checkpoint, "served"), str(checkpoint))
    return manifest


def load_engine(checkpoint: Path, engine: Engine) -> Manifest:
    """Load weights, averages, moments and buffers into an engine; training goes on exactly."""
    manifest = read_manifest(checkpoint)
    model, where = engine.model, str(checkpoint)
    with _readable(checkpoint):
        from_disk(model, dict(model.named_parameters()), _read(checkpoint, "weights"), where)
        from_disk(model, served_state(model, engine.ema), _read(checkpoint, "served"), where)
        moments = moment_state(engine)
        both = _read(checkpoint, "moments")
        for kind, state in moments.items():
            mine = {n.removeprefix(f"{kind}."): t for n, t in both.items() if n.startswith(f"{kind}.")}
            from_disk(model, state, mine, where)
    engine.step = manifest.step
    for state in engine.optimizer.state.values():
        state["step"].fill_(float(manifest.step))
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


def moment_state(engine: Engine) -> dict[str, dict[str, Tensor]]:
    """AdamW's moments by kind and parameter name, made if the optimiser has not stepped yet."""
    import torch

    kinds: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
    for name, p in engine.model.named_parameters():
        state = engine.optimizer.state[p]
        if not state:
            state["step"] = torch.zeros(())
            state.update({kind: torch.zeros_like(p) for kind in kinds})
        for kind, table in kinds.items():
            table[name] = state[kind]
    return kinds


def _write(making: Path, engine: Engine, record: RunRecord, cursor: Mapping[str, str]) -> Manifest:
    model = engine.model
    (making / "model.toml").write_text(dump_toml(model.config), "utf-8")
    tables = {"weights": to_disk(model, dict(model.named_parameters()))}
    tables["served"] = to_disk(model, served_state(model, engine.ema))
    moments: dict[str, dict[str, Tensor]] = {}
    for kind, state in moment_state(engine).items():
        for owner, tensors in to_disk(model, state).items():
            moments.setdefault(owner, {}).update({f"{kind}.{n}": t for n, t in tensors.items()})
    tables["moments"] = moments
    for table, by_owner in tables.items():
        for owner, tensors in by_owner.items():
            save_file(tensors, making / f"{table}-{owner}.safetensors")
    files = {p.name: digest_file(p) for p in sorted(making.iterdir())}
    done = dataclasses.replace(record, steps=engine.step)
    manifest = Manifest(digest_value([files, engine.step, done]), engine.step, dict(cursor), done, files)
    (making / MANIFEST).write_text(json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True), "utf-8")
    return manifest


def _read(checkpoint: Path, table: str) -> dict[str, Tensor]:
    out: dict[str, Any] = {}
    for path in sorted(checkpoint.glob(f"{table}-*.safetensors")):
        out.update(load_file(path))
    return out


@contextmanager
def _readable(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"cannot be read: {e}", where=str(checkpoint)) from None


def _sync(folder: Path) -> None:
    """fsync a folder's files and the folder itself."""
    for path in [*folder.iterdir(), folder]:
        if path.is_file() or path == folder:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
