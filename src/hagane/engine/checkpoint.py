"""Saving checkpoints, and going on from them: complete or absent.

Written beside, synced, then renamed; `hagane.model.weights` says what is in the folder.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from hagane.engine.engine import Engine
from hagane.model.naming import from_disk, to_disk
from hagane.model.weights import MANIFEST, Manifest, read_manifest, read_tensors, readable, served_state
from hagane.terms import RunRecord, TrainingError, digest_file, digest_value, dump_toml


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


def load_engine(checkpoint: Path, engine: Engine) -> Manifest:
    """Load weights, averages, moments and buffers into an engine; training goes on exactly."""
    manifest = read_manifest(checkpoint)
    model, where = engine.model, str(checkpoint)
    with readable(checkpoint):
        from_disk(model, engine.local, read_tensors(checkpoint, "weights"), where)
        from_disk(model, served_state(model, engine.ema), read_tensors(checkpoint, "served"), where)
        moments = moment_state(engine)
        both = read_tensors(checkpoint, "moments")
        for kind, state in moments.items():
            mine = {n.removeprefix(f"{kind}."): t for n, t in both.items() if n.startswith(f"{kind}.")}
            from_disk(model, state, mine, where)
    engine.step = manifest.step
    for state in engine.optimizer.state.values():
        state["step"].fill_(float(manifest.step))
    return manifest


def moment_state(engine: Engine) -> dict[str, dict[str, Tensor]]:
    """AdamW's moments by kind and parameter name, made if the optimiser has not stepped yet."""
    kinds: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
    for name, p in engine.local.items():
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
    tables = {"weights": to_disk(model, engine.local)}
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


def _sync(folder: Path) -> None:
    """fsync a folder's files and the folder itself."""
    for path in [*folder.iterdir(), folder]:
        if path.is_file() or path == folder:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
