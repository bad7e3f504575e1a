"""Normaliser: physical units outside, unit scale inside. It travels with the weights, so it cannot be mixed up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from hagane.model.config import ModelConfig
from hagane.model.slots import SampleLayout, Slot
from hagane.terms import ChannelStats, ConfigError

CLIP = 8.0
"""Normalised observations beyond this many standard deviations are cut."""


class Normaliser(nn.Module):
    """Per slot and column a centre and a scale; per embodiment the same for actions."""

    centre: Tensor
    scale: Tensor
    action_centre: Tensor
    action_scale: Tensor

    def __init__(self, config: ModelConfig, layouts: tuple[SampleLayout, ...]) -> None:
        super().__init__()
        slots = [s for layout in layouts for s in layout.slots]
        columns = max(s.channel.columns for s in slots)
        shape = (len(config.embodiments), config.action_width)
        # real even where the parameters are on the meta device
        self.register_buffer("centre", torch.zeros(len(slots), columns, device="cpu"))
        self.register_buffer("scale", torch.ones(len(slots), columns, device="cpu"))
        self.register_buffer("action_centre", torch.zeros(shape, device="cpu"))
        self.register_buffer("action_scale", torch.ones(shape, device="cpu"))

    @torch.no_grad()
    def fit(self, layouts: tuple[SampleLayout, ...], stats: Mapping[str, Mapping[str, ChannelStats]]) -> None:
        """Take centres and scales from statistics by embodiment and channel.

        Raises:
            ConfigError: a channel has no statistics.
        """
        for layout in layouts:
            table, column = stats[layout.embodiment.name], 0
            for slot in layout.slots:
                if slot.channel.kind == "image":
                    continue
                if slot.channel.name not in table:
                    raise ConfigError(f"no statistics of {slot.channel.name!r}", where=layout.embodiment.name)
                centre, scale = centre_and_scale(table[slot.channel.name])
                n = slot.channel.columns
                self.centre[slot.index, :n] = torch.from_numpy(centre)
                self.scale[slot.index, :n] = torch.from_numpy(scale)
                if slot.is_action:
                    self.action_centre[layout.row, column : column + n] = torch.from_numpy(centre)
                    self.action_scale[layout.row, column : column + n] = torch.from_numpy(scale)
                    column += n

    def observe(self, slot: Slot, values: Tensor, valid: Tensor) -> Tensor:
        """Normalised values [N, S, *shape], 0 where not valid."""
        if slot.channel.kind == "image":
            return values.float() / 127.5 - 1.0
        n = slot.channel.columns
        x = (values - self.centre[slot.index, :n]) / self.scale[slot.index, :n]
        mask = valid.reshape(valid.shape + (1,) * (values.ndim - valid.ndim))
        return x.clamp(-CLIP, CLIP) * mask

    def encode_actions(self, row: int, actions: Tensor) -> Tensor:
        """[N, H, a] in units to [N, H, A] at unit scale, padded with 0 to the model's width."""
        n = actions.shape[-1]
        x = (actions - self.action_centre[row, :n]) / self.action_scale[row, :n]
        return nn.functional.pad(x, (0, self.action_centre.shape[1] - n))

    def decode_actions(self, row: int, x: Tensor, width: int) -> Tensor:
        """The inverse of `encode_actions`, cut to the embodiment's `width`."""
        return x[..., :width] * self.action_scale[row, :width] + self.action_centre[row, :width]


def centre_and_scale(stats: ChannelStats) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation a column; a column that hardly moves keeps scale 1, so that it stays near 0."""
    scale = np.where(stats.std > 1e-6 * np.maximum(1.0, np.abs(stats.mean)), stats.std, 1.0)
    return stats.mean.astype(np.float32), scale.astype(np.float32)
