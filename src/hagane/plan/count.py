"""Parameter counts twice: in closed form from the widths, and from the model itself on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hagane.model import CONSORTIUM, Generalist, ModelConfig
from hagane.model.naming import pieces
from hagane.model.slots import BYTE_WIDTH, DESCRIPTOR, TEXT_BYTES, sample_layouts
from hagane.model.tower import TIME_FEATURES


@dataclass(frozen=True)
class Count:
    """Parameters of a model."""

    parts: Mapping[str, int]
    """By part: attention, routed experts, shared experts, router, norms, tower, adapters, text and image."""
    active: int
    """Parameters that one token of the trunk and one step of the tower use."""
    owners: Mapping[str, int]
    """By owner."""

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parts.values())


def closed_form(config: ModelConfig) -> Count:
    """Counts from the widths alone; `counted` must agree (a test holds them together)."""
    w, layouts = config.widths, sample_layouts(config)
    slots = [s for layout in layouts for s in layout.slots]
    d, e = w.d_model, len(config.embodiments)
    expert = 3 * d * w.expert_ffn
    attention = 2 * d * w.heads * w.head_dim + 2 * d * w.kv_heads * w.head_dim + 2 * w.head_dim
    t, a = w.tower_d, config.action_width
    tower_layer = 3 * t + 6 * t * t + 2 * d * t + 3 * t * w.tower_ffn
    tower = w.tower_layers * tower_layer + t + (TIME_FEATURES + 1 + t + 1) * t + config.horizon * t
    widest, out = max(1, *(s.width for s in slots)), max(1, *(s.out for s in slots))
    adapters = len(slots) * d * (widest + 1 + out) + e * w.prompts * d + 2 * e * a * t
    pixels = config.patch * config.patch * 3
    text_image = 256 * BYTE_WIDTH + TEXT_BYTES * BYTE_WIDTH * d + DESCRIPTOR * d + 2 * pixels * d
    parts = {
        "routed experts": w.layers * w.experts * expert,
        "shared experts": w.layers * expert,
        "attention": w.layers * attention,
        "routers": w.layers * w.experts * d,
        "norms": w.layers * 2 * d + d,
        "action tower": tower,
        "text and image": text_image,
        "adapters": adapters,
    }
    idle = w.layers * (w.experts - w.top_k) * expert
    one_adapter = adapters * (e - 1) // e
    owners = {CONSORTIUM: sum(parts.values()) - adapters - parts["routed experts"] - parts["routers"]}
    for owner, n in config.experts.items():
        owners[owner] = owners.get(owner, 0) + n * w.layers * (expert + d)
    for layout in layouts:
        own = len(layout.slots) * d * (widest + 1 + out) + w.prompts * d + 2 * a * t
        owners[layout.embodiment.owner] = owners.get(layout.embodiment.owner, 0) + own
    return Count(parts, sum(parts.values()) - idle - one_adapter, dict(sorted(owners.items())))


def meta_model(config: ModelConfig) -> Generalist:
    """The model without memory: shapes only."""
    with torch.device("meta"):
        return Generalist(config)


def counted(model: Generalist) -> tuple[int, dict[str, int]]:
    """Parameters of a real (or meta) model, in all and by owner, as its checkpoint would hold them."""
    parameters = dict(model.named_parameters())
    owners: dict[str, int] = {}
    for piece in pieces(model, tuple(parameters)):
        whole = parameters[piece.stacked]
        n = whole.numel() if piece.row < 0 else whole.numel() // whole.shape[0]
        owners[piece.owner] = owners.get(piece.owner, 0) + n
    return sum(p.numel() for p in parameters.values()), dict(sorted(owners.items()))
