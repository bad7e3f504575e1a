"""Samples from shapes alone: what a rank would read, without data. On fake tensors they cost nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hagane.model import Generalist, Sample, TrainSample
from hagane.model.slots import TEXT_BYTES, SampleLayout, nominal_age_s
from hagane.model.tensors import WindowTensors
from hagane.terms import Channel


def synthetic_samples(model: Generalist, counts: Mapping[int, int], device: torch.device) -> list[TrainSample]:
    """A part for each embodiment row in `counts`, some perhaps with no sample, as `engine.inputs` would make them.

    Values are uniform noise from torch's generator; everything is valid and on time.
    """
    return [_part(model, model.layouts[row], n, device) for row, n in counts.items()]


def _part(model: Generalist, layout: SampleLayout, n: int, device: torch.device) -> TrainSample:
    config, machine = model.config, layout.embodiment
    text = torch.randint(0, 256, (n, config.widths.text_tokens, TEXT_BYTES), device=device, dtype=torch.uint8)
    windows, following = {}, {}
    for slot in layout.slots:
        ages = torch.from_numpy(nominal_age_s(slot, machine.rate_hz)).to(device)
        windows[slot.channel.name] = _window(slot.channel, n, slot.channel.history.steps, ages)
        if not slot.is_action:
            following[slot.channel.name] = _window(slot.channel, n, 1, ages[:1])
    horizon, width = config.horizon, config.action_width
    return TrainSample(
        Sample(layout, windows, text),
        torch.rand(n, horizon, machine.action_width, device=device),
        torch.ones(n, horizon, dtype=torch.bool, device=device),
        torch.randn(n, horizon, width, device=device),
        torch.rand(n, horizon, device=device),
        following,
    )


def _window(channel: Channel, n: int, steps: int, ages: Tensor) -> WindowTensors:
    shape, device = (n, steps, *channel.shape), ages.device
    if channel.kind == "image":
        values = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    else:
        values = torch.rand(shape, device=device)
    places = (channel.places,) if channel.kind == "set" else ()
    valid = torch.ones(n, steps, *places, dtype=torch.bool, device=device)
    return WindowTensors(values, valid, ages.expand(n, -1).contiguous())
