"""Saving checkpoints beside training, and going on from them on any layout: complete or absent.

Every rank copies what it holds, then writes and hashes its own files in a thread; rank 0 writes the manifest last.
`hagane.model.weights` says what is in the folder. The threads talk over a group of their own, never over training's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

import torch.distributed as dist

from hagane.engine.checkpoint_files import clear, keep_newest, place, write_error
from hagane.engine.checkpoint_write import About, Group, from_first, together, write_together
from hagane.engine.engine import Engine
from hagane.engine.pieces import Part, Stage, Table, chunks_by_owner, parts_here, share_out, tables
from hagane.model import ModelConfig
from hagane.model.chunks import Chunk, read_chunks, read_index
from hagane.model.weights import Manifest, load_config, manifest_of, served_files, table_folder, verify_files
from hagane.terms import CheckpointError, HaganeError, RunRecord


class Saver:
    """Writes an engine's checkpoints in a thread, one at a time. All ranks make one and call the same methods."""

    def __init__(self, folder: Path, engine: Engine, *, keep: int = 0, keep_every: int = 0) -> None:
        """Agree on who writes what.

        Args:
            folder: of the run's checkpoints; all ranks see it.
            engine: in training.
            keep: newest checkpoints to keep; 0 keeps all.
            keep_every: also keep those whose step this divides; 0 for none.
        """
        self.folder, self.engine = folder, engine
        self.keep, self.keep_every = keep, keep_every
        self.group: Group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self.parts = share_out(parts_here(engine), self.group)
        self.stage = Stage()
        self.thread: threading.Thread | None = None
        self.outcome: Manifest | HaganeError | None = None
        if self.first:
            clear(folder)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which cares for the folder."""
        return self.group is None or dist.get_rank(self.group) == 0

    def save(self, record: RunRecord, cursor: Mapping[str, str]) -> Manifest | None:
        """Begin a checkpoint of the engine as it is now; training may go on when this returns.

        Returns:
            The manifest of the save before, if `done` did not give it yet.

        Raises:
            TrainingError: the save before could not be written (on every rank); it is absent, earlier ones are whole.
        """
        before = self.wait()
        engine = self.engine
        staged = self.stage.take(tables(engine), {p.stacked for p in self.parts})
        about = About(engine.model.config, engine.step, dict(cursor), record, asdict(engine.mesh.layout))
        self.thread = threading.Thread(target=self._work, args=(staged, about), name="checkpoint", daemon=True)
        self.thread.start()
        return before

    def done(self) -> Manifest | None:
        """The manifest of a save that is whole by now, once; never waits. Errors come from `save` and `wait`."""
        manifest = self.outcome
        if not isinstance(manifest, Manifest):
            return None
        self.outcome = None
        return manifest

    def wait(self) -> Manifest | None:
        """Wait for the save under way; its manifest, if `done` did not give it yet.

        Raises:
            TrainingError: it could not be written: the same on every rank.
        """
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        outcome, self.outcome = self.outcome, None
        if isinstance(outcome, HaganeError):
            raise outcome
        return outcome

    def close(self) -> None:
        """Wait for the save under way and part from the other ranks' threads; all ranks call it.

        Raises:
            TrainingError: it could not be written, here or on another rank.
        """
        try:
            self.wait()
        finally:
            if self.group:
                dist.destroy_process_group(self.group)

    def _work(self, staged: Mapping[str, Table], about: About) -> None:
        try:
            self.outcome = write_together(self.folder, by_table(self.parts, staged), about, self.group)
            if self.first and self.keep:
                keep_newest(self.folder, self.keep, self.keep_every)
        except HaganeError as e:
            self.outcome = e
        except Exception as e:  # a rank is gone: what this one has is of no use
            self.outcome = write_error(e, place(self.folder, about.step)[0])


def save_checkpoint(folder: Path, engine: Engine, record: RunRecord, cursor: Mapping[str, str]) -> Manifest:
    """Write `folder`/step-NNNNNN, whole or not at all, and wait for it. All ranks call it.

    Raises:
        TrainingError: the disk is full or cannot be written; earlier checkpoints are untouched.
    """
    with closing(Saver(folder, engine)) as saver:
        saver.save(record, cursor)
        manifest = saver.wait()
    assert manifest is not None
    return manifest


def load_engine(checkpoint: Path, engine: Engine) -> Manifest:
    """Load weights, averages, moments and buffers into an engine of any layout; training goes on exactly.

    All ranks call it. Together they compare every file with its sha256 before one number is read.

    Raises:
        CheckpointError: incomplete, or made for another model.
        CorruptError: a file was changed, is missing or left over.
    """
    with own_group() as group:
        manifest = _checked(checkpoint, engine, None, group)
        for table, chunks in by_table(parts_here(engine), tables(engine)).items():
            _fill(checkpoint / table, chunks, group)
    engine.resume_at(manifest.step)
    return manifest


def start_from(checkpoint: Path, engine: Engine) -> Manifest:
    """Start a run from the served weights of a checkpoint or of an export: moments and the step stay new.

    Raises:
        CheckpointError: incomplete, or made for another model.
        CorruptError: a file was changed, is missing or left over.
    """
    with own_group() as group:
        manifest = _checked(checkpoint, engine, "served", group)
        served = tables(engine)["served"]
        _fill(table_folder(checkpoint, "served"), by_table(parts_here(engine), {"served": served})["served"], group)
    for name, local in engine.local.items():
        local.detach().copy_(served[name])
    return manifest


def by_table(parts: list[Part], state: Mapping[str, Table]) -> dict[str, dict[str, list[Chunk]]]:
    """Chunks by folder and owner; moments of all kinds go to one folder, a kind being the start of a name."""
    out: dict[str, dict[str, list[Chunk]]] = {}
    for name, table in state.items():
        folder, _, kind = name.partition("/")
        owners = out.setdefault(folder, {})
        for owner, chunks in chunks_by_owner(parts, table, f"{kind}/" if kind else "").items():
            owners.setdefault(owner, []).extend(chunks)
    return out


@contextmanager
def own_group() -> Iterator[Group]:
    """All ranks in a group of gloo for a while; None in a process alone."""
    if not dist.is_initialized():
        yield None
        return
    group = dist.new_group(backend="gloo")
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


def _checked(checkpoint: Path, engine: Engine, table: str | None, group: Group) -> Manifest:
    """The manifest, after each rank hashed its share of the files: of all tables, or of one."""
    manifest = from_first(group, lambda: manifest_of(checkpoint))
    names = served_files(checkpoint, manifest) if table else sorted(manifest.files)
    mine = names[dist.get_rank(group) :: dist.get_world_size(group)] if group else names
    together(group, lambda: verify_files(checkpoint, manifest, mine), checkpoint)
    from_first(group, lambda: same_model(load_config(checkpoint), engine.model.config, str(checkpoint)))
    return manifest


def _fill(folder: Path, chunks: Mapping[str, list[Chunk]], group: Group) -> None:
    index = from_first(group, lambda: read_index(folder))
    together(group, lambda: read_chunks(folder, [c for held in chunks.values() for c in held], index), folder)


def same_model(theirs: ModelConfig, ours: ModelConfig, where: str) -> None:
    """Compare the shape of a checkpoint's weights with that of the model they are for.

    Raises:
        CheckpointError: they differ; the message says in what.
    """
    for name, mine in vars(ours).items():
        other = getattr(theirs, name)
        if mine == other:
            continue
        if name == "embodiments":
            mine, other = ([e.name for e in one] for one in (mine, other))
            if mine == other:
                mine, other = "described differently", f"those of {mine}"
        raise CheckpointError(
            f"made for another model: its {name} is {other}, here it is {mine}",
            where=where,
            next_step="name a checkpoint of this run, or start a new run of its size",
        )
