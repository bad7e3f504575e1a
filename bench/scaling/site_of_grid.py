"""The site of a scaling measurement: demonstrations of two machines in nested amounts, brought in under contracts."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import grid

from hagane.cli import main as run_verb
from hagane.cli.site import open_catalog
from hagane.demo.members import member_of, write_format
from hagane.demo.site import found_site
from hagane.worlds import collect, make

JUDGE_SEED = 400_000
"""First seed of the judge's episodes, far from the training data's."""


def make_site(home: Path) -> Path:
    """Let the machines run, sign the contracts, bring the logs in; what is there already is kept."""
    found_site(home)
    (home / "trust").mkdir(exist_ok=True)
    for world in grid.WORLDS:
        owner = member_of(world).name
        if not (home / "trust" / f"{owner}.pub").exists():
            verb("contract", "keygen", "--owner", owner, "--out", str(home / "keys"))
            (home / "trust" / f"{owner}.pub").write_bytes((home / "keys" / f"{owner}.pub").read_bytes())
        for amount in (*grid.AMOUNTS, "judge"):
            bring_in(home, world, owner, amount)
    return home


def bring_in(home: Path, world_name: str, owner: str, amount: int | str) -> None:
    """One data set: expert runs with noise on what is executed, clean commands, through the machine's own format."""
    name = grid.dataset(world_name, amount)
    if name in {record.name for record in open_catalog(home, noted=False).ls()}:
        return
    world = make(world_name)
    first = JUDGE_SEED if amount == "judge" else 0
    count = grid.episodes(world_name, grid.JUDGE if amount == "judge" else int(amount))
    seeds = range(first, first + count)
    # a road has two cases: seeds alternate, so that a smaller set is the beginning of a larger one
    runs = [
        run
        for number, case in enumerate(world.cases)
        for run in collect(world, case, seeds[number :: len(world.cases)], world.pilots["expert"](), first_id=first)
    ]
    folder = home / "logs" / name
    folder.mkdir(parents=True, exist_ok=True)
    log, terms = write_format(world.embodiment, iter(runs), folder), home / "contracts" / f"{name}.toml"
    verb("contract", "new", str(terms), "--owner", owner, "--dataset", name, "--protection", "process")
    verb("contract", "sign", str(terms), "--key", str(home / "keys" / f"{owner}.pem"))
    machine = Path(__import__("hagane.worlds").worlds.__file__).parent / f"{world_name}.toml"
    verb("intake", str(log), "--embodiment", str(machine), "--name", name, "--contract", str(terms),
         "--home", str(home), "--jobs", "1")  # fmt: skip


def verb(*args: str) -> None:
    """Run `hagane ARGS`; what it says is shown only where it fails."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = run_verb(list(args))
    if code:
        raise SystemExit(f"hagane {' '.join(args)} ended with {code}\n{said.getvalue()}")
