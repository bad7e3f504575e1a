"""A catalog's batch to the model's samples: device, padding, noise, masked channels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from hagane.engine.noise import normal, uniform
from hagane.model import Generalist, Sample, TrainSample, to_sample, window_tensors
from hagane.model.tensors import WindowTensors
from hagane.terms import Batch, Part


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
    if mask_rate > 0:
        sample = mask_channels(sample, uniform(seed, step, ids, "mask", len(layout.slots)), mask_rate)
    n, horizon, width = len(ids), config.horizon, config.action_width
    short = horizon - part.actions_NHA.shape[1]
    actions = np.pad(part.actions_NHA, ((0, 0), (0, short), (0, 0)))
    valid = np.pad(part.action_valid_NH, ((0, 0), (0, short)))
    noise = normal(seed, step, ids, "flow", horizon * width).reshape(n, horizon, width)
    time = uniform(seed, step, ids, "time", 1).astype(np.float32).repeat(horizon, 1)
    return TrainSample(
        sample,
        torch.from_numpy(actions).to(device),
        torch.from_numpy(valid).to(device),
        torch.from_numpy(noise).to(device),
        torch.from_numpy(time).to(device),
        {name: window_tensors(w, device) for name, w in part.next.items()},
    )


def mask_channels(sample: Sample, draw_NC: np.ndarray, rate: float) -> Sample:
    """Hide whole channels of some samples, so that the others must predict them."""
    windows = dict(sample.windows)
    for c, slot in enumerate(sample.layout.slots):
        w = windows[slot.channel.name]
        keep = torch.from_numpy(draw_NC[:, c] >= rate).to(w.valid.device)
        valid = w.valid & keep.view(-1, *[1] * (w.valid.ndim - 1))
        windows[slot.channel.name] = WindowTensors(w.values, valid, w.age_s)
    return replace(sample, windows=windows)
