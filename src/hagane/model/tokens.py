"""Tokeniser: samples to tokens, with per-embodiment rows of stacked parameters; and back for the second loss.

Every parameter here has one row a slot or an embodiment. The whole stack is one parameter that each rank
touches at every step, whichever embodiments it was dealt: modules of their own would deadlock a sharded run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hagane.model.config import ModelConfig
from hagane.model.normaliser import Normaliser
from hagane.model.slots import BYTE_WIDTH, DESCRIPTOR, TEXT_BYTES, SampleLayout, Slot, descriptor, nominal_age_s
from hagane.model.tensors import Sample, WindowTensors


class Tokeniser(nn.Module):
    """Stacked projections, prompts and prediction heads, the shared text and image embeddings."""

    descriptors: Tensor

    def __init__(self, config: ModelConfig, layouts: tuple[SampleLayout, ...]) -> None:
        super().__init__()
        d, slots = config.widths.d_model, [s for layout in layouts for s in layout.slots]
        self.patch = config.patch
        self.w_in = nn.Parameter(torch.empty(len(slots), max(1, *(s.width for s in slots)), d))
        self.b_in = nn.Parameter(torch.empty(len(slots), d))
        self.w_next = nn.Parameter(torch.empty(len(slots), d, max(1, *(s.out for s in slots))))
        self.prompts = nn.Parameter(torch.empty(len(layouts), config.widths.prompts, d))
        self.bytes = nn.Embedding(256, BYTE_WIDTH)
        self.text = nn.Linear(TEXT_BYTES * BYTE_WIDTH, d, bias=False)
        self.describe = nn.Linear(DESCRIPTOR, d, bias=False)
        self.image = nn.Linear(self.patch * self.patch * 3, d, bias=False)
        self.image_next = nn.Linear(d, self.patch * self.patch * 3, bias=False)
        rows = [torch.from_numpy(descriptor(s, layouts[s.embodiment].embodiment.rate_hz)) for s in slots]
        self.register_buffer("descriptors", torch.stack(rows), persistent=False)

    def forward(self, sample: Sample, normaliser: Normaliser) -> Tensor:
        """Tokens [N, L, D] of a sample; `seen_tokens` says which may be looked at."""
        layout, n = sample.layout, len(sample)
        # a byte is embedded, never a character: any language fits, 0 marks the end
        text = self.text(self.bytes(sample.text.int()).flatten(2))
        tokens = [self.prompts[layout.row].expand(n, -1, -1), text]
        for slot in layout.slots:
            made = self._embed(slot, sample.windows[slot.channel.name], normaliser, layout.embodiment.rate_hz)
            tokens.append(made + (self.b_in[slot.index] + self.describe(self.descriptors[slot.index].to(made.dtype))))
        return torch.cat(tokens, 1)

    def _embed(self, slot: Slot, w: WindowTensors, normaliser: Normaliser, rate_hz: float) -> Tensor:
        """One slot's tokens [N, t, D]."""
        x = normaliser.observe(slot, w.values, w.valid)
        if slot.channel.kind == "image":
            made: Tensor = self.image(patches(x, self.patch).flatten(1, 2).to(self.image.weight.dtype))
            return made
        nominal = torch.from_numpy(nominal_age_s(slot, rate_hz)).to(x.device)
        late = torch.log1p(((w.age_s - nominal) * rate_hz).clamp_min(0))
        valid = w.valid.to(x.dtype)
        weight = self.w_in[slot.index, : slot.width]
        if slot.channel.kind == "set" and slot.tokens > 1:
            # [N, S, n, d] to one token a place: its history, its flags, the ages
            places = x.permute(0, 2, 1, 3).flatten(2)
            flags = valid.transpose(1, 2)
            ages = late[:, None, :].expand_as(flags)
            return torch.cat((places, flags, ages), -1).to(weight.dtype) @ weight
        wide = torch.cat((x.flatten(1), valid.flatten(1), late), -1)
        return (wide.to(weight.dtype) @ weight)[:, None]

    def predict_next(self, slot: Slot, tokens: Tensor) -> Tensor:
        """Next normalised values from a slot's trunk outputs [N, t, D]: [N, *shape], or [N, patches, p*p*3]."""
        if slot.channel.kind == "image":
            newest = slot.tokens // slot.channel.history.steps
            out: Tensor = self.image_next(tokens[:, :newest])
            return out
        return (tokens @ self.w_next[slot.index, :, : slot.out]).reshape(len(tokens), *slot.channel.shape)


