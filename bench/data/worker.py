"""One format in a process of its own: prepares its files, proves that its rows are right, and runs timed passes.

The process is told what to do by JSON lines on standard input and answers by JSON lines. CPU time is the process's
own, all its threads and ended children included. NumPy only, so that every peer's environment can run it.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from source import CAMERAS, SIZE, Source, open_source, psnr_db

BATCH = 32


@dataclass(frozen=True, eq=False)
class Loaded:
    """A batch in the terms of the source, for comparison; made outside of timed code."""

    rows: NDArray[np.int64]
    """[N] which rows of the source these claim to be."""
    pictures: NDArray[np.uint8]
    """[N, cameras, SIZE, SIZE, 3]."""
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    """[N, CHUNK, WIDTH]."""


class Format(Protocol):
    """A format and its loader."""

    packages: tuple[str, ...]
    """Whose versions are told."""
    floor_db: float
    """Least fidelity of a picture that is right: the format's own loss, no more."""
    random_access: bool
    """False: samples come in stored order, mixed by a buffer."""

    def write(self, source: Source, folder: Path) -> None:
        """Write the content into an empty folder, as the format's documentation does."""
        ...

    def open(self, source: Source, folder: Path, decode: Mapping[str, Any]) -> None:
        """Open it. `decode`: settings of simplejpeg for loaders that leave decoding to their user."""
        ...

    def batches(self, count: int, seed: int, workers: int) -> Iterator[Any]:
        """`count` batches of BATCH samples in random order, as the loader gives them."""
        ...

    def loaded(self, batch: Any) -> Loaded:
        """What is in a batch."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a reader of the table must know: dtype, decoder, bytes of other files."""
        ...


def serve(make: Callable[[str], Format]) -> int:
    """Answer the orchestrator until its end of the pipe closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", default="")
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not disturb the answers
    try:
        session: Any = Session(make(args.mode), args.work, args.mode)
    except ImportError as e:
        answers.write(json.dumps({"error": f"cannot be imported: {e}"}) + "\n")
        return 1
    answers.write(json.dumps({"versions": session.versions()}) + "\n")
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = getattr(session, order.pop("do"))(**order)
        except Exception as e:
            traceback.print_exc()
            answer = {"error": f"{type(e).__name__}: {e}"}
        answers.write(json.dumps(answer) + "\n")
    return 0


def cpu_seconds() -> float:
    """CPU time of this process, its threads, and its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


