"""Which data sets a run wants, asked before it may open any.

A recipe in a file is code that nobody of the site has read, and the keeper's place holds the keys. So where a data set
here asks for a jail, it is asked in a jail of its own, which holds the recipe and no data.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hagane.cli.house import asks_for_jail
from hagane.cli.text import Text, cleaned
from hagane.jail import Bind, Plan, python_env, python_reads, start_whole
from hagane.terms import ConfigError

_WORDS = "import sys; from hagane.cli.train import print_wants; print_wants(sys.argv[1], sys.argv[2:])"


NAMED = {"demo": ("anchor", 1400), "tiny": ("anchor", 60)}
"""Purpose and steps of our own recipes: a keeper that has to import torch to learn them costs every run two seconds."""


def named_wants(recipe: str, datasets: Sequence[str], steps: int) -> str:
    """As `ask_wants`, of one of our own recipes; "" for any other."""
    if recipe not in NAMED:
        return ""
    purpose, usual = NAMED[recipe]
    return json.dumps({"datasets": list(datasets), "purpose": purpose, "reads": [], "steps": steps or usual})


def ask_wants(argv: Sequence[str], names: Sequence[str], recipe: Path | None, home: Path) -> str:
    """The last line that a process printed which asked for the wants of a run.

    Args:
        argv: flags of the run.
        names: data sets that are here.
        recipe: file with the recipe; None for one of ours, or a configuration.
        home: the site's folder.

    Raises:
        ConfigError: it ended with an error; the message is its own.
        JailError: this machine cannot make the jail that a contract here asks for.
    """
    command = (sys.executable, "-c", _WORDS, ",".join(names), *argv)
    if recipe is None or not asks_for_jail(home):
        done = subprocess.run(command, capture_output=True, text=True)
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        code, out, err = _in_jail(command, recipe)
    if code or not out.strip():
        raise ConfigError(err.strip().removeprefix("hagane train: ") or "the recipe cannot be read")
    return out.splitlines()[-1]


def _in_jail(command: tuple[str, ...], recipe: Path) -> tuple[int, str, str]:
    """Exit code, output and errors of a command that can read the recipe's file alone."""
    file, here = Bind.at(recipe), Path.cwd()
    cwd = here if file.target.is_relative_to(here) else Path("/")
    plan = Plan(command, python_env(), (*python_reads(), file), cwd=cwd)
    with Text(shown=False) as text:
        with text.pipes() as (out, err):
            jailed = start_whole(plan, out, err)
        with jailed:
            code = jailed.wait()
            jailed.release()
        text.drain()
    said, errors = (cleaned(bytes(kept).decode("utf-8", "replace")) for kept in text.kept.values())
    return code, said, errors
