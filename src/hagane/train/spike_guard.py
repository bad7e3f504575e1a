"""SpikeGuard: the loop's side of `hagane.train.spike`: which batch is next, with which limits, and what after it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from hagane.engine import Limits, rank
from hagane.engine.checkpoint_files import place
from hagane.engine.ranks import sum_over
from hagane.model.weights import MANIFEST, complete, parse_manifest, step_of
from hagane.terms import TrainingError
from hagane.train.changes import changes_of
from hagane.train.run import read_lines
from hagane.train.skips import Skip, batch_of, skips_digest, skips_of, write_skips
from hagane.train.spike import Verdict, judge, limits, one_batch, seen, watched, way_back
from hagane.train.spike_config import SpikeConfig

MOST = 64
"""Newest checkpoints that a run may go back to."""


class SpikeGuard:
    """What of a run's steps is not taken, and where it goes on instead; the same on every rank.

    Args:
        folder: of the run; its skips.jsonl is read.
        config: when a step is not taken.
        lines: of metrics.jsonl up to the checkpoint that the run goes on from.
        since: step of the newest recorded change of data.
        writes: whether this rank writes to the folder.
    """

    def __init__(
        self,
        folder: Path,
        config: SpikeConfig,
        lines: Iterable[Mapping[str, float]] = (),
        since: int = 0,
        *,
        writes: bool = True,
    ) -> None:
        self.folder, self.config, self.since, self.writes = folder, config, since, writes
        self.skips = skips_of(folder)
        self.watch = watched(lines, config, since)

    def rewind(self, lines: Iterable[Mapping[str, float]]) -> None:
        """Go on from an earlier checkpoint, with the lines of metrics.jsonl up to it."""
        self.watch = watched(lines, self.config, self.since)

    def batch(self, step: int) -> int:
        """The batch of the data order that step `step` (from 0) learns from."""
        return batch_of(self.skips, step)

    @property
    def digest(self) -> str:
        """Names what was left out so far; a checkpoint carries it."""
        return skips_digest(self.skips)

    def limits(self) -> Limits:
        """The largest figures that the next step is taken with."""
        return limits(self.watch, self.config)

    def after(
        self, line: Mapping[str, float], taken: bool, checkpoints: Callable[[], Mapping[int, str]]
    ) -> Skip | None:
        """Note a step; a skip when there is something to leave out.

        Where `skip.to` is less than `skip.step`, newer checkpoints are gone: load that one and `rewind`. Else go on
        with `batch` of the same step.

        Args:
            line: figures of the step, globally summed; "step" is its number from 1.
            taken: whether the weights moved.
            checkpoints: gives the ids of the whole checkpoints by step, the same steps on every rank.

        Raises:
            TrainingError: the guard gives up.
        """
        if taken:
            self.watch = seen(self.watch, line, self.config)
        verdict = judge(self.watch, line, taken, self.skips, self.config)
        if verdict.do == "go on":
            return None
        skip = one_batch(verdict, line, self.skips) if verdict.do == "skip" else None
        if verdict.do == "go back":
            # a checkpoint from before a change of data would go on with other data than it was followed by
            known = {step: name for step, name in checkpoints().items() if step >= self.since}
            skip = way_back(verdict, line, taken, self.skips, known, self.config)
        if skip is None:
            raise self._gave_up(verdict, line)
        if skip.to < skip.step and self.writes:
            # first, so that a kill between leaves a run that finds the same spike again
            forget_after(self.folder / "checkpoints", skip.to)
        self.skips = (*self.skips, skip)
        if self.writes:
            write_skips(self.folder, self.skips)
        return skip

    def _gave_up(self, verdict: Verdict, line: Mapping[str, float]) -> TrainingError:
        """One message for a run that cannot be helped by leaving batches out."""
        again = verdict.do == "give up"
        returned = sum(s.to != s.step for s in self.skips)
        tried = f" after {len(self.skips) - returned} batches left out and {returned} returns to a checkpoint"
        return TrainingError(
            f"training does not go on at step {int(line['step'])}: {verdict.why}{tried}"
            + ("" if again else ", and there is no checkpoint to go back to"),
            where=str(self.folder),
            next_step="look at skips.jsonl and at the data sets it points to (`hagane doctor`), or start again with a "
            "lower lr",
        )


def forget_after(checkpoints: Path, step: int) -> None:
    """Remove checkpoints newer than a step; each is no whole checkpoint any more before the first byte of it goes."""
    for folder in sorted(checkpoints.glob("step-*"), reverse=True):
        if step_of(folder) > step:
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)


def past(folder: Path, step: int) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl up to a step."""
    path = folder / "metrics.jsonl"
    return [line for line in read_lines(path) if line["step"] <= step] if path.exists() else []


def last_change(folder: Path) -> int:
    """Step of the newest recorded change of data; 0 without."""
    return max((c.step for c in changes_of(folder)), default=0)


def checkpoint_at(folder: Path, step: int) -> Path:
    """Where a run's checkpoint of a step lies."""
    return place(folder / "checkpoints", step)[0]


def whole_checkpoints(folder: Path, device: torch.device) -> dict[int, str]:
    """Ids of a run's whole checkpoints by step, as rank 0 sees them; other ranks learn the steps only.

    Args:
        folder: of the run.
        device: that ranks talk on.
    """
    whole = complete(folder / "checkpoints") if rank() == 0 else []
    found = {step_of(path): parse_manifest(path).id for path in whole}
    steps = torch.zeros(MOST, dtype=torch.int64, device=device)
    for i, step in enumerate(sorted(found)[-MOST:]):
        steps[i] = step + 1
    sum_over([steps])
    return {step - 1: found.get(step - 1, "") for step in steps.tolist() if step}
