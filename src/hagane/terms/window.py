"""Windows of history: the one place that says which past samples a model sees.

Training gathers windows from recorded columns (`gather_window`); a running machine gathers them from a
`HistoryBuffer`. Both follow the same rule: newest first, `stride` control steps apart, never across the start
of an episode, value 0 where not valid. An action channel's newest sample is the action applied one step ago.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hagane.terms.channel import Channel, History
from hagane.terms.embodiment import Embodiment
from hagane.terms.errors import ConfigError
from hagane.terms.observation import Observation, Reading, Window


def lags(history: History, *, is_action: bool) -> NDArray[np.int64]:
    """[S] control steps before now of each sample of a window, newest first."""
    first = 1 if is_action else 0
    return first + history.stride * np.arange(history.steps, dtype=np.int64)


def gather_window(
    reading: Reading, start_N: NDArray[np.int64], index_N: NDArray[np.int64], lags_S: NDArray[np.int64], step_s: float
) -> Window:
    """Windows at N control steps out of columns that hold many episodes end to end.

    Args:
        reading: columns over all control steps: values [T, *shape], valid [T] or [T, n], age_s [T].
        start_N: first index of the episode that each sample lies in.
        index_N: index of "now" of each sample.
        lags_S: from `lags`.
        step_s: seconds between control steps.
    """
    at_NS = index_N[:, None] - lags_S
    inside_NS = (at_NS >= start_N[:, None]) & (at_NS < len(reading.values))
    at_NS = np.clip(at_NS, 0, len(reading.values) - 1)
    valid = reading.valid[at_NS]
    valid = valid & inside_NS.reshape(inside_NS.shape + (1,) * (valid.ndim - 2))
    values = reading.values[at_NS]
    mask = valid.reshape(valid.shape + (1,) * (values.ndim - valid.ndim))
    values = np.where(mask, values, np.zeros((), values.dtype))
    # a sample before the start has no age of its own: none of another episode's may show through
    age_s = np.where(inside_NS, reading.age_s[at_NS], 0) + lags_S * step_s
    return Window(values, valid, age_s.astype(np.float32))


class HistoryBuffer:
    """Keeps what N running machines of one embodiment showed and did, and cuts observations from it.

    The caller alternates `push` (readings at a control time), `observation`, and `push_action` (what the
    actuators did). It keeps only as many steps as the longest window needs.
    """

    def __init__(self, embodiment: Embodiment, size: int) -> None:
        self.embodiment, self.size = embodiment, size
        self._act_names = {c.name for c in embodiment.act}
        self._lags = {c.name: lags(c.history, is_action=c.name in self._act_names) for c in _numeric(embodiment)}
        self._rings: dict[str, list[Reading]] = {name: [] for name in self._lags}
        self._time_ns = np.zeros(size, np.int64)

    def push(self, readings: Mapping[str, Reading], time_ns: NDArray[np.int64]) -> None:
        """Add the newest sample of every observed channel.

        Raises:
            ConfigError: a channel is missing.
        """
        for channel in self.embodiment.observe:
            if channel.kind == "text":
                continue
            if channel.name not in readings:
                raise ConfigError(f"no reading of channel {channel.name!r}", where=self.embodiment.name)
            self._keep(channel, readings[channel.name])
        self._time_ns = np.asarray(time_ns, np.int64)

    def push_action(self, applied_NA: NDArray[np.float32]) -> None:
        """Add the actions that the actuators carried out in this control step; [N, A]."""
        at = 0
        age = np.zeros(self.size, np.float32)
        for channel in self.embodiment.act:
            values = applied_NA[:, at : at + channel.columns]
            at += channel.columns
            self._keep(channel, Reading(values, np.asarray(np.isfinite(values).all(1)), age))

    def observation(self, tasks: tuple[str, ...]) -> Observation:
        """The observation at the time of the last `push`; `tasks` holds N instructions."""
        windows = {c.name: self._window(c) for c in _numeric(self.embodiment)}
        return Observation(self.embodiment.name, self._time_ns.copy(), windows, tasks)

    def _keep(self, channel: Channel, reading: Reading) -> None:
        ring = self._rings[channel.name]
        ring.insert(0, reading)
        del ring[int(self._lags[channel.name][-1]) + 1 :]

    def _window(self, channel: Channel) -> Window:
        ring = self._rings[channel.name]
        dtype = np.uint8 if channel.kind == "image" else np.float32
        flags = (self.size, channel.places) if channel.kind == "set" else (self.size,)
        empty = Reading(
            np.zeros((self.size, *channel.shape), dtype), np.zeros(flags, bool), np.zeros(self.size, np.float32)
        )
        # the action of this step is not yet pushed, so ring[0] of an action channel is one step old
        offset = 1 if channel.name in self._act_names else 0
        lags_S = self._lags[channel.name]
        picked = [ring[k - offset] if k - offset < len(ring) else empty for k in lags_S]
        valid = np.stack([p.valid for p in picked], 1)
        values = np.stack([p.values for p in picked], 1).astype(dtype, copy=False)
        mask = valid.reshape(valid.shape + (1,) * (values.ndim - valid.ndim))
        values = np.where(mask, values, np.zeros((), dtype))
        age_s = np.stack([p.age_s for p in picked], 1) + lags_S / self.embodiment.rate_hz
        return Window(values, valid, age_s.astype(np.float32))


def _numeric(embodiment: Embodiment) -> list[Channel]:
    return [c for c in embodiment.channels() if c.kind != "text"]
