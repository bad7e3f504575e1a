"""A catalog's batch to the model's samples: device, padding, noise, masked channels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from hagane.engine.noise import normal, uniform
from hagane.model import Generalist, Sample, TrainSample, to_sample, window_tensors
from hagane.model.tensors import WindowTensors
from hagane.terms import Batch, Part

FROM_ZERO = 0.5
"""Share of flow samples at time 0 with zero noise."""


def train_samples(model: Generalist, batch: Batch, seed: int, mask_rate: float) -> list[TrainSample]:
    """Samples of one optimiser step; everything random is a function of (seed, step, sample id)."""
    device = model.normaliser.centre.device
    return [train_sample(model, part, batch.step, seed, mask_rate, device) for part in batch.parts]


def train_sample(
    model: Generalist, part: Part, step: int, seed: int, mask_rate: float, device: torch.device
) -> TrainSample:
    """One embodiment's samples; actions are padded to the model's horizon."""
    config, ids = model.config, part.sample_ids_N
    layout = model.layouts[config.index(part.observation.embodiment)]
    sample = to_sample(part.observation, layout, config.widths.text_tokens, device)
    hidden = np.zeros(len(ids), bool)
    if mask_rate > 0:
        draw = uniform(seed, step, ids, "mask", 2)
        hidden = draw[:, 0] < mask_rate
        sample = hide_channel(sample, np.where(hidden, (draw[:, 1] * len(layout.slots)).astype(int), -1))
    n, horizon, width = len(ids), config.horizon, config.action_width
    short = horizon - part.actions_NHA.shape[1]
    actions = np.pad(part.actions_NHA, ((0, 0), (0, short), (0, 0)))
    # a sample with a hidden channel serves the second loss only: its action may not be knowable
    valid = np.pad(part.action_valid_NH & ~hidden[:, None], ((0, 0), (0, short)))
    noise = normal(seed, step, ids, "flow", horizon * width).reshape(n, horizon, width)
    draw_N2 = uniform(seed, step, ids, "time", 2)
    # decisions start from zero noise: that point is learned from half of the samples
    start_N = draw_N2[:, 1] < FROM_ZERO
    noise[start_N] = 0.0
    time = np.where(start_N, 0.0, draw_N2[:, 0]).astype(np.float32)[:, None].repeat(horizon, 1)
    return TrainSample(
        sample,
        torch.from_numpy(actions).to(device),
        torch.from_numpy(valid).to(device),
        torch.from_numpy(noise).to(device),
        torch.from_numpy(time).to(device),
        {name: window_tensors(w, device) for name, w in part.next.items()},
    )


def hide_channel(sample: Sample, channel_N: np.ndarray) -> Sample:
    """Hide one channel of some samples (-1: none), so that the others must predict it."""
    windows = dict(sample.windows)
    for c, slot in enumerate(sample.layout.slots):
        w = windows[slot.channel.name]
        keep = torch.from_numpy(channel_N != c).to(w.valid.device)
        valid = w.valid & keep.view(-1, *[1] * (w.valid.ndim - 1))
        windows[slot.channel.name] = WindowTensors(w.values, valid, w.age_s)
    return replace(sample, windows=windows)
