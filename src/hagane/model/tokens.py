"""Tokeniser: samples to tokens, with per-embodiment rows of stacked parameters; and back for the second loss.

Every parameter here has one row a slot or an embodiment. The whole stack is one parameter that each rank
touches at every step, whichever embodiments it was dealt: modules of their own would deadlock a sharded run.
"""

from __future__ import annotations

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

    def reset_parameters(self, layouts: tuple[SampleLayout, ...]) -> None:
        """Start each row at the scale of its own width, not of the widest."""
        nn.init.zeros_(self.b_in)
        nn.init.normal_(self.prompts, std=0.5)
        nn.init.normal_(self.bytes.weight, std=1.0)
        nn.init.zeros_(self.w_next)
        with torch.no_grad():
            for slot in (s for layout in layouts for s in layout.slots):
                nn.init.normal_(self.w_in[slot.index], std=max(1, slot.width) ** -0.5)

    def forward(self, sample: Sample, normaliser: Normaliser) -> tuple[Tensor, Tensor]:
        """Tokens [N, L, D] and which of them may be looked at [N, L]."""
        layout, n = sample.layout, len(sample)
        prompts = self.prompts[layout.row].expand(n, -1, -1)
        # a byte is embedded, never a character: any language fits, 0 marks the end
        text = self.text(self.bytes(sample.text.int()).flatten(2))
        tokens, seen = (
            [prompts, text],
            [prompts.new_ones(n, prompts.shape[1], dtype=torch.bool), sample.text[..., 0] > 0],
        )
        for slot in layout.slots:
            made, ok = self._embed(slot, sample.windows[slot.channel.name], normaliser, layout.embodiment.rate_hz)
            tokens.append(made + (self.b_in[slot.index] + self.describe(self.descriptors[slot.index])))
            seen.append(ok)
        return torch.cat(tokens, 1), torch.cat(seen, 1)

    def _embed(self, slot: Slot, w: WindowTensors, normaliser: Normaliser, rate_hz: float) -> tuple[Tensor, Tensor]:
        """One slot's tokens [N, t, D] and their flags [N, t]."""
        x = normaliser.observe(slot, w.values, w.valid)
        n = len(x)
        if slot.channel.kind == "image":
            tokens = self.image(patches(x, self.patch).flatten(1, 2))
            return tokens, w.valid.repeat_interleave(slot.tokens // w.valid.shape[1], 1)
        nominal = torch.from_numpy(nominal_age_s(slot, rate_hz)).to(x.device)
        late = torch.log1p(((w.age_s - nominal) * rate_hz).clamp_min(0))
        valid = w.valid.to(x.dtype)
        weight = self.w_in[slot.index, : slot.width]
        if slot.channel.kind == "set" and slot.tokens > 1:
            # [N, S, n, d] to one token a place: its history, its flags, the ages
            places = x.permute(0, 2, 1, 3).flatten(2)
            flags = valid.transpose(1, 2)
            ages = late[:, None, :].expand_as(flags)
            return torch.cat((places, flags, ages), -1) @ weight, w.valid.any(1)
        wide = torch.cat((x.flatten(1), valid.flatten(1), late), -1)
        return (wide @ weight)[:, None], torch.ones(n, 1, dtype=torch.bool, device=x.device)

    def predict_next(self, slot: Slot, tokens: Tensor) -> Tensor:
        """Next normalised values from a slot's trunk outputs [N, t, D]: [N, *shape], or [N, patches, p*p*3]."""
        if slot.channel.kind == "image":
            newest = slot.tokens // slot.channel.history.steps
            out: Tensor = self.image_next(tokens[:, :newest])
            return out
        return (tokens @ self.w_next[slot.index, :, : slot.out]).reshape(len(tokens), *slot.channel.shape)


def patches(image: Tensor, patch: int) -> Tensor:
    """[N, S, height, width, 3] to [N, S, patches, patch * patch * 3], row by row."""
    n, s, height, width, _ = image.shape
    x = image.reshape(n, s, height // patch, patch, width // patch, patch, 3)
    return x.permute(0, 1, 2, 4, 3, 5, 6).reshape(n, s, -1, patch * patch * 3)


def next_loss(
    tokeniser: Tokeniser,
    normaliser: Normaliser,
    slots: tuple[Slot, ...],
    tokens: Tensor,
    targets: Mapping[str, WindowTensors],
) -> tuple[Tensor, Tensor]:
    """Second loss, masked prediction of the next observation: sum of squared errors and count of numbers.

    Args:
        tokeniser: holds the heads.
        normaliser: brings targets to unit scale.
        slots: an embodiment's slots; actions are skipped.
        tokens: [N, L, D] trunk outputs of its samples.
        targets: by channel, windows with S = 1, one control step later.
    """
    total, count = tokens.new_zeros(()), tokens.new_zeros(())
    for slot in slots:
        if slot.is_action or slot.channel.name not in targets:
            continue
        w = targets[slot.channel.name]
        want = normaliser.observe(slot, w.values, w.valid)
        got = tokeniser.predict_next(slot, tokens[:, slot.first : slot.first + slot.tokens])
        want = patches(want, tokeniser.patch)[:, 0] if slot.channel.kind == "image" else want[:, 0]
        flags = w.valid[:, 0]
        mask = flags.reshape(flags.shape + (1,) * (want.ndim - flags.ndim)).expand_as(want)
        total = total + (F.mse_loss(got, want, reduction="none") * mask).sum()
        count = count + mask.sum()
    return total, count
