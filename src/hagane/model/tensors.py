"""Observations as tensors: the only place where NumPy becomes torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hagane.model.slots import TEXT_BYTES, SampleLayout
from hagane.terms import ConfigError, Observation, Window


@dataclass(frozen=True, eq=False)
class WindowTensors:
    """A `terms.Window` as tensors."""

    values: Tensor
    """[N, S, *shape]."""
    valid: Tensor
    """[N, S] or [N, S, n] bool."""
    age_s: Tensor
    """[N, S]."""

    def take(self, pick: slice) -> WindowTensors:
        """The windows of some of the samples."""
        return WindowTensors(self.values[pick], self.valid[pick], self.age_s[pick])


@dataclass(frozen=True, eq=False)
class Sample:
    """N samples of one embodiment, ready for the model."""

    layout: SampleLayout
    """Which tokens they become."""
    windows: Mapping[str, WindowTensors]
    """By channel name."""
    text: Tensor
    """[N, text tokens, TEXT_BYTES] uint8 instruction, 0 where it has ended."""

    def __len__(self) -> int:
        return len(self.text)


def window_tensors(window: Window, device: torch.device) -> WindowTensors:
    """Move one window to a device."""
    return WindowTensors(
        torch.from_numpy(np.ascontiguousarray(window.values)).to(device),
        torch.from_numpy(np.ascontiguousarray(window.valid)).to(device),
        torch.from_numpy(np.ascontiguousarray(window.age_s)).to(device),
    )


def to_sample(observation: Observation, layout: SampleLayout, text_tokens: int, device: torch.device) -> Sample:
    """Tensors of an observation.

    Raises:
        ConfigError: a channel is missing or has another shape than the embodiment says.
    """
    windows = {}
    for slot in layout.slots:
        channel = slot.channel
        if channel.name not in observation.channels:
            raise ConfigError(f"the observation lacks channel {channel.name!r}", where=layout.embodiment.name)
        window = observation.channels[channel.name]
        expected = (len(observation), channel.history.steps, *channel.shape)
        if window.values.shape != expected:
            raise ConfigError(
                f"channel {channel.name!r} has shape {window.values.shape}, not {expected}",
                where=layout.embodiment.name,
            )
        windows[channel.name] = window_tensors(window, device)
    text = torch.from_numpy(text_bytes(observation.tasks, text_tokens)).to(device)
    return Sample(layout, windows, text)


def text_bytes(tasks: tuple[str, ...], text_tokens: int) -> NDArray[np.uint8]:
    """[N, text_tokens, TEXT_BYTES] UTF-8 bytes of the instructions, cut at the model's length, 0 after the end."""
    room = text_tokens * TEXT_BYTES
    known: dict[str, NDArray[np.uint8]] = {}
    out = np.zeros((len(tasks), room), np.uint8)
    for i, task in enumerate(tasks):
        if task not in known:
            known[task] = np.frombuffer(task.encode()[:room], np.uint8)
        out[i, : len(known[task])] = known[task]
    return out.reshape(len(tasks), text_tokens, TEXT_BYTES)
