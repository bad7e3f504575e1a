"""Training in a jail on sealed data beside the same training in the plain world: pairs of whole runs of `hagane train`.

Both runs of a pair have the same data, seed and steps, and must have the same losses to the bit, or nothing is told.
CPU is that of every process of a run: keeper, stage, init and the verb. Runs of two steps tell what a start and an end
cost; what is left is a step's, with the checkpoints that the recipe saves and the keeper seals on the way.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench.rights.measured import Figure, Spent, mean_of, ratio, spend

from hagane.cli.sealed_run import REST, is_sealed_run
from hagane.demo.members import write_logs
from hagane.seal import Keyring, open_folder
from hagane.seal.folder import OwnKeys
from hagane.terms import HaganeError, Protection

ROOT = Path(__file__).resolve().parents[2]
MILL = ROOT / "src/hagane/worlds/mill.toml"
SHORT = 2
"""Steps of a run that has nearly nothing but a start and an end."""
FORMS: tuple[Protection, Protection] = ("process", "jail")


@dataclass(frozen=True)
class Run:
    """One run."""

    spent: Spent
    """Of all its processes."""
    losses: tuple[float, ...]
    """Of its steps."""
    step_s: float
    """Median wall seconds of a step, the first left out."""


def hagane(folder: Path, *words: str) -> Spent:
    """Run one verb."""
    # bytecode is kept, as with a user; without it every start of either form would compile all sources again
    kept = {n: v for n, v in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"}
    env = {**kept, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return spend((sys.executable, "-m", "hagane", *words), env, folder)


def make_site(folder: Path, logs: Path, protection: Protection) -> None:
    """A consortium of one member in a folder: keys, a signed site, a contract of that protection, data taken in."""
    folder.mkdir()
    for owner in ("consortium-root", "member-steel", "host"):
        hagane(folder, "contract", "keygen", "--owner", owner, "--out", "signers")
    (folder / "trust").mkdir()
    for owner in ("consortium-root", "member-steel"):
        (folder / "trust" / f"{owner}.pub").write_bytes((folder / "signers" / f"{owner}.pub").read_bytes())
    site = ("contract", "site")
    hagane(folder, *site, "new", "site.toml", "--host-key", "signers/host.pub", "--operator", "consortium")
    hagane(folder, *site, "sign", "site.toml", "--key", "signers/consortium-root.pem")
    terms = ("--owner", "member-steel", "--dataset", "mill-demo", "--protection", protection)
    hagane(folder, "contract", "new", "steel.toml", *terms, "--purpose", "anchor", "member-training")
    hagane(folder, "contract", "sign", "steel.toml", "--key", "signers/member-steel.pem")
    hagane(folder, "intake", str(logs), "--embodiment", str(MILL), "--contract", "steel.toml", "--name", "mill-demo")


def train(folder: Path, name: str, steps: int) -> Run:
    """Train once, and read the run's own metrics."""
    run = folder / "runs" / name
    words = ("--recipe", "tiny", "--run", str(run), "--seed", "7", "--steps", str(steps))
    spent = hagane(folder, "train", *words)
    if is_sealed_run(run):
        rest = open_folder(run / "sealed" / REST)
        text = rest.read("metrics.jsonl", OwnKeys(rest, Keyring(folder / "keys")))
    else:
        text = (run / "metrics.jsonl").read_bytes()
    lines = [json.loads(line) for line in text.splitlines()]
    since_start_s = [line["seconds"] for line in lines]
    each_s = [later - earlier for earlier, later in pairwise(since_start_s)]
    return Run(spent, tuple(line["loss"] for line in lines), statistics.median(each_s))


def pairs(folder: Path, steps: int, count: int) -> list[tuple[Run, Run]]:
    """(plain, jailed) runs; which one is first turns from pair to pair.

    Raises:
        HaganeError: the two did not train the same.
    """
    found = []
    for number in range(count):
        runs = {
            form: train(folder / form, f"s{steps}-{number}", steps)
            for form in (FORMS if number % 2 else reversed(FORMS))
        }
        plain, jailed = (runs[form] for form in FORMS)
        if plain.losses != jailed.losses or len(plain.losses) < steps:
            raise HaganeError(f"plain and jailed runs of {steps} steps differ in their losses; nothing is timed")
        found.append((plain, jailed))
        took = f"{plain.spent.cpu_s:.2f} and {jailed.spent.cpu_s:.2f} CPU s"
        print(f"  pair {number + 1} of {count}, {steps} steps: {took}", file=sys.stderr, flush=True)
    return found


def measure(folder: Path, steps: int = 200, count: int = 8, short_count: int = 4, episodes: int = 40) -> list[Figure]:
    """Rows of the table.

    Args:
        folder: new; sites and runs are made in it.
        steps: of a long run.
        count: pairs of long runs.
        short_count: pairs of runs of `SHORT` steps.
        episodes: of the logs that are brought in.
    """
    folder.mkdir()
    logs = write_logs("mill", folder / "logs", episodes)
    for form in FORMS:
        make_site(folder / form, logs, form)
    shorts, longs = pairs(folder, SHORT, short_count), pairs(folder, steps, count)
    cpu = [(p.spent.cpu_s, j.spent.cpu_s) for p, j in longs]
    short = [(p.spent.cpu_s, j.spent.cpu_s) for p, j in shorts]
    fixed, *fixed_ends = mean_of([j - p for p, j in short])
    starts = [statistics.median(column) for column in zip(*short, strict=True)]
    a_step = [(p - starts[0], j - starts[1]) for p, j in cpu]
    whole, per_step, wall = ratio(cpu), ratio(a_step), ratio([(p.step_s, j.step_s) for p, j in longs])
    plain_s, jailed_s = (statistics.median(column) for column in zip(*cpu, strict=True))
    each_ms = [statistics.median(c) / (steps - SHORT) * 1e3 for c in zip(*a_step, strict=True)]
    of = f"{count} pairs of {steps} steps of `tiny`, a checkpoint every 20"
    about = f"{plain_s:.1f} and {jailed_s:.1f} s"
    less = f"less that of {SHORT} steps; {each_ms[0]:.1f} and {each_ms[1]:.1f} ms a step"
    return [
        Figure("training jailed and sealed / plain: a step", "x", per_step[0],
               f"{of}; CPU of all processes {less}",
               1.05, *per_step[1:]),
        Figure("training jailed and sealed / plain: a whole run", "x", whole[0],
               f"{of}; CPU of all processes, start and end with it; {about}", None, *whole[1:]),
        Figure("training jailed and sealed / plain: seconds of a step", "x", wall[0],
               f"{of}; wall, median of each run's own metrics", 1.05, *wall[1:]),
        Figure("a jailed run's start, seal and end, beyond a plain run's", "CPU s", fixed,
               f"{short_count} pairs of {SHORT} steps; {starts[0]:.1f} and {starts[1]:.1f} s", None, *fixed_ends),
    ]  # fmt: skip
