"""The loop: the same for one process and for torchrun ranks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from hagane.engine import (
    Engine,
    check_layout,
    device_for,
    evaluate_loss,
    load_engine,
    rank,
    save_checkpoint,
    take_loads,
    train_step,
)
from hagane.model import Generalist, ModelConfig, latest, make_config
from hagane.terms import CheckpointError, RunRecord, TrainingError, digest_value
from hagane.train.config import TrainConfig, vision_file
from hagane.train.data import CatalogData
from hagane.train.run import MetricsFile, begin_run, make_record, write_record


def build_model(config: TrainConfig, data: CatalogData) -> Generalist:
    """A fresh model for the config: weights from its seed, normaliser from the data's statistics."""
    shape = make_config(config.size, data.embodiments, head=config.head)
    if config.experts:
        shape = ModelConfig(config.size, shape.embodiments, dict(config.experts), config.head)
    model = Generalist(shape)
    model.reset_parameters(config.seed)
    model.fit_normaliser(data.stats)
    if path := vision_file(config):
        init_vision(model, path)
    return model


def init_vision(model: Generalist, path: Path) -> None:
    """Start the image path from a local file: `image.weight` [D, p*p*3], or a ViT's [D, 3, p, p] patch embedding.

    Raises:
        CheckpointError: no such file, no safetensors, or no patch embedding of this model's width and patch.
    """
    target, advice = model.tokeniser.image.weight, "check --init-vision: it takes a whole safetensors file"
    if not path.is_file():
        raise CheckpointError("no such file", where=str(path), next_step=advice)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"cannot be read: {e}", where=str(path), next_step=advice) from None
    for name, tensor in tensors.items():
        if tensor.ndim == 4 and name.endswith("patch_embed.proj.weight"):
            tensor = tensor.permute(0, 2, 3, 1).flatten(1)
        elif not name.endswith("image.weight"):
            continue
        if tensor.shape == target.shape:
            with torch.no_grad():
                target.copy_(tensor)
            return
    raise CheckpointError(
        f"holds no patch embedding of shape {tuple(target.shape)}", where=str(path), next_step="choose another --size"
    )


def train(
    folder: Path,
    config: TrainConfig,
    data: CatalogData,
    *,
    resume: bool = False,
    report: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> RunRecord:
    """Train to the config's last step; returns the record with the last checkpoint's id.

    Raises:
        TrainingError: the data changed since the checkpoint, the disk is full, the loss is not finite.
    """
    check_layout(config.layout)
    engine = Engine(build_model(config, data).to(device_for(config.device)), config.step, config.seed)
    record = make_record(folder, config, data.lineage)
    cursor = {"data": data.train.digest, "config": digest_value(config)}
    if resume:
        _go_on(folder, engine, cursor)
    elif rank() == 0:
        begin_run(folder, config)
    if rank() == 0:
        write_record(folder, record)
    metrics = MetricsFile(folder / "metrics.jsonl", engine.step) if rank() == 0 else None
    started = time.monotonic()
    first = engine.step
    while engine.step < config.step.steps:
        line = _one_step(engine, config, data)
        line["seconds"] = time.monotonic() - started
        line["samples_per_s"] = (engine.step - first) * config.samples_per_step / line["seconds"]
        if metrics is not None:
            metrics.add(line)
            report(line)
            if engine.step % config.save_every == 0 or engine.step == config.step.steps:
                manifest = save_checkpoint(folder / "checkpoints", engine, record, cursor)
                record = replace(record, steps=engine.step, checkpoint_id=manifest.id)
                write_record(folder, record)
                _keep_newest(folder / "checkpoints", config.keep)
    return record


def _one_step(engine: Engine, config: TrainConfig, data: CatalogData) -> dict[str, Any]:
    line: dict[str, Any] = {"step": engine.step + 1}
    line.update(train_step(engine, data.train.at(engine.step)))
    loads = take_loads(engine.model, config.step.balance_rate)
    looks = engine.step % config.held_out_every == 0 or engine.step == config.step.steps
    if looks:
        line.update({f"experts/{name}": share for name, share in loads.items()})
    if looks and rank() == 0:
        look = evaluate_loss(engine.model, data.held_out.at(0), config.seed)
        line.update({f"held_out/{name}": value for name, value in look.items()})
    return line


def _go_on(folder: Path, engine: Engine, cursor: Mapping[str, str]) -> None:
    found = latest(folder / "checkpoints")
    if found is None:
        raise TrainingError(
            "no complete checkpoint to resume from", where=str(folder), next_step="start without --resume"
        )
    manifest = load_engine(found, engine)
    for what, digest in cursor.items():
        if manifest.cursor.get(what) != digest:
            raise TrainingError(
                f"the {what} changed since this run's checkpoint",
                where=str(found),
                next_step="resume with the same data sets, mixture and settings, or start a new run",
            )


def _keep_newest(folder: Path, keep: int) -> None:
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
