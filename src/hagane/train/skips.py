"""Batches that a run left out, in its folder's skips.jsonl; the order of all others stays what it was.

Batch d of the data order is a pure function of (seed, mixture, d). Without skips, optimiser step k (from 0) learns from
batch k. A skip takes a span of batches out of the order; step k then learns from the k-th of those that are left. A
skip never begins before the batch of the step that the run goes on from, so no earlier step's batch changes, and the
line is written before the run goes on: a run that is killed, or repeated with the same file, takes the same batches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hagane.terms import TrainingError, digest_value
from hagane.train.run import read_lines, write_file


@dataclass(frozen=True)
class Skip:
    """A span of batches that was left out, and why."""

    step: int
    """Steps done when it was decided."""
    to: int
    """Steps done that the run went on from: the same when the weights had not moved, else a checkpoint's."""
    first: int
    """First batch left out, counted in the data order."""
    last: int
    """Last batch left out."""
    why: str
    """In words."""
    loss: float | None
    """Loss that decided it; None when it was not finite."""
    gradient_norm: float | None
    """Gradient norm, before clipping."""
    checkpoint: str
    """Id of the checkpoint that the run went back to; empty when it did not."""


def batch_of(skips: Sequence[Skip], step: int) -> int:
    """The batch of the data order that an optimiser step (from 0) learns from."""
    batch = step
    for first, last in merged(skips):
        if first > batch:
            break
        batch += last - first + 1
    return batch


def merged(skips: Sequence[Skip]) -> list[tuple[int, int]]:
    """The spans in order, without overlaps."""
    out: list[tuple[int, int]] = []
    for first, last in sorted((s.first, s.last) for s in skips):
        if out and first <= out[-1][1] + 1:
            out[-1] = out[-1][0], max(out[-1][1], last)
        else:
            out.append((first, last))
    return out


def in_a_row(skips: Sequence[Skip], step: int) -> int:
    """Batches left out at this very step, one after the other, since the run last went back."""
    count = 0
    for s in reversed(skips):
        if s.to != s.step or s.step != step:
            break
        count += 1
    return count


def returns(skips: Sequence[Skip], step: int, window: int) -> int:
    """Times that the run went back without having come a window of steps further than where it last did."""
    count = 0
    for s in reversed([s for s in skips if s.to != s.step]):
        if step - s.step > window:
            break
        count, step = count + 1, s.step
    return count


def singles(skips: Sequence[Skip], step: int, window: int) -> int:
    """Batches left out one by one in the last window of steps."""
    return sum(s.to == s.step and s.step > step - window for s in skips)


def last_return(skips: Sequence[Skip]) -> int:
    """The step that the run last went back to."""
    return next(s.to for s in reversed(skips) if s.to != s.step)


def skips_of(folder: Path) -> tuple[Skip, ...]:
    """What a run left out so far, in the order of the decisions.

    Raises:
        TrainingError: the file holds something else.
    """
    path = folder / "skips.jsonl"
    if not path.exists():
        return ()
    try:
        return tuple(Skip(**line) for line in read_lines(path))
    except (ValueError, TypeError):
        raise TrainingError(
            "a line is no record of batches left out", where=str(path), next_step="restore the file from a copy"
        ) from None


def write_skips(folder: Path, skips: Sequence[Skip]) -> None:
    """Write skips.jsonl, whole or not at all.

    Raises:
        TrainingError: the disk is full or cannot be written.
    """
    write_file(folder / "skips.jsonl", b"".join(json.dumps(asdict(s)).encode() + b"\n" for s in skips))


def skips_digest(skips: Sequence[Skip]) -> str:
    """Names what was left out: a checkpoint carries it in its cursor, as "skips"."""
    return digest_value(sorted(merged(skips)))


def check_skips(folder: Path, step: int, cursor: Mapping[str, str], skips: Sequence[Skip]) -> None:
    """Refuse to go on from a checkpoint that was made with other batches than skips.jsonl says.

    The checkpoint knows the first lines of the file; later ones may only concern batches after it.

    Args:
        folder: of the run.
        step: of the checkpoint.
        cursor: of the checkpoint.
        skips: of the file.

    Raises:
        TrainingError: the file was changed or lost.
    """
    known = cursor.get("skips", skips_digest(()))
    for n in range(len(skips) + 1):
        after = skips[n:]
        if skips_digest(skips[:n]) == known and all(s.first >= batch_of(skips[:n], step) for s in after):
            return
    raise TrainingError(
        f"the checkpoint at step {step} learned from other batches than skips.jsonl says",
        where=str(folder),
        next_step="restore skips.jsonl from a copy, or start a new run",
    )
