"""Columns against each other and against their limits, on the control grid: what the model would really see.

Leak: an observed column that equals the command of the same control step, or moves exactly as it does. Only steps
where the command changes count, since at rest a good actuator's reading equals its command, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.symptoms import Severity, Symptom
from hagane.intake.lerobot_grid import Grid, align
from hagane.intake.lerobot_rows import column_names, side_by_side
from hagane.terms import Channel, Embodiment, Episode

_LEAST_STEPS, _LEAST_CHANGES = 30, 20
_EQUAL, _ALIKE = 0.99, 1 - 1e-5
_AT_LIMIT, _OFTEN, _SWITCH = 0.1, 0.5, 0.1
_LEAST_RISES, _RESET = 200, 0.01
_SHOWN = 4


def numbers_only(episode: Episode, embodiment: Embodiment) -> tuple[Episode, Embodiment]:
    """The episode and its machine with every picture as one zero: the times without the memory."""
    observe = tuple(replace(c, kind="vector", shape=(1,)) if c.kind == "image" else c for c in embodiment.observe)
    streams = dict(episode.streams)
    for c in embodiment.observe:
        if c.kind == "image" and c.name in streams:
            streams[c.name] = replace(streams[c.name], values=np.zeros((len(streams[c.name]), 1), np.float32))
    return replace(episode, streams=streams), replace(embodiment, observe=observe)


def align_numbers(episode: Episode, embodiment: Embodiment) -> Grid:
    """The control grid of an episode, as training sees it, without its pictures.

    Raises:
        LogError: as `align`.
    """
    return align(*numbers_only(episode, embodiment))


class _Counters:
    """Columns that only ever rise, but for resets to their lowest value: totals, and no readings."""

    def __init__(self, columns: int) -> None:
        self.rises, self.falls, self.resets = (np.zeros(columns, np.int64) for _ in range(3))

    def add(self, rows: NDArray[np.float32], low: NDArray[Any], high: NDArray[Any]) -> None:
        """Take an episode's [K, C] values; low and high are those of all data so far."""
        moves = np.diff(rows, axis=0)
        down = moves < 0
        reset = down & (rows[1:] <= low + _RESET * (high - low))
        self.rises += (moves > 0).sum(0)
        self.resets += reset.sum(0)
        self.falls += (down & ~reset).sum(0)

    def found(self) -> list[int]:
        """Numbers of such columns."""
        return np.flatnonzero((self.rises >= _LEAST_RISES) & (self.falls == 0)).tolist()


