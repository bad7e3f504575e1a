"""The loop: the same for one process and for torchrun ranks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hagane.catalog import Ahead
from hagane.engine import (
    Engine,
    balance_experts,
    device_for,
    evaluate_loss,
    layer_loads,
    load_engine,
    load_figures,
    make_engine,
    rank,
    save_checkpoint,
    train_step,
)
from hagane.model import ModelConfig, make_config
from hagane.terms import Batch, CheckpointError, RunRecord, digest_value
from hagane.train.changes import check_cursor, checkpoint_of, joined_record, shape_for, without_mixture
from hagane.train.config import TrainConfig, vision_file
from hagane.train.data import CatalogData
from hagane.train.run import MetricsFile, begin_run, make_record, write_record


def build_engine(config: TrainConfig, data: CatalogData, shape: ModelConfig | None = None) -> Engine:
    """A fresh engine: weights from the config's seed, normaliser from the data's statistics.

    Args:
        config: the run's.
        data: its machines and statistics.
        shape: of a checkpoint that will be loaded into it, normaliser included.
    """
    fresh = shape is None
    if shape is None:
        shape = make_config(config.size, data.embodiments, head=config.head)
        if config.experts:
            shape = ModelConfig(config.size, shape.embodiments, dict(config.experts), config.head)
    path = vision_file(config)
    engine = make_engine(
        shape,
        config.step,
        config.seed,
        layout=config.layout,
        compute=config.compute,
        device=device_for(config.device),
        given={VISION: vision_weight(path, shape)} if path else {},
    )
    if fresh:
        # a run that goes on keeps its scales, whatever data came or went
        engine.model.fit_normaliser(data.stats)
    return engine


VISION = "tokeniser.image.weight"


def vision_weight(path: Path, shape: ModelConfig) -> Tensor:
    """Start of the image path from a local file: `image.weight` [D, p*p*3], or a ViT's [D, 3, p, p] patch embedding.

    Raises:
        CheckpointError: no such file, no safetensors, or no patch embedding of this model's width and patch.
    """
    wanted = (shape.widths.d_model, shape.patch * shape.patch * 3)
    advice = "check --init-vision: it takes a whole safetensors file"
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
        if tensor.shape == wanted:
            return tensor
    raise CheckpointError(
        f"holds no patch embedding of shape {wanted}", where=str(path), next_step="choose another --size"
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
    found = checkpoint_of(folder) if resume else None
    shape = shape_for(found, data.embodiments) if found else None
    engine = build_engine(config, data, shape)
    record = make_record(folder, config, data.lineage)
    cursor = {**data.train.cursor, "settings": digest_value(without_mixture(config))}
    if found:
        manifest = load_engine(found, engine)
        check_cursor(folder, manifest, cursor)
        record = joined_record(manifest, record)
    elif rank() == 0:
        begin_run(folder, config)
    if rank() == 0:
        write_record(folder, record)
    metrics = MetricsFile(folder / "metrics.jsonl", engine.step) if rank() == 0 else None
    started = time.monotonic()
    first = engine.step

    def mine(step: int) -> Batch:
        return data.train.at(step, engine.mesh.data_rank, config.layout.data_ranks)

    with closing(Ahead(mine, config.loader_workers, last=config.step.steps)) as batches:
        while engine.step < config.step.steps:
            line = _one_step(engine, config, data, batches.at(engine.step))
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


def _one_step(engine: Engine, config: TrainConfig, data: CatalogData, batch: Batch) -> dict[str, Any]:
    line: dict[str, Any] = {"step": engine.step + 1}
    line.update(train_step(engine, batch))
    looks = engine.step % config.held_out_every == 0 or engine.step == config.step.steps
    if looks:
        line.update(load_figures(engine.model.config, layer_loads(engine)))
        look = evaluate_loss(engine, data.held_out.at(0, engine.mesh.data_rank, config.layout.data_ranks))
        line.update({f"held_out/{name}": value for name, value in look.items()})
    balance_experts(engine)
    return line


def _keep_newest(folder: Path, keep: int) -> None:
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
