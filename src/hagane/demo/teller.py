"""The demo's voice: each step is a real `hagane` command, printed, run and timed; what it said is kept."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from hagane.console.story import Step
from hagane.terms import HaganeError

BEAT_S = 1.5
"""How often a step is looked at; one that was silent for as long gives a sign of life."""
SHOWN = 14
"""Lines of a step's output that the page keeps."""


@dataclass
class Teller:
    """Runs the steps of a story and remembers them for its report."""

    run_verb: Callable[[Sequence[str]], int]
    """Runs `hagane ARGS`, prints what it prints, returns its exit code; the command line hands itself in."""
    out: TextIO = field(default_factory=lambda: sys.stdout)
    """Where the person looks."""
    steps: list[Step] = field(default_factory=list)
    """What was done so far."""
    started: float = field(default_factory=time.monotonic)
    """Clock at the beginning."""

    def say(self, text: str) -> None:
        """A paragraph between steps."""
        print(f"\n{text}", file=self.out, flush=True)

    def verb(self, name: str, args: Sequence[str], *, refused: bool = False) -> str:
        """Run `hagane ARGS` in this process; returns what it printed.

        Args:
            name: what the step does, in words.
            args: the command, without `hagane`.
            refused: the step must be refused, and the refusal is shown.

        Raises:
            HaganeError: the command failed (or was not refused where it had to be).
        """
        with self.step(name, "hagane " + " ".join(args)) as heard:
            code = self.run_verb(args)
            if code != 0 and not refused:
                raise HaganeError(f"the step {name!r} failed with exit code {code}", where="hagane demo")
            if code == 0 and refused:
                raise HaganeError(f"the step {name!r} had to be refused and was not", where="hagane demo")
        return heard.getvalue()

    def must(self, *args: str) -> None:
        """Run a verb inside a step.

        Raises:
            HaganeError: it failed.
        """
        if self.run_verb(args) != 0:
            raise HaganeError(f"`hagane {' '.join(args)}` failed", where="hagane demo")

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep standard output to itself; errors still show."""
        with contextlib.redirect_stdout(io.StringIO()):
            yield

    @contextlib.contextmanager
    def step(self, name: str, command: str) -> Iterator[io.StringIO]:
        """Print a step's name and command, time it, and keep what is printed inside."""
        number = len(self.steps) + 1
        print(f"\n[{number}] {name}\n    $ {command}", file=self.out, flush=True)
        begun, tee = time.monotonic(), Tee(self.out)

        def sign() -> None:
            # only where the step itself has been silent
            if time.monotonic() - tee.spoke > 1.5 * BEAT_S:
                print(f"working, {time.monotonic() - begun:.0f} s", file=tee, flush=True)

        with contextlib.redirect_stdout(tee), contextlib.redirect_stderr(tee), beat(sign):
            yield tee.heard
        seconds = time.monotonic() - begun
        lines = [line for line in tee.heard.getvalue().splitlines() if line.strip()]
        if len(lines) > SHOWN:
            lines = [*lines[: SHOWN // 2], f"... {len(lines) - SHOWN} more lines", *lines[-SHOWN // 2 :]]
        self.steps.append(Step(name, command, seconds, tuple(lines)))
        print(f"    ({seconds:.1f} s)", file=self.out, flush=True)


@contextlib.contextmanager
def beat(sign: Callable[[], None]) -> Iterator[None]:
    """Give a sign of life every `BEAT_S` seconds while the body runs."""
    end = threading.Event()

    def keep_on() -> None:
        while not end.wait(BEAT_S):
            sign()

    thread = threading.Thread(target=keep_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


class Tee(io.TextIOBase):
    """Writes to the terminal, indented, and remembers."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.heard, self.fresh, self.spoke = out, io.StringIO(), True, time.monotonic()

    def write(self, text: str) -> int:
        """Pass on and remember."""
        self.heard.write(text)
        self.spoke = time.monotonic()
        for piece in text.splitlines(keepends=True):
            self.out.write(("    " if self.fresh else "") + piece)
            self.fresh = piece.endswith("\n")
        self.out.flush()
        return len(text)

    def writable(self) -> bool:
        """Always."""
        return True
