"""Stands where the keeper of a run stands: starts one attempt, with no protection or in a jail, and tells how it ended.

    HAGANE_TRIAL=JSON python -m hagane.jail.trial_keeper

It leads a session whose terminal is its standard input, and holds descriptors that a careless keeper would pass on. It
stays until the judge has looked.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

from hagane.jail.plan import Bind, Layers, Plan, python_env, python_reads
from hagane.jail.run import start

OUTPUT = "output"
"""The layer that is the keeper's own: raw output of a jail goes into a log, not to the keeper's output."""


def main() -> int:
    """Run the order in the environment, tell the exit code on the status descriptor, wait for its other side."""
    order = json.loads(os.environ.pop("HAGANE_TRIAL"))
    for fd in (order["status"], order["wait"]):
        os.set_inheritable(fd, False)
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    try:
        told = str(_plain(order) if order["layers"] is None else _jailed(order))
    except Exception as e:
        # what the judge prints as the reason why there was no run
        told = f"!{type(e).__name__}: {e}"
    os.write(order["status"], told.encode() + b"\n")
    os.close(order["status"])
    os.read(order["wait"], 1)
    return 0


def _plain(order: dict[str, Any]) -> int:
    return subprocess.run(order["command"], close_fds=False, cwd=order["here"], check=False).returncode


def _jailed(order: dict[str, Any]) -> int:
    """Run the command in a jail that shows `data` read-only and lets `runs` be written; its output goes nowhere."""
    layers = frozenset(order["layers"])
    plan = Plan(
        command=tuple(order["command"]),
        env=python_env(),
        reads=(*python_reads(), Bind.at(order["data"])),
        works=(Path(order["runs"]),),
        cwd=Path("/tmp"),
        size_bytes=64 << 20,
        layers=Layers(layers - {OUTPUT}),
    )
    log = os.open(os.devnull, os.O_WRONLY)
    shown = (log, log) if OUTPUT in layers else (1, 2)
    with start(plan, *shown) as jailed:
        code = jailed.wait()
        jailed.release()
    return code


if __name__ == "__main__":
    sys.exit(main())
