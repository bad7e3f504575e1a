"""The loop: the same for one process and for torchrun ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hagane.catalog import Ahead
from hagane.engine import (
    Crew,
    Engine,
    Limits,
    Saver,
    balance_experts,
    device_for,
    evaluate_loss,
    layer_loads,
    load_engine,
    load_figures,
    make_engine,
    rank,
    train_step,
)
from hagane.model import Manifest, ModelConfig, make_config
from hagane.terms import Batch, CheckpointError, RunRecord, digest_value
from hagane.train.changes import check_cursor, joined_record, shape_for, without_mixture
from hagane.train.config import TrainConfig, vision_file
from hagane.train.data import CatalogData
from hagane.train.resume import checkpoints_of, load_newest
from hagane.train.run import MetricsFile, begin_run, make_record, refuse_run, write_record
from hagane.train.skips import Skip, check_skips
from hagane.train.spike_guard import SpikeGuard, checkpoint_at, last_change, past, whole_checkpoints
from hagane.train.stop import StopRequest


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
        drawn=fresh,
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
    note: Callable[[str], None] = lambda _: None,
    left_out: Callable[[Skip], None] = lambda _: None,
    saved: Callable[[RunRecord], None] = lambda _: None,
    crew: Crew = Crew(),  # noqa: B008 - frozen
) -> RunRecord:
    """Train to the config's last step, or until asked to stop; returns the record with the last checkpoint's id.

    Args:
        folder: of the run.
        config: of the run, on a layout of the ranks that are there.
        data: of the run.
        resume: go on from the newest whole checkpoint, or from the start if none was saved yet.
        report: hears every line of the metrics, on rank 0.
        note: hears what a person should know of a resumed run, on rank 0.
        left_out: hears, on rank 0, which batches are not learned from (see `hagane.train.spike`).
        saved: hears, on rank 0, of every checkpoint once it is whole.
        crew: the ranks; every one of them calls this.

    Raises:
        TrainingError: the data changed since the checkpoint, the disk is full, the spike guard gives up, ranks differ.
    """
    engine, run = begin(folder, config, data, resume, note if crew.first else lambda _: None, crew)
    run.saved = saved
    guard, made = run.guard, 0
    metrics = MetricsFile(folder / "metrics.jsonl", engine.step) if crew.first else None
    started = time.monotonic()

    def mine(step: int) -> Batch:
        return data.train.at(step, engine.mesh.data_rank, config.layout.data_ranks)

    ahead = Ahead(mine, config.loader_workers, last=guard.batch(config.step.steps))
    saver = Saver(folder / "checkpoints", engine, keep=config.keep, keep_every=config.keep_every)
    with closing(ahead) as batches, closing(saver), StopRequest() as stop:
        while engine.step < config.step.steps:
            crew.watch.at(engine.step, "a step")
            batch = batches.at(guard.batch(engine.step))
            line = _one_step(engine, config, data, batch, guard.limits(), bool(stop.asked))
            stopping = line.pop("stop") > 0
            skip = guard.after(line, bool(line.pop("taken")), lambda: run.whole(saver))
            if skip is not None:
                if crew.first:
                    left_out(skip)
                if skip.to < skip.step:
                    crew.watch.at(engine.step, "going back", patient=True)
                    load_engine(checkpoint_at(folder, skip.to), engine)
                    guard.rewind(past(folder, engine.step))
                    metrics = metrics and MetricsFile(metrics.path, engine.step)
                continue
            line["seconds"] = time.monotonic() - started
            # a run that went back has made more steps than it has come forward
            made += 1
            line["samples_per_s"] = made * config.samples_per_step / line["seconds"]
            if metrics is not None:
                metrics.add(line)
                report(line)
            if engine.step % config.save_every == 0 or engine.step == config.step.steps or stopping:
                crew.watch.at(engine.step, "saving", patient=True)
                run.note(saver.save(run.record, {**run.cursor, "skips": guard.digest}))
            run.note(saver.done())
            if stopping:
                break
        crew.watch.at(engine.step, "saving", patient=True)
        run.note(saver.wait())
    return run.record


@dataclass
class Run:
    """What of a run is written down as it goes."""

    folder: Path
    """Of the run."""
    record: RunRecord
    """With the newest whole checkpoint."""
    cursor: Mapping[str, str]
    """Digests of data, mixture and settings."""
    guard: SpikeGuard
    """Which batches are learned from."""
    saved: Callable[[RunRecord], None] = lambda _: None
    """Hears, on rank 0, of every whole checkpoint."""

    def note(self, saved: Manifest | None) -> None:
        """Write down the newest whole checkpoint, if there is a newer one."""
        if saved is not None:
            self.record = replace(self.record, steps=saved.step, checkpoint_id=saved.id)
            if rank() == 0:
                write_record(self.folder, self.record)
                self.saved(self.record)

    def whole(self, saver: Saver) -> Mapping[int, str]:
        """Ids of the whole checkpoints by step, once the save under way is one of them."""
        self.note(saver.wait())
        return whole_checkpoints(self.folder, saver.engine.device)


def begin(
    folder: Path, config: TrainConfig, data: CatalogData, resume: bool, note: Callable[[str], None], crew: Crew
) -> tuple[Engine, Run]:
    """The engine of a run at its first step or where it goes on, after all ranks agreed on what they have before them.

    Raises:
        TrainingError: there is a run already, the data changed since the checkpoint, or ranks differ.
    """
    found = checkpoints_of(folder, note) if resume else []
    if crew.first and not resume:
        refuse_run(folder)
    cursor = {**data.train.cursor, "settings": digest_value(without_mixture(config))}
    crew.agree("data", {**cursor, "checkpoint": found[0].name if found else "none"})
    engine = build_engine(config, data, shape_for(found[0], data.embodiments) if found else None)
    record = make_record(folder, config, data.lineage)
    if crew.first and not resume:
        begin_run(folder, config)
    manifest = load_newest(found, engine, note) if found else None
    if manifest is not None:
        check_cursor(folder, manifest, cursor)
        record = joined_record(manifest, record)
    if crew.first:
        write_record(folder, record)
    guard = SpikeGuard(folder, config.spike, past(folder, engine.step), last_change(folder), writes=crew.first)
    if manifest is not None:
        check_skips(folder, manifest.step, manifest.cursor, guard.skips)
    return engine, Run(folder, record, cursor, guard)


def _one_step(
    engine: Engine, config: TrainConfig, data: CatalogData, batch: Batch, limits: Limits, stop: bool
) -> dict[str, Any]:
    line: dict[str, Any] = {"step": engine.step + 1}
    line.update(train_step(engine, batch, limits, stop=stop))
    if not line["taken"]:
        return line
    looks = engine.step % config.held_out_every == 0 or engine.step == config.step.steps
    if looks:
        line.update(load_figures(engine.model.config, layer_loads(engine)))
        look = evaluate_loss(engine, data.held_out.at(0, engine.mesh.data_rank, config.layout.data_ranks))
        line.update({f"held_out/{name}": value for name, value in look.items()})
    balance_experts(engine)
    return line
