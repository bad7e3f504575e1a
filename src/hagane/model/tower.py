"""Action tower: a small transformer over the chunk that looks at the trunk's output.

Flow matching (Lipman et al. 2023, arXiv 2210.02747), conditioned on a flow time for each action of the chunk,
so that a prefix already being carried out can be given as time 1 (real-time chunking, arXiv 2506.07339). It
predicts the clean action, not the velocity (arXiv 2511.13720): where the observation settles the action, that is
plain regression at any flow time, and learns several times faster.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hagane.model.attention import Norm, attend
from hagane.model.config import ModelConfig
from hagane.model.moe import SwiGLU

TIME_FEATURES = 64


@dataclass(frozen=True, eq=False)
class Context:
    """Keys and values of the trunk's output for every tower layer: computed once a chunk."""

    keys: tuple[Tensor, ...]
    """Each [N, heads, L, head_dim]."""
    values: tuple[Tensor, ...]
    """Each [N, heads, L, head_dim]."""
    mask: Tensor
    """[N, 1, 1, L] True where a context token may be looked at."""


class TowerLayer(nn.Module):
    """Self-attention over the chunk, cross-attention to the context, feed-forward."""

    def __init__(self, d_model: int, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.heads = heads
        self.self_norm, self.cross_norm, self.ffn_norm = Norm(width), Norm(width), Norm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.self_out = nn.Linear(width, width, bias=False)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(d_model, 2 * width, bias=False)
        self.cross_out = nn.Linear(width, width, bias=False)
        self.ffn = SwiGLU(width, ffn)

    def context(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [N, heads, L, head_dim] of trunk outputs [N, L, D]."""
        k, v = self.kv(x).chunk(2, -1)
        # copies, not views: a sharded layer's outputs must not alias
        return (
            self._split(k).clone(memory_format=torch.contiguous_format),
            self._split(v).clone(memory_format=torch.contiguous_format),
        )

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """[N, H, width] to the same; keys and values from `context`."""
        q, k, v = (self._split(t) for t in self.qkv(self.self_norm(x)).chunk(3, -1))
        x = x + self.self_out(_join(attend(q, k, v)))
        q = self._split(self.q(self.cross_norm(x)))
        x = x + self.cross_out(_join(attend(q, keys, values, mask)))
        out: Tensor = x + self.ffn(self.ffn_norm(x))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, x.shape[-1] // self.heads).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class Tower(nn.Module):
    """Stacked action projections a row an embodiment, and the shared layers (the base)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size, rows = config.widths, len(config.embodiments)
        width = size.tower_d
        self.w_in = nn.Parameter(torch.empty(rows, config.action_width, width))
        self.w_out = nn.Parameter(torch.empty(rows, width, config.action_width))
        self.steps = nn.Parameter(torch.empty(config.horizon, width))
        self.time = nn.Linear(TIME_FEATURES, width)
        self.time_out = nn.Linear(width, width)
        self.layers = nn.ModuleList(
            TowerLayer(size.d_model, width, size.tower_heads, size.tower_ffn) for _ in range(size.tower_layers)
        )
        self.norm = Norm(width)

    @property
    def blocks(self) -> list[TowerLayer]:
        """The layers in order."""
        return [layer for layer in self.layers if isinstance(layer, TowerLayer)]

    def context(self, x: Tensor, seen: Tensor) -> Context:
        """Keys and values of trunk outputs [N, L, D]; `seen` [N, L]."""
        both = [layer.context(x) for layer in self.blocks]
        return Context(tuple(k for k, _ in both), tuple(v for _, v in both), seen[:, None, None, :])

    def forward(self, x: Tensor, time: Tensor, row_counts: tuple[tuple[int, int], ...], context: Context) -> Tensor:
        """The clean action at unit scale of every step of the chunk.

        Args:
            x: [N, H, A] noised actions at unit scale.
            time: [N, H] flow time, 0 noise to 1 action.
            row_counts: (embodiment row, samples) of each run of samples, in order.
            context: from `context`.
        """
        dtype = self.w_in.dtype
        hidden = torch.cat([part @ self.w_in[row] for row, part in _runs(x.to(dtype), row_counts)])
        hidden = hidden + self.steps[: x.shape[1]] + self.time_out(F.silu(self.time(time_features(time).to(dtype))))
        for layer, k, v in zip(self.blocks, context.keys, context.values, strict=True):
            hidden = layer(hidden, k, v, context.mask)
        hidden = self.norm(hidden)
        return torch.cat([part @ self.w_out[row] for row, part in _runs(hidden, row_counts)])


def _runs(x: Tensor, row_counts: tuple[tuple[int, int], ...]) -> list[tuple[int, Tensor]]:
    parts = torch.split(x, [n for _, n in row_counts])
    return [(row, part) for (row, _), part in zip(row_counts, parts, strict=True)]


def time_features(time: Tensor) -> Tensor:
    """[N, H] to [N, H, TIME_FEATURES] sines and cosines of geometric frequencies from 1 to 1000."""
    half = TIME_FEATURES // 2
    frequency = 1000.0 ** (torch.arange(half, device=time.device) / (half - 1))
    angle = time[..., None] * frequency
    return torch.cat((angle.sin(), angle.cos()), -1)
