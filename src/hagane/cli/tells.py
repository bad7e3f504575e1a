"""What a person outside sees of a verb in a jail: the panel and the lines, made of the events that may come out."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hagane.cli.events import Allowance, passed

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


class Teller:
    """Takes events from the jail, one at a time, and shows what of them may be seen.

    Args:
        words: words that the keeper knows (see `cli.events.passed`).
        panel: shows metrics; None where the verb has none.
        saved: called after an event that says something whole was written.
        shown: the verb's own text comes out too, so its lines are not said twice.
    """

    def __init__(
        self,
        words: frozenset[str],
        panel: TrainPanel | None = None,
        saved: Callable[[], None] = lambda: None,
        *,
        shown: bool = False,
    ) -> None:
        self.words, self.panel, self.saved, self.shown = words, panel, saved, shown
        self.metrics: list[Mapping[str, float | str]] = []
        """Metrics that came out, rounded: the run's plain curve."""
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
        with TrainPanel.for_stream(house.opens.steps, title=title) as panel:
            yield cls(house.words(), panel, saved, shown=house.shows)

    def hear(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take one event of the jail."""
        with self._lock:
            out = passed(event, fields, self.words) if self.allowance.take() else None
            if out is None:
                self.refused += 1
                return
            if event == "metrics":
                self.metrics.append(out)
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
