"""Attention: grouped-query heads, QK-norm, rotary positions; over packed rows or from one sequence to another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORT = 256
"""Up to this many keys the CPU's plain matrix products beat its fused attention kernel 2 to 3 times."""


class Norm(nn.Module):
    """Layer norm with a gain and no bias (Ba et al. 2016, arXiv 1607.06450).

    Not the RMS norm: its kernel on the CPU costs 3 to 4 times as much, forward and backward.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same shape."""
        out: Tensor = F.layer_norm(x, (x.shape[-1],), self.gain, None, 1e-6)
        return out


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention [B, heads, T, head_dim]; `mask` True where a query may look."""
    if q.device.type != "cpu" or k.shape[-2] > SHORT:
        fused: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return fused
    score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        score = score.masked_fill(~mask, -1e30)
    out: Tensor = score.softmax(-1) @ v
    return out


def rotary(position: Tensor, head_dim: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines [M, 1, head_dim / 2] of rotary positions [M] (Su et al. 2021, arXiv 2104.09864)."""
    half = head_dim // 2
    frequency = base ** (-torch.arange(half, device=position.device, dtype=torch.float32) / half)
    angle = position[:, None, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate [M, heads, head_dim] by `turn` from `rotary`."""
    cos, sin = (t.to(x.dtype) for t in turn)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class PackedCore(nn.Module):
    """Scaled dot-product attention of flat tokens that lie in packed rows; no weights of its own.

    A module, so that sequence parallelism can exchange tokens for heads around it.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, place: Tensor, mask: Tensor) -> Tensor:
        """Queries [M, heads, head_dim], keys and values [M, kv_heads, head_dim] to [M, heads * head_dim]."""
        rows, width, counts = mask.shape[0], mask.shape[-1], [q.shape[1], k.shape[1], v.shape[1]]
        both = torch.cat((q, k, v), 1)
        packed = both.new_zeros(rows * width, *both.shape[1:]).index_copy(0, place, both)
        packed = packed.view(rows, width, *both.shape[1:]).transpose(1, 2)
        q, k, v = torch.split(packed, counts, 1)
        group = counts[0] // counts[1]
        out = attend(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), mask)
        flat = out.transpose(1, 2).flatten(2).flatten(0, 1)
        return flat.index_select(0, place)


class PackedAttention(nn.Module):
    """Self-attention of flat tokens [M, D] that lie in packed rows [R, T]; tokens see their own sample only."""

    def __init__(self, d_model: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q = nn.Linear(d_model, heads * head_dim, bias=False)
        self.k = nn.Linear(d_model, kv_heads * head_dim, bias=False)
        self.v = nn.Linear(d_model, kv_heads * head_dim, bias=False)
        self.o = nn.Linear(heads * head_dim, d_model, bias=False)
        self.q_norm, self.k_norm = Norm(head_dim), Norm(head_dim)
        self.core = PackedCore()

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], place: Tensor, mask: Tensor) -> Tensor:
        """[M, D] to [M, D].

        Args:
            x: [M, D] tokens.
            turn: rotary cosines and sines from `rotary`.
            place: [M] index of each token in the flattened rows.
            mask: [R, 1, T, T] True where a place may look.
        """
        # how many heads there are is read from the weights: a rank may hold some of them
        q = self.q_norm(self.q(x).unflatten(-1, (-1, self.head_dim)))
        k = self.k_norm(self.k(x).unflatten(-1, (-1, self.head_dim)))
        v = self.v(x).unflatten(-1, (-1, self.head_dim))
        q, k = rotate(torch.cat((q, k), 1), turn).split([q.shape[1], k.shape[1]], 1)
        mixed: Tensor = self.o(self.core(q, k, v, place, mask))
        return mixed
