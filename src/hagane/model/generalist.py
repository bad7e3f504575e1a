"""Generalist: one set of weights for every machine. It knows nothing of machines beyond their channels, and
nothing of parallelism, which `engine` applies from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hagane.model.config import ModelConfig
from hagane.model.moe import MoE
from hagane.model.normaliser import Normaliser
from hagane.model.packing import pack
from hagane.model.slots import sample_layouts
from hagane.model.tensors import Sample, WindowTensors
from hagane.model.tokens import Tokeniser, next_loss
from hagane.model.tower import Context, Tower
from hagane.model.trunk import Trunk, block_mask
from hagane.terms import ChannelStats

INTO_RESIDUAL = (".o.weight", ".down.weight", ".experts.down", "_out.weight")
QUIET_START = 0.2
"""Layers start as small corrections of their input."""


@dataclass(frozen=True, eq=False)
class TrainSample:
    """What training adds to a sample. Noise and time come from outside: functions of (seed, step, sample id)."""

    sample: Sample
    """The observations."""
    actions: Tensor
    """[N, H, a] in units."""
    action_valid: Tensor
    """[N, H] bool."""
    noise: Tensor
    """[N, H, A] standard normal."""
    time: Tensor
    """[N, H] flow time in 0..1."""
    next: Mapping[str, WindowTensors]
    """Targets of the second loss."""


@dataclass(frozen=True, eq=False)
class LossSums:
    """Sums and counts of one embodiment's losses; the caller divides by global counts."""

    action: Tensor
    """Sum of the action loss over valid numbers."""
    action_count: Tensor
    """Valid numbers."""
    next: Tensor
    """Sum of the second loss."""
    next_count: Tensor
    """Numbers in it."""


class Generalist(nn.Module):
    """Tokeniser, trunk and action tower."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.layouts = sample_layouts(config)
        self.normaliser = Normaliser(config, self.layouts)
        self.tokeniser = Tokeniser(config, self.layouts)
        self.trunk = Trunk(config.widths, permitted_experts(config))
        self.tower = Tower(config)

    def reset_parameters(self, seed: int) -> None:
        """Start the weights from a seed; the same on every rank and machine."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
                elif isinstance(module, MoE):
                    module.reset_parameters()
            self.tokeniser.reset_parameters(self.layouts)
            self.tower.reset_parameters()
            with torch.no_grad():
                for name, p in self.named_parameters():
                    if name.endswith(INTO_RESIDUAL):
                        p.mul_(QUIET_START)

    def fit_normaliser(self, stats: Mapping[str, Mapping[str, ChannelStats]]) -> None:
        """Set centres and scales from statistics by embodiment and channel."""
        self.normaliser.fit(self.layouts, stats)

    def encode(self, samples: Sequence[Sample]) -> tuple[list[Tensor], list[Tensor]]:
        """Trunk outputs [N, L, D] and flags [N, L] of each part."""
        made = [self.tokeniser(s, self.normaliser) for s in samples]
        counts, lengths = tuple(len(s) for s in samples), tuple(s.layout.length for s in samples)
        packing = pack(counts, lengths, self.config.widths.pack_tokens)
        x = torch.cat([tokens.flatten(0, 1) for tokens, _ in made])
        device = x.device
        place = torch.from_numpy(packing.place_M).to(device)
        seen_M = torch.cat([seen.flatten() for _, seen in made])
        seen_RT = torch.zeros(packing.rows * packing.tokens, dtype=torch.bool, device=device).index_copy(
            0, place, seen_M
        )
        segment_RT = torch.from_numpy(packing.segment_RT).to(device)
        mask = block_mask(segment_RT, seen_RT.view(packing.rows, packing.tokens))
        position = torch.from_numpy(np.concatenate([np.tile(s.layout.positions, len(s)) for s in samples])).to(device)
        rows = np.repeat([s.layout.row for s in samples], np.multiply(counts, lengths))
        x = self.trunk(x, position, place, mask, torch.from_numpy(rows).to(device))
        parts = x.split([n * length for n, length in zip(counts, lengths, strict=True)])
        outs = [p.view(n, length, -1) for p, n, length in zip(parts, counts, lengths, strict=True)]
        return outs, [seen for _, seen in made]

    def context(self, outs: Sequence[Tensor], seen: Sequence[Tensor]) -> Context:
        """The tower's keys and values over all parts, padded to the longest sample."""
        longest = max(o.shape[1] for o in outs)
        x = torch.cat([nn.functional.pad(o, (0, 0, 0, longest - o.shape[1])) for o in outs])
        flags = torch.cat([nn.functional.pad(s, (0, longest - s.shape[1])) for s in seen])
        return self.tower.context(x, flags)

    def forward(self, batch: Sequence[TrainSample]) -> list[LossSums]:
        """Loss sums of each part of a training batch."""
        outs, seen = self.encode([t.sample for t in batch])
        context = self.context(outs, seen)
        rows = tuple((t.sample.layout.row, len(t.sample)) for t in batch)
        targets = [self.normaliser.encode_actions(t.sample.layout.row, t.actions) for t in batch]
        clean, noise, time = torch.cat(targets), torch.cat([t.noise for t in batch]), torch.cat([t.time for t in batch])
        if self.config.head == "flow":
            mixed = noise + time[..., None] * (clean - noise)
            error = (self.tower(mixed, time, rows, context) - clean).square()
        else:
            error = (self.tower(torch.zeros_like(clean), torch.zeros_like(time), rows, context) - clean).abs()
        sums = []
        for t, out, e in zip(batch, outs, error.split([n for _, n in rows]), strict=True):
            width = t.sample.layout.embodiment.action_width
            mask = t.action_valid[..., None].expand(*t.action_valid.shape, width)
            following = next_loss(self.tokeniser, self.normaliser, t.sample.layout.slots, out, t.next)
            sums.append(LossSums((e[..., :width] * mask).sum(), mask.sum(), *following))
        return sums

    @torch.no_grad()
    def decide(self, sample: Sample, euler_steps: int | None = None) -> Tensor:
        """[N, H, a] actions in units: from zero noise, by Euler steps (flow) or in one pass (l1)."""
        outs, seen = self.encode([sample])
        context = self.context(outs, seen)
        e = sample.layout.embodiment
        x = outs[0].new_zeros(len(sample), e.horizon, self.config.action_width)
        rows = ((sample.layout.row, len(sample)),)
        steps = 1 if self.config.head == "l1" else euler_steps or self.config.euler_steps
        for k in range(steps):
            time = x.new_full(x.shape[:2], k / steps)
            out = self.tower(x, time, rows, context)
            # the tower predicts the clean action; the velocity towards it is (out - x) / (1 - time)
            x = out if self.config.head == "l1" else x + (out - x) / (steps - k)
        return self.normaliser.decode_actions(sample.layout.row, x, e.action_width)


def permitted_experts(config: ModelConfig) -> Tensor:
    """[embodiments, experts] bool: which experts each machine's tokens may reach."""
    owners = config.expert_owners()
    rows = [[owner in e.permitted_owners for owner in owners] for e in config.embodiments]
    return torch.tensor(rows, dtype=torch.bool)