class Session:
    """The orders of the orchestrator, by name."""

    def __init__(self, form: Format, work: Path, mode: str) -> None:
        self.form, self.source = form, open_source(work / "source")
        self.folder = work / (type(form).__name__.lower() + (f"-{mode}" if mode else ""))
        self._seed = 0

    def versions(self) -> dict[str, str]:
        return {p: importlib.metadata.version(p) for p in self.form.packages}

    def write(self) -> dict[str, Any]:
        """Write the format's files unless an earlier run did, whole."""
        done = self.folder / ".written.json"
        if not done.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            wall, cpu = time.perf_counter(), cpu_seconds()
            self.form.write(self.source, self.folder)
            spent = {"wall_s": time.perf_counter() - wall, "cpu_s": cpu_seconds() - cpu}
            done.write_text(json.dumps(spent), "utf-8")
        spent = json.loads(done.read_text("utf-8"))
        return {**spent, "bytes": folder_bytes(self.folder) - done.stat().st_size}

    def open(self, decode: Mapping[str, Any]) -> dict[str, Any]:
        self.form.open(self.source, self.folder, decode)
        return self.form.facts()

    def check(self, batches: int) -> dict[str, Any]:
        """Compare whole batches with the source: every value, and every picture with its neighbours in time."""
        worst, seen = 99.0, []
        batches = max(1, min(batches, len(self.source) // (2 * BATCH)))  # no sample comes twice in half an epoch
        for batch in self.form.batches(batches, 7, 0):
            loaded = self.form.loaded(batch)
            assert len(loaded.rows) == BATCH, f"a batch of {len(loaded.rows)} samples"
            worst = min(worst, *(compare(self.source, loaded, k, self.form.floor_db) for k in range(BATCH)))
            seen += loaded.rows.tolist()
        told = {"samples": len(seen), "distinct": len(set(seen)), "worst_psnr_db": round(worst, 1)}
        if told["distinct"] < len(seen):
            raise ValueError(f"the same sample twice in {len(seen)}: {told}")
        if float(np.mean(np.diff(seen) == 1)) > 0.2:
            raise ValueError("the order is not random")
        return told

    def time(self, batches: int) -> dict[str, Any]:
        """One timed pass in this process alone."""
        self._seed += 1
        return _timed(iter(self.form.batches(batches, self._seed, 0)), batches, self.form)

    def time_workers(self, batches: int, workers: int, passes: int) -> dict[str, Any]:
        """Passes one after another with the same worker processes or threads; only their wall time means something."""
        # workers run ahead by a queue: it is full when timing starts, and must be when it ends
        stream = iter(self.form.batches(passes * batches + 6 * workers, 0, workers))
        for _ in range(3 * workers):
            next(stream)
        told = [_timed(stream, batches, self.form) for _ in range(passes)]
        del stream
        gc.collect()  # ends the workers
        return {"passes": told}

    def call(self, name: str, **arguments: Any) -> Any:
        """A measurement of one format only."""
        return getattr(self.form, name)(**arguments)


def _timed(stream: Iterator[Any], batches: int, form: Format) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(batches):
        batch = next(stream)
    told = {"samples": batches * BATCH, "cpu_s": cpu_seconds() - cpu, "wall_s": time.perf_counter() - wall}
    if len(form.loaded(batch).rows) != BATCH:
        raise ValueError("a batch that is not whole")
    return told


def compare(source: Source, loaded: Loaded, k: int, floor_db: float) -> float:
    """Least PSNR of the pictures of sample k.

    Raises:
        ValueError: the sample is not what it claims to be.
    """
    row = int(loaded.rows[k])
    chunk, inside = source.chunk(row)
    if not np.array_equal(loaded.state[k], source.state[row]):
        raise ValueError(f"row {row}: wrong state")
    if not np.array_equal(loaded.action[k, :inside], chunk[:inside]):
        raise ValueError(f"row {row}: wrong actions")
    worst = 99.0
    for camera in range(len(CAMERAS)):
        got = loaded.pictures[k, camera]
        right = psnr_db(got, source.picture(row, camera))
        for other in (row - 1, row + 1):
            # a neighbour in time that is nearer means that another frame was decoded
            if 0 <= other < len(source) and psnr_db(got, source.picture(other, camera)) >= right:
                raise ValueError(f"row {row}, {CAMERAS[camera]}: the picture is that of row {other}")
        if right < floor_db:
            raise ValueError(f"row {row}, {CAMERAS[camera]}: {right:.1f} dB, below {floor_db}")
        worst = min(worst, right)
    return worst


def decode_batch(jpegs: list[list[Any]], decode: Mapping[str, Any]) -> NDArray[np.uint8]:
    """[N, cameras, SIZE, SIZE, 3] from encoded pictures, into one buffer: for formats that only store bytes."""
    import simplejpeg

    out = np.empty((len(jpegs), len(CAMERAS), SIZE, SIZE, 3), np.uint8)
    for place, row in zip(out, jpegs, strict=True):
        for buffer, data in zip(place, row, strict=True):
            simplejpeg.decode_jpeg(data, buffer=buffer, **decode)
    return out


def torch_batches(rows: Any, count: int, seed: int, workers: int, start: str | None = None) -> Iterator[Any]:
    """Batches of a map-style data set through torch's own DataLoader; `rows` may have a batched __getitems__."""
    import torch
    from torch.utils.data import DataLoader, RandomSampler

    generator = torch.Generator().manual_seed(seed)
    sampler = RandomSampler(rows, num_samples=count * BATCH, generator=generator)
    collate = _same if hasattr(rows, "__getitems__") else None
    loader = DataLoader(
        rows, BATCH, sampler=sampler, num_workers=workers, collate_fn=collate, multiprocessing_context=start
    )
    return iter(loader)


def _same(batch: Any) -> Any:
    return batch


def episode_chunks(source: Source) -> NDArray[np.float32]:
    """[rows, CHUNK, WIDTH]: the chunk of every row, for formats whose samples are written out one by one."""
    return np.stack([source.chunk(row)[0] for row in range(len(source))])
