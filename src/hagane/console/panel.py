"""Training on a terminal: a live panel where there is one, plain lines elsewhere. No torch."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from hagane.console.draw import duration, number
from hagane.console.figures import is_rate, kind_of
from hagane.terms import Scorecard

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.table import Table

BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN_EVERY_S = 4.0
"""Seconds between plain lines while steps arrive."""
SILENT_AT_MOST_S = 4.5
"""Seconds without a line after which a plain stream says that work goes on."""
COLOURS = ("dodger_blue1", "sea_green3", "gold3", "medium_orchid", "light_coral")


def sparkline(values: Sequence[float], width: int) -> str:
    """A curve in one line of block characters, on a log scale where all values are positive."""
    found = [v for v in values if math.isfinite(v)]
    if not found or width < 1:
        return ""
    buckets = min(width, len(found))
    cuts = [round(i * len(found) / buckets) for i in range(buckets + 1)]
    means = [sum(found[a:b]) / (b - a) for a, b in pairwise(cuts)]
    heights = [math.log(v) for v in means] if min(means) > 0 else means
    low, high = min(heights), max(heights)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round((v - low) / (high - low) * top) if high > low else 0] for v in heights)


class TrainPanel:
    """Shows a training run as its metrics arrive; a context manager.

    Args:
        total_steps: the run's last step.
        file: where to write.
        live: a panel that redraws itself (needs a terminal); else plain lines, at most 5 s apart.
        title: name of the run.
    """

    def __init__(self, total_steps: int, file: TextIO, *, live: bool, title: str = "") -> None:
        self.total_steps, self.file, self.live, self.title = total_steps, file, live, title
        self.step = 0
        self.losses: dict[str, list[float]] = {}
        self.held_out: dict[str, float] = {}
        self.pace: float | None = None
        self._times: deque[tuple[int, float]] = deque(maxlen=200)
        self._started = self._spoke = time.monotonic()
        self._live: Live | None = None
        self._end = threading.Event()
        self._lock = threading.Lock()

    @classmethod
    def for_stream(cls, total_steps: int, file: TextIO | None = None, *, title: str = "") -> TrainPanel:
        """Live on a terminal, plain elsewhere (a pipe, a file, TERM=dumb)."""
        from rich.console import Console

        stream = sys.stdout if file is None else file
        console = Console(file=stream)
        return cls(total_steps, stream, live=console.is_terminal and not console.is_dumb_terminal, title=title)

    def __enter__(self) -> TrainPanel:
        self._started = self._spoke = time.monotonic()
        if self.live:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self.file), get_renderable=self.render, refresh_per_second=4)
            self._live.start()
        else:
            threading.Thread(target=self._keep_talking, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end.set()
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self.step:
            self._say(self.line())

    def update(self, metrics: Mapping[str, Any]) -> None:
        """Take in one line of metrics.jsonl; unknown keys are left alone."""
        now = time.monotonic()
        with self._lock:
            self.step = int(metrics.get("step", self.step + 1))
            self._times.append((self.step, now))
            for key, value in metrics.items():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    continue
                if key == "loss" or key.startswith("loss/"):
                    self.losses.setdefault(key.partition("/")[2], []).append(float(value))
                elif key.startswith("held_out/"):
                    self.held_out[key.partition("/")[2]] = float(value)
                elif key == "samples_per_s":
                    self.pace = float(value)
            first = len(self._times) == 1
        if not self.live and (first or now - self._spoke >= PLAIN_EVERY_S):
            self._say(self.line())

    def seconds_left(self) -> float | None:
        """Time to the last step at the pace of the newest 200 steps; None before there is one."""
        if len(self._times) < 2:
            return None
        (a, t0), (b, t1) = self._times[0], self._times[-1]
        return (self.total_steps - b) * (t1 - t0) / (b - a) if b > a else None

    def line(self) -> str:
        """The present state in one line."""
        with self._lock:
            parts = [f"step {self.step:>{len(str(self.total_steps))}}/{self.total_steps}"]
            for name, values in self.losses.items():
                held = f" (held out {self.held_out[name]:.4f})" if name in self.held_out else ""
                parts.append(f"{name or 'loss'} {_mean(values):.4f}{held}")
            parts += [f"{self.pace:,.0f} samples/s"] if self.pace is not None else []
            parts.append(f"{duration(time.monotonic() - self._started)} so far")
            if self.step < self.total_steps and (left := self.seconds_left()) is not None:
                parts.append(f"{duration(left)} left")
        return "  ".join(parts)

    def render(self) -> RenderableType:
        """The live panel; fits 80 columns."""
        from rich import box
        from rich.console import Group
        from rich.panel import Panel as Frame
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            left = self.seconds_left()
            head = Table.grid(expand=True, padding=(0, 2, 0, 0))
            head.add_column(no_wrap=True)
            head.add_column(ratio=1)
            head.add_column(justify="right", no_wrap=True)
            width = len(str(self.total_steps))
            bar = ProgressBar(
                total=max(self.total_steps, 1),
                completed=self.step,
                complete_style="orange3",
                finished_style="sea_green3",
            )
            head.add_row(f"step {self.step:>{width}} of {self.total_steps}", bar, _state(self, left))
            table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1), show_edge=False, header_style="dim")
            table.add_column("loss", no_wrap=True)
            table.add_column("now", justify="right", no_wrap=True)
            table.add_column("held out", justify="right", no_wrap=True)
            table.add_column("log scale, from the start", ratio=1, no_wrap=True)
            room = max(10, (self._live.console.width if self._live else 80) - 40)
            for place, (name, values) in enumerate(self.losses.items()):
                held = self.held_out.get(name)
                colour = COLOURS[(place - 1) % len(COLOURS)] if name else "white"
                table.add_row(
                    Text(name or "all", style="bold" if not name else ""),
                    f"{_mean(values):.4f}",
                    "" if held is None else f"{held:.4f}",
                    Text(sparkline(values, room), style=colour),
                )
        body = Group(head, Text(), table) if self.losses else Group(head)
        return Frame(
            body, title=f"training {self.title}".rstrip(), title_align="left", border_style="dim", padding=(1, 2)
        )

    def _say(self, text: str) -> None:
        self._spoke = time.monotonic()
        try:
            self.file.write(text + "\n")
            self.file.flush()
        except (OSError, ValueError):
            # a reader that left (a closed pipe) is no reason to stop training
            return

    def _keep_talking(self) -> None:
        """One slow step must not look like a hang."""
        while not self._end.wait(0.2):
            if time.monotonic() - self._spoke >= SILENT_AT_MOST_S:
                self._say(
                    f"step {self.step}/{self.total_steps}  working, {duration(time.monotonic() - self._started)} so far"
                )


Panel = TrainPanel
"""Short name, for `Panel.for_stream(total_steps)`."""


def card_table(card: Scorecard) -> Table:
    """A score card as a table for a terminal: every row with n and its 95% interval; ours stands out."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    percent = is_rate(card)
    title = Text.assemble((card.embodiment, "bold"), "  ", (card.measure, "dim"))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    table.add_column("case", overflow="fold")
    table.add_column("controller", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("95% interval", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    before = None
    for row in card.rows:
        if before is not None and row.case != before:
            table.add_section()
        interval = f"{number(row.low, percent=percent)} to {number(row.high, percent=percent)}"
        style = "bold orange3" if kind_of(row.who) == "ours" else ""
        case = "" if row.case == before else row.case
        cells = (Text(case), Text(row.who, style), Text(number(row.score, percent=percent), style))
        table.add_row(*cells, interval, str(row.n))
        before = row.case
    return table


def _mean(values: Sequence[float], newest: int = 20) -> float:
    """Mean of the newest values: one batch alone is noisy."""
    tail = values[-newest:]
    return sum(tail) / len(tail)


def _state(panel: TrainPanel, left: float | None) -> str:
    pace = "" if panel.pace is None else f"{panel.pace:,.0f} samples/s, "
    if panel.step >= panel.total_steps:
        return f"{pace}done in {duration(time.monotonic() - panel._started)}"
    return f"{pace}{'' if left is None else duration(left) + ' left'}"
