"""A batch from shapes alone: what one rank would read in a step, without data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hagane.model import ModelConfig
from hagane.terms import Batch, Channel, Embodiment, Observation, Part, Window


def synthetic_batch(
    config: ModelConfig, counts: Mapping[int, int], *, rank: int = 0, ranks: int = 1, seed: int | None = None
) -> Batch:
    """One rank's share of a batch.

    Args:
        config: the model's machines.
        counts: samples by embodiment row; a row with none is an empty part, since all ranks have the same parts.
        rank: whose share it is.
        ranks: shares in all.
        seed: of the values; all are 0 without one, which takes no time and next to no memory.
    """
    rng = None if seed is None else np.random.default_rng(seed)
    parts = tuple(_part(config.embodiments[row], n, rng) for row, n in counts.items())
    return Batch(0, parts, rank, ranks)


def _part(machine: Embodiment, n: int, rng: np.random.Generator | None) -> Part:
    windows, following = {}, {}
    for channel in machine.channels():
        if channel.kind == "text":
            continue
        windows[channel.name] = _window(channel, n, channel.history.steps, rng)
        if channel in machine.observe:
            following[channel.name] = _window(channel, n, 1, rng)
    seen = Observation(machine.name, np.zeros(n, np.int64), windows, ("move the next one to its place",) * n)
    actions = _values((n, machine.horizon, machine.action_width), rng)
    return Part(seen, actions, np.ones((n, machine.horizon), bool), following, np.arange(n, dtype=np.uint64))


def _window(channel: Channel, n: int, steps: int, rng: np.random.Generator | None) -> Window:
    shape = (n, steps, *channel.shape)
    if channel.kind == "image":
        values = np.zeros(shape, np.uint8) if rng is None else rng.integers(0, 256, shape, np.uint8)
    else:
        values = _values(shape, rng)
    places = (channel.places,) if channel.kind == "set" else ()
    return Window(values, np.ones((n, steps, *places), bool), np.zeros((n, steps), np.float32))


def _values(shape: tuple[int, ...], rng: np.random.Generator | None) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32) if rng is None else rng.normal(size=shape).astype(np.float32)
