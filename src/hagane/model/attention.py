"""Attention: grouped-query heads, QK-norm, rotary positions; over packed rows or from one sequence to another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same shape."""
        return F.rms_norm(x, (x.shape[-1],), self.gain, 1e-6)


def rotate(x: Tensor, position: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864).

    Args:
        x: [M, heads, head_dim].
        position: [M].
        base: wavelength base.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = position[:, None, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class PackedAttention(nn.Module):
    """Self-attention of flat tokens [M, D] that lie in packed rows [R, T]; tokens see their own sample only."""

    def __init__(self, d_model: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.q = nn.Linear(d_model, heads * head_dim, bias=False)
        self.k = nn.Linear(d_model, kv_heads * head_dim, bias=False)
        self.v = nn.Linear(d_model, kv_heads * head_dim, bias=False)
        self.o = nn.Linear(heads * head_dim, d_model, bias=False)
        self.q_norm, self.k_norm = RMSNorm(head_dim), RMSNorm(head_dim)

    def forward(self, x: Tensor, position: Tensor, place: Tensor, mask: Tensor) -> Tensor:
        """[M, D] to [M, D].

        Args:
            x: [M, D] tokens.
            position: [M] rotary positions.
            place: [M] index of each token in the flattened rows.
            mask: [R, 1, T, T] True where a place may look.
        """
        tokens, rows, width = len(x), mask.shape[0], mask.shape[-1]
        q = rotate(self.q_norm(self.q(x).view(tokens, self.heads, self.head_dim)), position)
        k = rotate(self.k_norm(self.k(x).view(tokens, self.kv_heads, self.head_dim)), position)
        v = self.v(x).view(tokens, self.kv_heads, self.head_dim)
        both = torch.cat((q, k, v), 1)
        packed = both.new_zeros(rows * width, *both.shape[1:]).index_copy(0, place, both)
        packed = packed.view(rows, width, -1, self.head_dim).transpose(1, 2)
        q, k, v = torch.split(packed, [self.heads, self.kv_heads, self.kv_heads], 1)
        group = self.heads // self.kv_heads
        out = F.scaled_dot_product_attention(
            q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), attn_mask=mask
        )
        flat = out.transpose(1, 2).reshape(rows * width, -1)
        mixed: Tensor = self.o(flat[place])
        return mixed
