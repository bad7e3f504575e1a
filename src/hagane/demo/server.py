"""A policy server of the demo's own: `hagane serve` in a process, up when its address is known, stopped cleanly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hagane.demo.teller import Teller
from hagane.terms import HaganeError


@contextmanager
def served(teller: Teller, run: Path, home: Path) -> Iterator[str]:
    """Serve a run's newest checkpoint on a free port of this machine, as the site in `home`; gives its address.

    Raises:
        HaganeError: the server did not come up; its own words are in the message.
    """
    # torch is loaded only here: the demo's first line must not wait for it
    from hagane.model.weights import latest

    checkpoint = latest(run / "checkpoints")
    args = ["serve", str(checkpoint), "--port", "0", "--home", str(home)]
    command = [sys.executable, "-m", "hagane", *args]
    with teller.step("Serve the weights", "hagane " + " ".join(args)):
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            print(line, end="")
            if line.startswith("serving "):
                break
        else:
            raise HaganeError("the server did not come up", where="hagane serve", next_step="".join(said).strip())
    try:
        yield said[-1].split(" at ")[-1].strip()
    finally:
        server.terminate()
        server.communicate(timeout=20)
