"""One cell of the grid: train through the loop, judge the served weights open and closed loop, say it as a run."""

from __future__ import annotations

import platform
import shutil
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import grid
import numpy as np

from hagane.catalog import Catalog, Loader, Mixture
from hagane.evaluate import PolicyPilot, bootstrap
from hagane.model import load_config
from hagane.model.normaliser import centre_and_scale
from hagane.model.slots import sample_layouts
from hagane.plan.count import closed_form
from hagane.plan.scaling_runs import ScaledRun, Score
from hagane.plan.work import data_tokens, sample_flops
from hagane.policy import ModelPolicy, load_policy
from hagane.train import open_data, train
from hagane.worlds import fly, make
from hagane.worlds.seeds import TUNING_SEEDS, check_seeds

JUDGED = 512
"""Samples of each machine for the held-out loss."""
TRIALS = {"mill": 24, "road": 16}
"""Seeds of each case, from those for tuning: these figures decide choices."""
FIRST_SEED = 700_000


def measure(catalog: Catalog, cell: grid.Cell, work: Path, lr_factor: float = 1.0) -> ScaledRun:
    """Train and judge one cell; the run's folder is removed afterwards."""
    config, folder = grid.config(cell, lr_factor), work / cell.name
    shutil.rmtree(folder, ignore_errors=True)
    data = open_data(catalog, config)
    began, cpu = time.monotonic(), time.process_time()
    record = train(folder, config, data)
    cpu_s, wall_s = time.process_time() - cpu, time.monotonic() - began
    checkpoint = folder / "checkpoints" / f"step-{cell.steps:06d}"
    policy, shape = load_policy(checkpoint, threads=1), load_config(checkpoint)
    layouts = {layout.embodiment.name: layout for layout in sample_layouts(shape)}
    samples = {world: data.train.counts[grid.dataset(world, cell.amount)] for world in grid.WORLDS}
    unique = {world: data.train.samples[grid.dataset(world, cell.amount)] for world in grid.WORLDS}
    count, cpu = closed_form(shape), time.process_time()
    run = ScaledRun(
        name=cell.name,
        size=cell.size,
        seed=cell.seed,
        parameters=count.total,
        active=count.active,
        steps=cell.steps,
        tokens=cell.steps * sum(n * data_tokens(layouts[w]) for w, n in samples.items()),
        unique_tokens=sum(n * data_tokens(layouts[w]) for w, n in unique.items()),
        trunk_tokens=cell.steps * sum(n * layouts[w].length for w, n in samples.items()),
        flops=float(cell.steps * sum(n * sample_flops(shape, w) for w, n in samples.items())),
        cpu_s=round(cpu_s, 2),
        held_out=judge(catalog, policy),
        scores={world: closed_loop(world, policy) for world in grid.WORLDS},
        episodes={w: len(data.train.episodes[grid.dataset(w, cell.amount)]) for w in grid.WORLDS},
        notes={
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "code": record.code_digest[:16],
            "checkpoint": record.checkpoint_id[:16],
            "torch": record.environment["torch"],
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, one thread",
            "lr": f"{config.step.lr:g}",
            "wall_s": f"{wall_s:.1f}",
            "judging_cpu_s": f"{time.process_time() - cpu:.1f}",
            "trial_seeds": f"{FIRST_SEED}..{FIRST_SEED + max(TRIALS.values()) - 1}",
        },
    )
    shutil.rmtree(folder)
    return run


def judge(catalog: Catalog, policy: ModelPolicy) -> dict[str, float]:
    """By machine, mean absolute error of served actions on the judge's episodes, in standard deviations of the action.

    Standard deviations are those of the largest training set, so that runs on less data are judged on one scale.
    """
    names = [grid.dataset(world, "judge") for world in grid.WORLDS]
    loader = Loader(
        catalog,
        names,
        Mixture(dict.fromkeys(names, 1.0)),
        purpose="evaluate",
        samples_per_step=JUDGED * len(names),
    )
    out = {}
    for part in loader.at(0).parts:
        world = part.observation.embodiment
        stats = catalog.stats([grid.dataset(world, grid.AMOUNTS[-1])], "evaluate")
        channels = [c.name for c in policy.embodiments[world].act]
        scale_A = np.concatenate([centre_and_scale(stats[name])[1] for name in channels])
        horizon = part.actions_NHA.shape[1]
        wrong_NHA = np.abs(policy.act(part.observation).actions_NHA[:, :horizon] - part.actions_NHA) / scale_A
        out[world] = float(wrong_NHA[part.action_valid_NH].mean())
    return out


def closed_loop(world_name: str, policy: ModelPolicy) -> Score:
    """Fly every case on seeds for tuning."""
    world, seeds = make(world_name), list(range(FIRST_SEED, FIRST_SEED + TRIALS[world_name]))
    check_seeds(seeds, TUNING_SEEDS, "tuning")
    scores_N = np.concatenate([fly(world, case, seeds, PolicyPilot(policy)).scores_N for case in world.cases])
    return Score(float(scores_N.mean()), *bootstrap(scores_N), len(scores_N), expert(world_name), world.measure)


@cache
def expert(world_name: str) -> float:
    """Mean score of the expert, from whom all learn, on the same seeds."""
    world, seeds = make(world_name), range(FIRST_SEED, FIRST_SEED + TRIALS[world_name])
    pilot = world.pilots["expert"]
    return float(np.concatenate([fly(world, case, list(seeds), pilot()).scores_N for case in world.cases]).mean())