class Relations:
    """Takes aligned episodes one by one; memory depends on the number of columns only."""

    def __init__(self, embodiment: Embodiment) -> None:
        self.embodiment = embodiment
        self._seen = [c for c in embodiment.observe if c.kind in ("vector", "set")]
        self._vectors = [c for c in self._seen if c.kind == "vector"]
        o, a = sum(c.columns for c in self._vectors), embodiment.action_width
        self._bounds = {c.name: (np.full(c.columns, np.inf), np.full(c.columns, -np.inf), 0) for c in self._all()}
        self._counters = {c.name: _Counters(c.columns) for c in self._all() if c.kind == "vector"}
        self._same, self._both = np.zeros((a, o), np.int64), np.zeros((a, o), np.int64)
        self._sums = np.zeros((3, a, o))
        self._steps = np.zeros(a, np.int64)
        self._at, self._changes = np.zeros((2, a), np.int64), np.zeros(a, np.int64)

    def _all(self) -> list[Channel]:
        return [*self._seen, *self.embodiment.act]

    def add(self, grid: Grid) -> None:
        """Take one episode."""
        for c in self._all():
            reading = grid.observe[c.name] if c.name in grid.observe else grid.command[c.name]
            rows = reading.values[reading.valid].reshape(-1, c.columns)
            if len(rows):
                low, high, count = self._bounds[c.name]
                low, high = np.minimum(low, rows.min(0)), np.maximum(high, rows.max(0))
                self._bounds[c.name] = low, high, count + len(rows)
                if c.kind == "vector":
                    self._counters[c.name].add(rows, low, high)
        commands = side_by_side(grid.command, self.embodiment).astype(np.float64)
        given = np.concatenate([_flags(grid.command[c.name].valid, c.columns) for c in self.embodiment.act], 1)
        self._limits(commands, given)
        if self._vectors and len(grid) > 1:
            observed = np.concatenate([grid.observe[c.name].values for c in self._vectors], 1).astype(np.float64)
            seen = np.concatenate([_flags(grid.observe[c.name].valid, c.columns) for c in self._vectors], 1)
            self._compare(commands, given, observed, seen)

    def _limits(self, commands: NDArray[np.float64], given: NDArray[np.bool_]) -> None:
        low, high = self._declared()
        near = 1e-3 * (high - low)
        self._steps += given.sum(0)
        self._changes += (given[1:] & given[:-1] & (np.diff(commands, axis=0) != 0)).sum(0)
        with np.errstate(invalid="ignore"):
            # a lower limit of 0 is "off", not an end stop
            self._at[0] += (given & (commands <= low + near) & (low != 0)).sum(0)
            self._at[1] += (given & (commands >= high - near)).sum(0)

    def _declared(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """[A] bounds as the embodiment has them; NaN where it has none."""
        out = []
        for words in ("low", "high"):
            bounds = [getattr(c, words) or (np.nan,) for c in self.embodiment.act]
            out.append(
                np.concatenate([np.resize(b, c.columns) for b, c in zip(bounds, self.embodiment.act, strict=True)])
            )
        return out[0].astype(np.float64), out[1].astype(np.float64)

    def _compare(self, u: NDArray[np.float64], given: Any, o: NDArray[np.float64], seen: Any) -> None:
        du, do = np.diff(u, axis=0), np.diff(o, axis=0)
        for a in range(u.shape[1]):
            rows = given[1:, a] & given[:-1, a] & (du[:, a] != 0)
            if not rows.any():
                continue
            live = (seen[1:] & seen[:-1])[rows]
            x, y = du[rows, a][:, None], np.where(live, do[rows], 0.0)
            close = np.abs(o[1:][rows] - u[1:, a][rows][:, None]) <= 1e-6 * (1 + np.abs(u[1:, a][rows][:, None]))
            self._same[a] += (live & close).sum(0)
            self._both[a] += live.sum(0)
            self._sums[:, a] += (live * x * x).sum(0), (y * y).sum(0), (x * y).sum(0)

    def leaks(self) -> Iterator[tuple[int, tuple[str, int], float, bool]]:
        """Action column, (channel, column) that holds its answer, share of changes, and whether it is equal."""
        names = [(c.name, k) for c in self._vectors for k in range(c.columns)]
        uu, oo, uo = self._sums
        with np.errstate(invalid="ignore", divide="ignore"):
            alike = uo**2 / (uu * oo)
            equal = self._same / self._both
        for a, o in np.argwhere(self._both >= _LEAST_CHANGES):
            if equal[a, o] >= _EQUAL or alike[a, o] >= _ALIKE:
                yield int(a), names[o], float(max(equal[a, o], alike[a, o])), bool(equal[a, o] >= _EQUAL)

    def symptoms(self) -> list[Symptom]:
        """Leaks, columns that never change, commands at their limits."""
        found = []
        actions = [n for c in self.embodiment.act for n in column_names(c)]
        for a, (name, k), share, equal in self.leaks():
            how = "equals" if equal else "moves exactly as"
            text = f"{name}.{k} {how} the command {actions[a]} of the same step, at {100 * share:.1f}% of its changes"
            count = int(self._same[a].max()) if equal else 0
            found.append(Symptom("serious", "leak", name, 0, count, share, "", 0, text))
        return [*found, *self._totals(), *self._constant(), *self._at_limit(actions)]

    def _totals(self) -> Iterator[Symptom]:
        for c in self._all():
            for k in self._counters[c.name].found() if c.name in self._counters else ():
                sums = self._counters[c.name]
                low, high, count = self._bounds[c.name]
                which = c.name if c.columns == 1 else f"{c.name}.{k}"
                text = f"{which} only ever rises: {sums.rises[k]} times from {low[k]:g} to {high[k]:g}, never falls"
                text += f" but for {sums.resets[k]} resets" if sums.resets[k] else ""
                # as an action, a total would be learned as if the machine were told to count
                severity: Severity = "serious" if c in self.embodiment.act else "warning"
                yield Symptom(severity, "total", c.name, 0, count, 1.0, "", 0, text)

    def _constant(self) -> Iterator[Symptom]:
        for c in self._all():
            low, high, count = self._bounds[c.name]
            still = np.flatnonzero(low == high)
            if count < _LEAST_STEPS or not len(still):
                continue
            each = [f"{k} = {low[k]:g}" if c.columns > 1 else f"{low[k]:g}" for k in still[:_SHOWN].tolist()]
            which = "column " if c.columns > 1 else ""
            more = f" and {len(still) - _SHOWN} more" if len(still) > _SHOWN else ""
            text = f"never changes: {which}{', '.join(each)}{more}"
            # goals, schedules and maps may well be the same in every episode
            severity: Severity = "warning" if c.role in ("state", "pv", "mv") else "note"
            yield Symptom(severity, "constant", c.name, 0, count, len(still) / c.columns, "", 0, text)

    def _at_limit(self, actions: list[str]) -> Iterator[Symptom]:
        columns = [c.name for c in self.embodiment.act for _ in range(c.columns)]
        share = self._at / np.maximum(self._steps, 1)
        for a in np.flatnonzero(self._steps >= _LEAST_STEPS).tolist():
            whole = float(share[:, a].sum())
            if whole < _AT_LIMIT or self._changes[a] < _SWITCH * self._steps[a]:  # a switch may rest at its ends
                continue
            text = f"{actions[a]} at its low limit in {100 * share[0, a]:.0f}%, at its high in {100 * share[1, a]:.0f}%"
            severity: Severity = "warning" if whole >= _OFTEN else "note"
            yield Symptom(severity, "at-limit", columns[a], 0, int(self._at[:, a].sum()), whole, "", 0, text)


def _flags(valid: NDArray[np.bool_], columns: int) -> NDArray[np.bool_]:
    return np.repeat(valid[:, None], columns, 1)