def seen_tokens(sample: Sample) -> Tensor:
    """[N, L] bool: which tokens of a sample hold something and may be looked at. Needs no weights."""
    n, valid = len(sample), sample.text[..., 0] > 0
    prompts = sample.layout.length - valid.shape[1] - sum(s.tokens for s in sample.layout.slots)
    seen = [valid.new_ones(n, prompts), valid]
    for slot in sample.layout.slots:
        w = sample.windows[slot.channel.name]
        if slot.channel.kind == "image":
            seen.append(w.valid.repeat_interleave(slot.tokens // w.valid.shape[1], 1))
        elif slot.channel.kind == "set" and slot.tokens > 1:
            seen.append(w.valid.any(1))
        else:
            seen.append(valid.new_ones(n, 1))
    return torch.cat(seen, 1)


def patches(image: Tensor, patch: int) -> Tensor:
    """[N, S, height, width, 3] to [N, S, patches, patch * patch * 3], row by row."""
    n, s, height, width, _ = image.shape
    x = image.reshape(n, s, height // patch, patch, width // patch, patch, 3)
    # a rank may have no sample of a machine: sizes are said, not left to be found
    return x.permute(0, 1, 2, 4, 3, 5, 6).reshape(n, s, height * width // patch**2, patch * patch * 3)


def next_loss(
    tokeniser: Tokeniser,
    normaliser: Normaliser,
    slots: tuple[Slot, ...],
    tokens: Tensor,
    targets: Mapping[str, WindowTensors],
) -> Tensor:
    """Second loss, masked prediction of the next observation: sum of squared errors over `next_count` numbers.

    Args:
        tokeniser: holds the heads.
        normaliser: brings targets to unit scale.
        slots: an embodiment's slots; actions are skipped.
        tokens: [N, L, D] trunk outputs of its samples.
        targets: by channel, windows with S = 1, one control step later.
    """
    total = tokens.new_zeros((), dtype=torch.float32)
    for slot in predicted(slots, targets):
        w = targets[slot.channel.name]
        want = normaliser.observe(slot, w.values, w.valid)
        got = tokeniser.predict_next(slot, tokens[:, slot.first : slot.first + slot.tokens]).float()
        want = patches(want, tokeniser.patch)[:, 0] if slot.channel.kind == "image" else want[:, 0]
        flags = w.valid[:, 0]
        mask = flags.reshape(flags.shape + (1,) * (want.ndim - flags.ndim)).expand_as(want)
        total = total + (F.mse_loss(got, want, reduction="none") * mask).sum()
    return total


def next_count(slots: tuple[Slot, ...], targets: Mapping[str, WindowTensors]) -> Tensor:
    """Numbers in the second loss; known before the forward."""
    counts = [torch.zeros((), dtype=torch.int64)]
    for slot in predicted(slots, targets):
        flags = targets[slot.channel.name].valid[:, 0]
        counts.append(flags.sum() * (math.prod(slot.channel.shape) // math.prod(flags.shape[1:])))
    device = counts[-1].device
    return torch.stack([c.to(device) for c in counts]).sum()


def predicted(slots: tuple[Slot, ...], targets: Mapping[str, WindowTensors]) -> list[Slot]:
    """The slots that the second loss looks at."""
    return [s for s in slots if not s.is_action and s.channel.name in targets]
