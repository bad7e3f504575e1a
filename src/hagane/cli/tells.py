"""What a person outside sees of a verb in a jail: the panel and the lines, made of the events that may come out."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hagane.cli.events import Allowance, passed
from hagane.terms.files import write_whole

if TYPE_CHECKING:
    from hagane.cli.house import House
    from hagane.console import TrainPanel

LINES: Mapping[str, str] = {
    "checkpoint": "  checkpoint of step {step:.0f} is whole",
    "ended": "  ended at step {step:.0f}",
    "row": "  {case:<26} {who:<34} {score:9.3f}  n={n:.0f}",
    "episodes": "  {count:.0f} episodes",
    "findings": "  findings: {count:.0f} {kind}",
    "failed": "  it ended with {error}",
}
"""How each event reads; metrics go to the panel."""


class Curve:
    """A run's metrics as they were heard, in plaintext, for whoever draws them: a JSON object a line.

    A run that goes on from an earlier step takes back what it said of the steps after that.

    Args:
        path: metrics.jsonl of the run's folder on disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: float | None = None

    def add(self, metrics: Mapping[str, float | str]) -> None:
        """Add the metrics of a step; those without a step belong to none, and are not kept."""
        step = metrics.get("step")
        if not isinstance(step, int | float):
            return
        with suppress(OSError):  # a full disk stops the sealing, which says so; a curve stops nothing
            if self._last is None or step <= self._last:
                self._cut(step)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics, sort_keys=True) + "\n")
            self._last = step

    def _cut(self, step: float) -> None:
        """Drop lines from a step on, and half a line of a keeper that was killed."""
        kept = []
        for line in self.path.read_text("utf-8").splitlines() if self.path.exists() else ():
            with suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["step"] < step:
                    kept.append(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, [line.encode() + b"\n" for line in kept])


class Teller:
    """Takes events from the jail, one at a time, and shows what of them may be seen.

    Args:
        words: words that the keeper knows (see `cli.events.passed`).
        panel: shows metrics; None where the verb has none.
        saved: called after an event that says something whole was written.
        shown: the verb's own text comes out too, so its lines are not said twice.
        curve: takes the metrics that came out, rounded.
    """

    def __init__(
        self,
        words: frozenset[str],
        panel: TrainPanel | None = None,
        saved: Callable[[], None] = lambda: None,
        *,
        shown: bool = False,
        curve: Curve | None = None,
    ) -> None:
        self.words, self.panel, self.saved, self.shown, self.curve = words, panel, saved, shown, curve
        self.refused = 0
        """Events of which nothing may come out."""
        self.allowance = Allowance()
        self._lock = threading.Lock()

    @classmethod
    @contextmanager
    def of(cls, verb: str, house: House, saved: Callable[[], None]) -> Iterator[Teller]:
        """The teller of a verb, with a panel where it trains."""
        if verb != "train":
            yield cls(house.words(), None, saved, shown=house.shows)
            return
        from hagane.console import TrainPanel

        title = house.opens.makes[0].name if house.opens.makes else ""
        steps = house.steps_of(house.opens.makes[0]) if house.opens.makes else house.opens.steps
        with TrainPanel.for_stream(steps, title=title) as panel:
            curve = Curve(house.opens.makes[0] / "metrics.jsonl") if house.opens.makes else None
            yield cls(house.words(), panel, saved, shown=house.shows, curve=curve)

    def hear(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take one event of the jail."""
        with self._lock:
            out = passed(event, fields, self.words) if self.allowance.take() else None
            if out is None:
                self.refused += 1
                return
            if event == "metrics":
                if self.curve is not None:
                    self.curve.add(out)
                if self.panel is not None:
                    self.panel.update(out)
            elif not self.shown and set(out) >= _fields_of(LINES[event]):
                print(LINES[event].format(**out), flush=True)
        if event == "checkpoint":
            self.saved()

    def end(self, hidden: int) -> None:
        """Say what stayed inside.

        Args:
            hidden: bytes of text that were not shown.
        """
        kept = [f"{hidden} bytes of text are sealed"] if hidden else []
        kept += [f"{self.refused} messages were no whitelisted numbers, or too many at once"] if self.refused else []
        if kept:
            print(f"  kept in the jail: {'; '.join(kept)}", file=sys.stderr)


def _fields_of(line: str) -> set[str]:
    from string import Formatter

    return {name for _, name, _, _ in Formatter().parse(line) if name}
