"""Score cards: rows of controllers over a world's cases, on seeds that neither data nor tuning ever used."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from hagane.evaluate.closed_loop import PolicyPilot
from hagane.evaluate.intervals import bootstrap, wilson
from hagane.terms import ConfigError, Policy, Row, Scorecard
from hagane.terms.files import write_whole
from hagane.worlds import Outcome, Pilot, World, fly, make
from hagane.worlds.seeds import EVALUATION_SEEDS, check_seeds

PolicyMaker = Callable[[], Policy]
"""Makes a policy where it is needed, perhaps in another process; must be picklable (a partial of a function)."""
ALL = "all"
"""Case name of the row over all cases."""


@dataclass(frozen=True)
class Entry:
    """One controller that a card is asked for."""

    who: str
    """untrained, constant, classical, ours or expert, with a detail after a colon."""
    trials: int
    """Seeds of each case."""
    policy: PolicyMaker | None = None
    """Makes the policy; None takes the world's pilot named `who`."""


@dataclass(frozen=True)
class Job:
    """One entry on one case: what a worker process does."""

    world: str
    """Name of the world."""
    case: str
    """Case of the world."""
    entry: Entry
    """Controller."""


def evaluation_seeds(trials: int) -> list[int]:
    """The first `trials` seeds kept for evaluation; every row uses the same ones, so rows can be paired."""
    seeds = list(range(EVALUATION_SEEDS.start, EVALUATION_SEEDS.start + trials))
    check_seeds(seeds, EVALUATION_SEEDS, "evaluation")
    return seeds


def run_job(job: Job) -> Outcome:
    """Fly one entry on one case."""
    world = make(job.world)
    pilot = PolicyPilot(job.entry.policy()) if job.entry.policy else named_pilot(world, job.entry.who)
    return fly(world, job.case, evaluation_seeds(job.entry.trials), pilot)


def named_pilot(world: World, who: str) -> Pilot:
    """A world's pilot by row name.

    Raises:
        ConfigError: the world has none of that name.
    """
    if who not in world.pilots:
        known = ", ".join(world.pilots)
        raise ConfigError(f"no row {who!r}", where=f"world {world.embodiment.name!r}", next_step=f"it has: {known}")
    return world.pilots[who]()


def run_card(
    world_name: str,
    entries: Sequence[Entry],
    *,
    checkpoint_id: str = "",
    processes: int = 1,
    progress: Callable[[str, str, float, int], None] = lambda case, who, score, n: None,
) -> Scorecard:
    """Fly every entry on every case of a world.

    Args:
        world_name: registered name of the world.
        entries: the rows, in the order they are printed.
        checkpoint_id: the checkpoint under test.
        processes: jobs at once; each makes its own world and policy.
        progress: called with (case, who, mean score, trials) as rows come in.

    Raises:
        ConfigError: a pilot that the world does not have, seeds that are not for evaluation.
    """
    world = make(world_name)
    for e in entries:
        if e.policy is None:
            named_pilot(world, e.who)
    jobs = [Job(world_name, case, e) for e in entries for case in world.cases]
    outcomes: dict[tuple[str, str], Outcome] = {}
    with _workers(processes) as pool:
        for job, outcome in zip(jobs, pool(jobs), strict=True):
            outcomes[job.entry.who, job.case] = outcome
            progress(job.case, job.entry.who, float(outcome.scores_N.mean()), len(outcome.scores_N))
    rows = []
    for e in entries:
        mine = [outcomes[e.who, case] for case in world.cases]
        rows += [_row(world.measure, case, e.who, [o]) for case, o in zip(world.cases, mine, strict=True)]
        if len(mine) > 1:
            rows.append(_row(world.measure, ALL, e.who, mine))
    seeds = tuple(evaluation_seeds(max(e.trials for e in entries)))
    return Scorecard(world.embodiment.name, world.measure, tuple(rows), seeds, checkpoint_id)


def _row(measure: str, case: str, who: str, outcomes: Sequence[Outcome]) -> Row:
    scores_N: NDArray[np.float64] = np.concatenate([o.scores_N for o in outcomes])
    n = len(scores_N)
    low, high = wilson(round(float(scores_N.sum())), n) if measure.startswith("success") else bootstrap(scores_N)
    names = outcomes[0].details
    detail = {name: float(np.concatenate([o.details[name] for o in outcomes]).mean()) for name in names}
    return Row(case, who, float(scores_N.mean()), low, high, n, detail)


@contextmanager
def _workers(processes: int) -> Iterator[Callable[[Sequence[Job]], Iterable[Outcome]]]:
    """`map` in this process, or over spawned ones (never forked: torch and simulators hold threads)."""
    if processes < 2:
        yield lambda jobs: map(run_job, jobs)
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"))
    try:
        yield lambda jobs: pool.map(run_job, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def save_card(path: Path, card: Scorecard) -> None:
    """Write a card as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, [json.dumps(dataclasses.asdict(card), indent=1, ensure_ascii=False).encode()])


def load_card(path: Path) -> Scorecard:
    """Read a card back, strictly.

    Raises:
        ConfigError: the file is missing or is no score card.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Scorecard)
    except (OSError, msgspec.MsgspecError) as e:
        raise ConfigError(f"no score card: {e}", where=str(path), next_step="make one with `hagane evaluate`") from None


def best_classical(card: Scorecard, case: str = "") -> Row:
    """The classical row with the highest score.

    Raises:
        KeyError: there is none.
    """
    found = [r for r in card.rows if r.who.startswith("classical") and case in ("", r.case)]
    if not found:
        raise KeyError(f"no classical row in the card of {card.embodiment!r}")
    return max(found, key=lambda r: r.score)


def by_who(card: Scorecard) -> Mapping[str, Row]:
    """The widest row of each controller: over all cases where there are several."""
    return {r.who: r for r in card.rows if r.case == ALL or ALL not in {x.case for x in card.rows}}
