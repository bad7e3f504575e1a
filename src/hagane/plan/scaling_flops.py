"""Useful floating-point operations of a training sample, in closed form from the widths.

A multiply and an add are two operations; the backward pass costs twice the forward pass (Kaplan et al. 2020,
arXiv 2001.08361). Norms, activations and the optimiser are left out, and so is padding of packed rows, which is
work without use.
"""

from __future__ import annotations

from hagane.model import ModelConfig
from hagane.model.sizes import Size
from hagane.model.slots import BYTE_WIDTH, TEXT_BYTES, SampleLayout, sample_layouts
from hagane.model.tower import TIME_FEATURES

BACKWARD = 2
"""Backward pass against forward pass."""


def trunk_flops(w: Size, tokens: int) -> int:
    """Forward pass of one sample of so many tokens through the trunk."""
    projections = 2 * w.d_model * w.heads * w.head_dim + 2 * w.d_model * w.kv_heads * w.head_dim
    experts = (w.top_k + 1) * 3 * w.d_model * w.expert_ffn + w.experts * w.d_model
    core = 2 * tokens * w.heads * w.head_dim
    return 2 * tokens * w.layers * (projections + experts + core)


def tower_flops(w: Size, tokens: int, horizon: int, action_width: int) -> int:
    """Forward pass of one chunk of `horizon` actions through the tower that looks at so many trunk tokens."""
    t = w.tower_d
    layer = horizon * (6 * t * t + 3 * t * w.tower_ffn) + tokens * 2 * w.d_model * t
    core = 2 * horizon * (horizon + tokens) * t
    ends = horizon * (2 * action_width * t + TIME_FEATURES * t + t * t)
    return 2 * (w.tower_layers * (layer + core) + ends)


def adapter_flops(config: ModelConfig, layout: SampleLayout) -> int:
    """Forward pass of one sample through its own tokeniser: channels in, instruction in, next observation out.

    Images are counted by their patch embedding, into the trunk and (the newest frame) out of it.
    """
    d, pixels = config.widths.d_model, config.patch * config.patch * 3
    total = config.widths.text_tokens * TEXT_BYTES * BYTE_WIDTH * d
    for s in layout.slots:
        image = s.channel.kind == "image"
        total += s.tokens * (pixels if image else s.width) * d
        total += (s.tokens // s.channel.history.steps * pixels if image else s.tokens * s.out) * d
    return 2 * total


def sample_flops(config: ModelConfig, embodiment: str) -> int:
    """One training sample of an embodiment, forward and backward."""
    layout = sample_layouts(config)[config.index(embodiment)]
    forward = trunk_flops(config.widths, layout.length) + adapter_flops(config, layout)
    forward += tower_flops(config.widths, layout.length, config.horizon, config.action_width)
    return (1 + BACKWARD) * forward


def data_tokens(layout: SampleLayout) -> int:
    """Tokens of a sample that carry readings and past actions; prompts and instruction are left out."""
    return sum(s.tokens for s in layout.slots)
