"""One checkpoint written by all ranks: what one of them meets, all of them raise."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from hagane.engine.checkpoint_files import finish, place, write_error, write_part
from hagane.model import ModelConfig
from hagane.model.chunks import Chunk
from hagane.model.weights import Manifest, make_manifest
from hagane.terms import HaganeError, RunRecord, digest_file, dump_toml

T = TypeVar("T")
Group = dist.ProcessGroup | None
"""Ranks that write and read together; None for a process alone."""


@dataclass(frozen=True)
class About:
    """What a checkpoint says beside its tensors."""

    config: ModelConfig
    """Shape of the weights."""
    step: int
    """Optimiser steps done."""
    cursor: Mapping[str, str]
    """Digests of data and mixture that the next step goes on with."""
    record: RunRecord
    """The run that made it."""
    layout: Mapping[str, int]
    """Ranks along each axis."""


def write_together(
    folder: Path, chunks: Mapping[str, Mapping[str, Sequence[Chunk]]], about: About, group: Group
) -> Manifest:
    """Write `folder`/step-NNNNNN: every rank its files, rank 0 the manifest, last. All ranks of the group call it.

    Args:
        folder: of the run's checkpoints.
        chunks: what this rank writes, by table and owner.
        about: the rest; the same on all ranks.
        group: of gloo, for nothing else at the time.

    Raises:
        TrainingError: a rank could not write its part, the same on every rank; nothing is left of it.
    """
    final, making = place(folder, about.step)
    rank, ranks = (dist.get_rank(group), dist.get_world_size(group)) if group else (0, 1)

    def begin() -> None:
        if rank == 0:
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(parents=True)

    def part() -> dict[str, str]:
        files = write_part(making, chunks, rank)
        if rank == 0:
            (making / "model.toml").write_text(dump_toml(about.config), "utf-8")
            files["model.toml"] = digest_file(making / "model.toml")
        return files

    try:
        together(group, begin, final)
        files = {name: digest for part in together(group, part, final) for name, digest in part.items()}
        # what was saved before is no part of what this is: the same weights have the same id
        done = replace(about.record, steps=about.step, checkpoint_id="")
        manifest = make_manifest(
            about.step,
            about.cursor,
            done,
            dict(sorted(files.items())),
            layout=dict(about.layout),
            ranks=ranks,
            torch_version=torch.__version__,
            noise=f"a function of (seed {done.seed}, step, sample id): no state",
        )
        together(group, lambda: finish(making, final, manifest) if rank == 0 else None, final)
    except HaganeError:
        if rank == 0:
            shutil.rmtree(making, ignore_errors=True)
        raise
    return manifest


def together(group: Group, work: Callable[[], T], where: Path) -> list[T]:
    """Do work on every rank; the results of all, in the order of ranks.

    Raises:
        HaganeError: what the first rank that failed met, on every rank.
    """
    mine: T | HaganeError
    try:
        mine = work()
    except HaganeError as e:
        mine = e
    except Exception as e:
        mine = write_error(e, where, f" (rank {dist.get_rank(group)})" if group else "")
    every: list[T | HaganeError] = [mine]
    if group:
        every = [mine] * dist.get_world_size(group)
        dist.all_gather_object(every, mine, group=group)
    for one in every:
        if isinstance(one, HaganeError):
            raise one
    return every  # type: ignore[return-value]


def from_first(group: Group, work: Callable[[], T]) -> T:
    """Do work on rank 0 and give every rank the result.

    Raises:
        HaganeError: what rank 0 met, on every rank.
    """
    box: list[T | HaganeError | None] = [None]
    if group is None or dist.get_rank(group) == 0:
        try:
            box[0] = work()
        except HaganeError as e:
            box[0] = e
    if group:
        dist.broadcast_object_list(box, src=0, group=group)
    if isinstance(box[0], HaganeError):
        raise box[0]
    return box[0]  # type: ignore[return-value]
