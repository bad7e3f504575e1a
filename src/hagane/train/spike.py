"""Loss spikes and numbers that are not finite: which steps are not taken, and when a run goes back.

A batch whose loss or gradient norm lies far above the recent ones is not learned from (as OLMo 2 does, arXiv
2501.00656, with its spread over 128 steps). When several in a row are bad, the weights are taken for damaged; the same
when the loss has crept up. Then the run goes back to a checkpoint and leaves out the batches that led there (as PaLM
did by hand, arXiv 2204.02311, section 5.1). All that is judged are figures summed over all ranks, so all ranks decide
alike, and everything a decision rests on is in the run's folder, so a run that was killed decides as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Literal

from hagane.engine import Limits
from hagane.train.skips import Skip, batch_of, in_a_row, last_return, returns, singles
from hagane.train.spike_config import LEAST, SpikeConfig

BLOCK = 32
"""Steps whose median loss is compared with the best such median."""
NORMAL = 1.4826
"""Standard deviation of normal numbers over their median absolute deviation."""
TINY = 1e-12
TOO_MANY = 8
"""The guard gives up when more than one batch in so many is left out over a window."""


@dataclass(frozen=True)
class Watch:
    """What is remembered of the steps that were taken."""

    losses: tuple[float, ...] = ()
    """Logarithms of the newest losses, oldest first."""
    norms: tuple[float, ...] = ()
    """Logarithms of the newest gradient norms."""
    taken: int = 0
    """Steps seen."""
    best: float = math.inf
    """Lowest median of a block of logarithms of losses."""
    best_step: int = 0
    """Step that ended it."""
    drifted: bool = False
    """Whether the newest block lies far above the best."""


@dataclass(frozen=True)
class Verdict:
    """What to do after a step."""

    do: Literal["go on", "skip", "go back", "give up"]
    """skip: the step was not taken, its batch is left out; go back: to an earlier checkpoint."""
    why: str = ""
    """In words."""
    onset: int = 0
    """Step before which the weights are believed to be good."""


def noise(numbers: Sequence[float]) -> float:
    """Standard deviation of a series about its course, from its steps: neither a trend nor outliers move it much."""
    return NORMAL * median(abs(b - a) for a, b in pairwise(numbers)) / math.sqrt(2)


def limits(watch: Watch, config: SpikeConfig) -> Limits:
    """The largest figures that the next step is taken with."""
    if len(watch.losses) < LEAST or math.isinf(config.z):
        return Limits()

    def largest(logs: Sequence[float], factor: float) -> float:
        return math.exp(median(logs[-LEAST:]) + max(config.z * noise(logs), math.log(factor)))

    return Limits(largest(watch.losses, config.loss_factor), largest(watch.norms, config.norm_factor))


def seen(watch: Watch, line: Mapping[str, float], config: SpikeConfig) -> Watch:
    """The watch after a step that was taken, told by its line of metrics.jsonl."""
    losses = (*watch.losses, math.log(max(line["loss"], TINY)))[-config.window :]
    norms = (*watch.norms, math.log(max(line["gradient_norm"], TINY)))[-config.window :]
    now = replace(watch, losses=losses, norms=norms, taken=watch.taken + 1, drifted=False)
    if now.taken % BLOCK or math.isinf(config.z):
        return now
    level = median(losses[-BLOCK:])
    # a median of B normal numbers spreads by 1.25 / sqrt(B) of theirs; two of them are compared
    allowed = max(math.log(config.loss_factor), config.z * 1.25 * noise(losses) * math.sqrt(2 / BLOCK))
    if level < now.best:
        return replace(now, best=level, best_step=int(line["step"]))
    return replace(now, drifted=level > now.best + allowed)


def watched(lines: Iterable[Mapping[str, float]], config: SpikeConfig, since: int = 0) -> Watch:
    """The watch of a run that goes on, from its metrics up to the checkpoint.

    Args:
        lines: of metrics.jsonl, in order.
        config: the guard's.
        since: step of the newest recorded change of data, which the loss may follow; what lies before is forgotten.
    """
    watch = Watch()
    for line in lines:
        if line["step"] > since:
            watch = seen(watch, line, config)
    return watch


def judge(watch: Watch, line: Mapping[str, float], taken: bool, skips: Sequence[Skip], config: SpikeConfig) -> Verdict:
    """What to do after a step.

    Args:
        watch: after the step, if it was taken (`seen`).
        line: its figures; "step" is its number from 1.
        taken: whether its figures were within the limits, so that the weights moved.
        skips: what was left out so far.
        config: the guard's.
    """
    done = int(line["step"]) - (not taken)
    if taken and not watch.drifted:
        return Verdict("go on")
    if taken:
        verdict = Verdict("go back", f"the loss crept up since step {watch.best_step}", watch.best_step)
    elif in_a_row(skips, done) + 1 < config.patience:
        verdict = Verdict("skip", bad_words(line), done)
        if singles(skips, done, config.window) + 1 > config.window // TOO_MANY:
            return replace(verdict, do="give up", why=f"too many batches are bad; the last: {verdict.why}")
        return verdict
    else:
        verdict = Verdict("go back", f"{config.patience} bad batches in a row; the last: {bad_words(line)}", done)
    if returns(skips, done, config.window) >= config.rollbacks:
        return replace(verdict, do="give up")
    return verdict


def way_back(
    verdict: Verdict,
    line: Mapping[str, float],
    taken: bool,
    skips: Sequence[Skip],
    checkpoints: Mapping[int, str],
    config: SpikeConfig,
) -> Skip | None:
    """Where to go on from, and which batches to leave out; None when there is no checkpoint to go back to.

    The newest checkpoint from before the onset; one older than last time, if the run has just gone back. What is left
    out ends with the last batch seen. It begins some batches before the first bad one, since a batch before it may have
    done the damage; after a creeping rise nobody can say which, so it begins at the checkpoint.

    Args:
        verdict: "go back".
        line: figures of the step it was made on.
        taken: whether that step was taken.
        skips: what was left out so far.
        checkpoints: ids of the whole checkpoints by step, those before the newest change of data left away.
        config: the guard's.
    """
    done = int(line["step"]) - (not taken)
    again = returns(skips, done, config.window)
    onset = min(verdict.onset, last_return(skips) - 1) if again else verdict.onset
    if not checkpoints:
        return None
    to = max((step for step in checkpoints if step <= onset), default=min(checkpoints))
    last = batch_of(skips, done - taken)
    first = batch_of(skips, to)
    if not taken:
        bad = [s.first for s in skips[len(skips) - in_a_row(skips, done) :]]
        first = max(first, min([*bad, last]) - (config.lead << again))
    return Skip(done, to, first, last, verdict.why, *figures(line), checkpoints[to])


def one_batch(verdict: Verdict, line: Mapping[str, float], skips: Sequence[Skip]) -> Skip:
    """The record of a batch that a step was not taken with, "skip"."""
    done = int(line["step"]) - 1
    batch = batch_of(skips, done)
    return Skip(done, done, batch, batch, verdict.why, *figures(line), "")


def figures(line: Mapping[str, float]) -> tuple[float | None, float | None]:
    """Loss and gradient norm as JSON can hold them."""
    loss, norm = line["loss"], line["gradient_norm"]
    return (loss if math.isfinite(loss) else None), (norm if math.isfinite(norm) else None)


def bad_words(line: Mapping[str, float]) -> str:
    """What is bad about a step that was not taken."""
    odd = [name.partition("/")[2] for name, x in line.items() if "/" in name and not math.isfinite(x)]
    if odd:
        return f"a loss of {', '.join(sorted(set(odd)))} is not finite"
    if not math.isfinite(line["loss"]) or not math.isfinite(line["gradient_norm"]):
        return "the loss or the gradient is not finite"
    return (
        f"a loss of {line['loss']:.4g} with a gradient norm of {line['gradient_norm']:.4g} is far above the recent ones"
    )
