"""Slots: which tokens an embodiment's sample consists of, and which rows of the stacked parameters make them.

A sample is [prompts][instruction][observed channels in order][past actions]. Vectors and past actions are one
wide token each: their whole history, flat. A set with role "map" (ordered points of a lane) is one wide token
too; any other set is one token a place. An image is one token a patch and frame.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagane.model.config import ModelConfig
from hagane.terms import Channel, ConfigError, Embodiment, lags
from hagane.terms.channel import ROLES

TEXT_BYTES = 64
"""Bytes of the instruction in one token."""
BYTE_WIDTH = 16
"""Width of a byte's embedding."""
UNIT_BUCKETS = 32
DESCRIPTOR = len(ROLES) + UNIT_BUCKETS + 2
"""Width of a channel's descriptor: role, hashed unit, log rate, is an action."""


@dataclass(frozen=True)
class Slot:
    """One channel of one embodiment, as tokens."""

    index: int
    """Row in the stacked parameters."""
    embodiment: int
    """Row of its embodiment."""
    channel: Channel
    """The channel."""
    is_action: bool
    """True for past applied actions."""
    first: int
    """Position of its first token in the sample."""
    tokens: int
    """Tokens it takes."""
    width: int
    """Numbers that enter one token; 0 for images, which share a patch embedding."""
    out: int
    """Numbers that the second loss predicts from one token; 0 for actions and images."""


@dataclass(frozen=True)
class SampleLayout:
    """The tokens of one embodiment's sample."""

    embodiment: Embodiment
    """The machine."""
    row: int
    """Row of the embodiment in the stacked parameters."""
    slots: tuple[Slot, ...]
    """Its channels as tokens, in order."""
    length: int
    """Tokens in all, prompts and instruction included."""
    positions: tuple[int, ...]
    """RoPE position of each token: places of a set share one, for a set has no order."""


def sample_layouts(config: ModelConfig) -> tuple[SampleLayout, ...]:
    """The layouts of all embodiments of a model, in row order."""
    layouts: list[SampleLayout] = []
    index = 0
    for row, e in enumerate(config.embodiments):
        slots: list[Slot] = []
        at = config.widths.prompts + config.widths.text_tokens
        positions = list(range(at))
        for channel in e.channels():
            if channel.kind == "text":
                continue
            tokens, width, out = _shape(channel, config.patch, is_action=channel in e.act)
            slots.append(Slot(index, row, channel, channel in e.act, at, tokens, width, out))
            share = channel.kind == "set" and tokens > 1
            step = positions[-1] + 1
            positions += [step] * tokens if share else list(range(step, step + tokens))
            index, at = index + 1, at + tokens
        layouts.append(SampleLayout(e, row, tuple(slots), at, tuple(positions)))
    return tuple(layouts)


def _shape(channel: Channel, patch: int, *, is_action: bool) -> tuple[int, int, int]:
    """Tokens, width and predicted numbers of a channel."""
    s, d = channel.history.steps, channel.columns
    if channel.kind == "image":
        height, width = channel.shape[0], channel.shape[1]
        if height % patch or width % patch:
            raise ConfigError(
                f"image {height}x{width} is no multiple of the {patch} px patch",
                where=f"channel {channel.name!r}",
                next_step="crop or resize it at intake",
            )
        return s * (height // patch) * (width // patch), 0, 0
    if channel.kind == "set" and channel.role != "map":
        return channel.places, s * (d + 2), d
    n = channel.places
    return 1, s * (n * d + n + 1), 0 if is_action else n * d


def nominal_age_s(slot: Slot, rate_hz: float) -> NDArray[np.float32]:
    """[S] age that each sample of the slot's window has when nothing is late."""
    return (lags(slot.channel.history, is_action=slot.is_action) / rate_hz).astype(np.float32)


def descriptor(slot: Slot, rate_hz: float) -> NDArray[np.float32]:
    """[DESCRIPTOR] what a new plant's tag can be known by: role, unit, rate; no vocabulary of names."""
    channel = slot.channel
    out = np.zeros(DESCRIPTOR, np.float32)
    out[ROLES.index(channel.role)] = 1.0
    for unit in channel.unit:
        bucket = hashlib.sha256(unit.encode()).digest()[0] % UNIT_BUCKETS
        out[len(ROLES) + bucket] += 1.0 / len(channel.unit)
    out[-2] = np.log10(channel.rate_hz or rate_hz) / 3
    out[-1] = float(slot.is_action)
    return out
