"""`hagane demo`: the whole loop on one small machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class Demo:
    """Members' logs in, one generalist trained, judged, served and driven behind a guard; ends in a page.

    About ten minutes on two cores; nothing is downloaded. Every step prints the command that does the same.
    """

    out: Path = Path("demo-out")
    """Folder for everything that is made."""
    quick: bool = False
    """A few minutes instead: everything runs, the model learns little."""
    logs: Literal["", "arm", "road", "mill"] = ""
    """Only let this member's machine write its logs."""


def main(argv: list[str]) -> int:
    """Run `hagane demo`."""
    o = tyro.cli(Demo, args=argv, prog="hagane demo")
    # waiting threads must sleep, not spin: on a busy machine spinning costs ten times the work
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from hagane.cli import main as run_verb
    from hagane.demo.members import member_of, write_logs
    from hagane.demo.story import Plan, quick, tell

    if o.logs:
        print(write_logs(o.logs, o.out / "logs" / o.logs, member_of(o.logs).episodes))
        return 0
    plan = Plan(o.out)
    tell(quick(plan) if o.quick else plan, lambda args: run_verb(list(args)))
    return 0
