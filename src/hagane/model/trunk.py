"""Trunk: pre-norm transformer layers with a mixture-of-experts feed-forward, on flat tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hagane.model.attention import Norm, PackedAttention, rotary
from hagane.model.moe import MoE
from hagane.model.sizes import Size


class TrunkLayer(nn.Module):
    """Attention, then experts; each behind its norm, each added."""

    def __init__(self, size: Size, permitted_GE: Tensor) -> None:
        super().__init__()
        self.attention_norm = Norm(size.d_model)
        self.attention = PackedAttention(size.d_model, size.heads, size.kv_heads, size.head_dim)
        self.moe_norm = Norm(size.d_model)
        self.moe = MoE(size.d_model, size.experts, size.top_k, size.expert_ffn, permitted_GE)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], place: Tensor, mask: Tensor, gate_M: Tensor) -> Tensor:
        """[M, D] to [M, D]; see `PackedAttention` and `MoE` for the rest."""
        x = x + self.attention(self.attention_norm(x), turn, place, mask)
        out: Tensor = x + self.moe(self.moe_norm(x), gate_M)
        return out


class Trunk(nn.Module):
    """All layers and the last norm."""

    def __init__(self, size: Size, permitted_GE: Tensor) -> None:
        super().__init__()
        # by name, so that a part of the layers keeps its names
        self.layers = nn.ModuleDict({str(i): TrunkLayer(size, permitted_GE.clone()) for i in range(size.layers)})
        self.norm = Norm(size.d_model)
        self.head_dim = size.head_dim

    @property
    def named_blocks(self) -> list[tuple[str, TrunkLayer]]:
        """The layers that are here, in order, with their numbers."""
        return [(name, layer) for name, layer in self.layers.items() if isinstance(layer, TrunkLayer)]

    @property
    def blocks(self) -> list[TrunkLayer]:
        """The layers that are here, in order."""
        return [layer for _, layer in self.named_blocks]

    def forward(self, x: Tensor, position: Tensor, place: Tensor, mask: Tensor, gate_M: Tensor) -> Tensor:
        """[M, D] to [M, D]; `position` [M] is each token's rotary position."""
        out: Tensor = self.norm(self.through(self.blocks, x, position, place, mask, gate_M))
        return out

    def through(
        self, blocks: list[TrunkLayer], x: Tensor, position: Tensor, place: Tensor, mask: Tensor, gate_M: Tensor
    ) -> Tensor:
        """[M, D] through some of the layers, without the norm after the last."""
        turn = rotary(position, self.head_dim)
        for layer in blocks:
            x = layer(x, turn, place, mask, gate_M)
        return x


def block_mask(segment_RT: Tensor, seen_RT: Tensor) -> Tensor:
    """[R, 1, T, T] True where a place may look: in its own sample, at tokens that hold something."""
    same = segment_RT[:, :, None] == segment_RT[:, None, :]
    itself = torch.eye(segment_RT.shape[1], dtype=torch.bool, device=segment_RT.device)
    # a token always sees itself, so no row of the softmax is empty
    return (same & (seen_RT[:, None, :] | itself))[:, None]
