"""`hagane evaluate`: a checkpoint in a world, closed loop, beside baselines and the expert."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hagane.cli.inside import tell
from hagane.cli.keeper import kept
from hagane.cli.opens import Opens
from hagane.cli.sealed_run import sealed_run_at
from hagane.terms import HaganeError, Policy, Scorecard

if TYPE_CHECKING:
    from hagane.evaluate import Entry
    from hagane.policy import ModelPolicy
    from hagane.worlds import World


@dataclass(frozen=True)
class Evaluate:
    """Fly a checkpoint and every baseline of a world on seeds kept for evaluation; print and keep the score card.

    First the policy's conventions are checked with an expert's episode: a wrong sign, scale or order stops here.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Checkpoint folder, or a run's folder (its newest checkpoint)."""
    world: str
    """Name of the world: arm, mill, road, or one of yours."""
    trials: int = 40
    """Seeds of each case, for ours, the classical rows and the expert."""
    weak_trials: int = 0
    """Seeds of each case for the untrained and constant rows; 0 means as many."""
    out: Path | None = None
    """Run folder to keep scorecards/ and replays/ in; empty keeps nothing."""
    replays: int = 1
    """Episodes of each case to draw for the report, with ours, the best baseline and the expert."""
    every: int = 1
    """Control steps between two frames of a replay."""
    processes: int = 2
    """Rows at once."""
    home: Path = Path()
    """The site's folder: for a run that lies sealed."""


def main(argv: list[str]) -> int:
    """Run `hagane evaluate`.

    Raises:
        HaganeError: a checkpoint that cannot be loaded, a world it does not know, conventions that do not hold.
    """
    o = tyro.cli(Evaluate, args=argv, prog="hagane evaluate")
    if (code := kept(["evaluate", *argv], lambda: opens_of(o))) is not None:
        return code
    from rich.console import Console

    from hagane.console import card_table
    from hagane.evaluate import run_card, save_card
    from hagane.policy import load_policy
    from hagane.worlds import make

    checkpoint = find_checkpoint(o.checkpoint)
    policy, world = load_policy(checkpoint), make(o.world)
    policy.reset(world.embodiment, "")
    check(policy, world)
    card = run_card(
        o.world,
        entries(world, checkpoint, o.trials, o.weak_trials or o.trials),
        checkpoint_id=policy.checkpoint_id,
        processes=o.processes,
        progress=show,
    )
    Console(width=118).print(card_table(card))
    if o.out is not None:
        save_card(o.out / "scorecards" / f"{o.world}.json", card)
        if o.replays:
            keep_replay(o, world, policy, card)
    return 0


def opens_of(o: Evaluate) -> Opens | None:
    """The run that is judged, if it lies sealed; the words of its table are those of the world."""
    from hagane.worlds import make

    run = sealed_run_at(o.checkpoint)
    if run is None:
        return None
    world = make(o.world)
    words = frozenset({o.world, *world.cases, *world.pilots, "untrained", "ours", "expert"})
    return Opens(o.home, "evaluate", runs=(run,), makes=(o.out,) if o.out is not None else (), words=words)


def show(case: str, who: str, score: float, n: int) -> None:
    """A row as soon as it is measured."""
    print(f"{case:<26} {who:<34} {score:9.3f}  n={n}", flush=True)
    tell("row", {"case": case, "who": who, "score": score, "n": n})


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder itself, or a run's newest."""
    from hagane.model import latest

    return latest(path / "checkpoints") or path


def entries(world: World, checkpoint: Path, trials: int, weak_trials: int) -> list[Entry]:
    """The rows of a card, weakest first."""
    from hagane.evaluate import Entry

    weak = [who for who in world.pilots if who.split(":")[0] in ("constant", "simplest")]
    strong = [who for who in world.pilots if who.split(":")[0] == "classical"]
    rows = [Entry("untrained", weak_trials, partial(untrained, checkpoint))]
    rows += [Entry(who, weak_trials) for who in weak] + [Entry(who, trials) for who in strong]
    return [*rows, Entry("ours", trials, partial(ours, checkpoint)), Entry("expert", trials)]


def ours(checkpoint: Path) -> Policy:
    """The checkpoint's policy, on one thread: rows run side by side."""
    from hagane.policy import load_policy

    return load_policy(checkpoint, threads=1)


def untrained(checkpoint: Path) -> Policy:
    """The same network before it learned."""
    from hagane.policy import untrained_policy

    return untrained_policy(checkpoint, threads=1)


def check(policy: ModelPolicy, world: World) -> None:
    """Conventions first.

    Raises:
        HaganeError: one does not hold.
    """
    from hagane.evaluate import check_conventions, evaluation_seeds

    checks = check_conventions(policy, world, evaluation_seeds(4))
    for c in checks:
        print(f"{'ok  ' if c.passed else 'FAIL'} {c.name}: {c.detail}", flush=True)
    if wrong := [c.name for c in checks if not c.passed]:
        raise HaganeError(
            f"the policy's conventions do not hold: {', '.join(wrong)}",
            where=world.embodiment.name,
            next_step="compare the embodiment file with the one of the run, and the log's units and column order",
        )


def keep_replay(o: Evaluate, world: World, policy: ModelPolicy, card: Scorecard) -> None:
    """Draw a few episodes of ours, the best baseline and the expert."""
    from hagane.evaluate import PolicyPilot, best_classical, record_replay, save_replay

    assert o.out is not None
    rival = best_classical(card).who
    pilots = {"ours": PolicyPilot(policy), rival: world.pilots[rival](), "expert": world.pilots["expert"]()}
    replay = record_replay(world, pilots, card.seeds[: o.replays], every=o.every)
    save_replay(o.out / "replays" / f"{o.world}.json", replay)
