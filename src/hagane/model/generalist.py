"""Generalist: one set of weights for every machine. It knows nothing of machines beyond their channels, and
nothing of parallelism, which `engine` applies from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hagane.model.config import ModelConfig
from hagane.model.normaliser import Normaliser
from hagane.model.packing import pack
from hagane.model.slots import sample_layouts
from hagane.model.tensors import Sample, WindowTensors
from hagane.model.tokens import Tokeniser, next_count, next_loss, seen_tokens
from hagane.model.tower import Context, Tower
from hagane.model.trunk import Trunk, block_mask
from hagane.terms import ChannelStats


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
    """Sums of one embodiment's losses; the caller divides by global counts (`loss_counts`)."""

    action: Tensor
    """Sum of the action loss over valid numbers."""
    next: Tensor
    """Sum of the second loss."""


@dataclass(frozen=True, eq=False)
class Packed:
    """Where the M tokens of a batch lie, and what the trunk must know of each. Needs no weights."""

    position_M: Tensor
    """[M] rotary position."""
    place_M: Tensor
    """[M] index in the flattened rows."""
    mask: Tensor
    """[R, 1, T, T] True where a place may look."""
    gate_M: Tensor
    """[M] embodiment row."""
    seen: tuple[Tensor, ...]
    """Each part's [N, L] flags of tokens that hold something."""


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

    def fit_normaliser(self, stats: Mapping[str, Mapping[str, ChannelStats]]) -> None:
        """Set centres and scales from statistics by embodiment and channel."""
        self.normaliser.fit(self.layouts, stats)

    def packed(self, samples: Sequence[Sample]) -> Packed:
        """Where every token of the samples goes."""
        seen = tuple(seen_tokens(s) for s in samples)
        device = seen[0].device
        counts, lengths = tuple(len(s) for s in samples), tuple(s.layout.length for s in samples)
        packing = pack(counts, lengths, self.config.widths.pack_tokens)
        place = torch.from_numpy(packing.place_M).to(device)
        seen_RT = torch.zeros(packing.rows * packing.tokens, dtype=torch.bool, device=device)
        seen_RT = seen_RT.index_copy(0, place, torch.cat([s.flatten() for s in seen]))
        segment_RT = torch.from_numpy(packing.segment_RT).to(device)
        mask = block_mask(segment_RT, seen_RT.view(packing.rows, packing.tokens))
        position = torch.from_numpy(np.concatenate([np.tile(s.layout.positions, len(s)) for s in samples])).to(device)
        rows = torch.from_numpy(np.repeat([s.layout.row for s in samples], np.multiply(counts, lengths))).to(device)
        return Packed(position, place, mask, rows, seen)

    def embed(self, samples: Sequence[Sample]) -> Tensor:
        """[M, D] tokens of the samples, part by part, sample by sample."""
        return torch.cat([self.tokeniser(s, self.normaliser).flatten(0, 1) for s in samples])

    def encode(self, samples: Sequence[Sample]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Trunk outputs [N, L, D] and flags [N, L] of each part."""
        packed = self.packed(samples)
        x = self.trunk(self.embed(samples), packed.position_M, packed.place_M, packed.mask, packed.gate_M)
        return by_part(x, packed.seen), packed.seen

    def context(self, outs: Sequence[Tensor], seen: Sequence[Tensor]) -> Context:
        """The tower's keys and values over all parts, padded to the longest sample."""
        longest = max(o.shape[1] for o in outs)
        x = torch.cat([nn.functional.pad(o, (0, 0, 0, longest - o.shape[1])) for o in outs])
        flags = torch.cat([nn.functional.pad(s, (0, longest - s.shape[1])) for s in seen])
        return self.tower.context(x, flags)

    def forward(self, batch: Sequence[TrainSample], pick: slice = slice(None)) -> list[LossSums]:
        """Loss sums of each part of a training batch, over all its samples or some of each part."""
        outs, seen = self.encode([t.sample for t in batch])
        return self.losses(batch, outs, seen, pick)

    def losses(
        self, batch: Sequence[TrainSample], outs: Sequence[Tensor], seen: Sequence[Tensor], pick: slice
    ) -> list[LossSums]:
        """Loss sums of each part from the trunk's outputs (see `encode`), over the samples that `pick` takes."""
        outs, seen = [o[pick] for o in outs], [s[pick] for s in seen]
        context = self.context(outs, seen)
        rows = tuple((t.sample.layout.row, len(o)) for t, o in zip(batch, outs, strict=True))
        targets = [self.normaliser.encode_actions(t.sample.layout.row, t.actions[pick]) for t in batch]
        clean, noise = torch.cat(targets), torch.cat([t.noise[pick] for t in batch])
        time = torch.cat([t.time[pick] for t in batch])
        if self.config.head == "flow":
            mixed = noise + time[..., None] * (clean - noise)
            error = (self.tower(mixed, time, rows, context).float() - clean).square()
        else:
            error = (self.tower(torch.zeros_like(clean), torch.zeros_like(time), rows, context).float() - clean).abs()
        sums = []
        for t, out, e in zip(batch, outs, error.split([n for _, n in rows]), strict=True):
            layout = t.sample.layout
            e = e[..., : layout.embodiment.action_width] * t.action_valid[pick, :, None]
            targets_next = {name: w.take(pick) for name, w in t.next.items()}
            sums.append(LossSums(e.sum(), next_loss(self.tokeniser, self.normaliser, layout.slots, out, targets_next)))
        return sums

    @torch.no_grad()
    def decide(self, sample: Sample, euler_steps: int | None = None) -> Tensor:
        """[N, H, a] actions in units: from zero noise, by Euler steps (flow) or in one pass (l1)."""
        outs, seen = self.encode([sample])
        context = self.context(outs, seen)
        e = sample.layout.embodiment
        x = outs[0].new_zeros(len(sample), e.horizon, self.config.action_width, dtype=torch.float32)
        rows = ((sample.layout.row, len(sample)),)
        steps = 1 if self.config.head == "l1" else euler_steps or self.config.euler_steps
        for k in range(steps):
            time = x.new_full(x.shape[:2], k / steps)
            out = self.tower(x, time, rows, context).float()
            # the tower predicts the clean action; the velocity towards it is (out - x) / (1 - time)
            x = out if self.config.head == "l1" else x + (out - x) / (steps - k)
        return self.normaliser.decode_actions(sample.layout.row, x, e.action_width)


def by_part(x: Tensor, seen: Sequence[Tensor]) -> list[Tensor]:
    """Flat tokens [M, D] as each part's [N, L, D]."""
    parts = x.split([flags.numel() for flags in seen])
    return [p.view(*flags.shape, x.shape[-1]) for p, flags in zip(parts, seen, strict=True)]


def loss_counts(batch: Sequence[TrainSample]) -> Tensor:
    """[parts, 2] float64: numbers in the action loss and in the second loss, known before the forward."""
    counts = []
    for t in batch:
        layout = t.sample.layout
        action = t.action_valid.sum() * layout.embodiment.action_width
        counts.append(torch.stack((action, next_count(layout.slots, t.next).to(action.device))))
    return torch.stack(counts).double()


def permitted_experts(config: ModelConfig) -> Tensor:
    """[embodiments, experts] bool: which experts each machine's tokens may reach."""
    owners = config.expert_owners()
    rows = [[owner in e.permitted_owners for owner in owners] for e in config.embodiments]
    return torch.tensor(rows, dtype=torch.bool, device="cpu")
