"""Shape: the widths that decide a training step's work; ours, and published models to check the estimate against."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hagane.model import ModelConfig
from hagane.model.slots import sample_layouts


@dataclass(frozen=True)
class Shape:
    """A pre-norm transformer: dense or mixture-of-experts, grouped-query or multi-head latent attention (MLA).

    Our sizes and published models (DeepSeek-V3, Kimi K2, Llama 3) are all of this form. Norms are left out: less than
    one parameter in ten thousand.
    """

    name: str
    """What it is called."""
    layers: int
    """Layers of the trunk."""
    d_model: int
    """D: width of the residual stream."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads; with MLA as many as query heads."""
    qk_dim: int
    """Width of a query and key head."""
    v_dim: int
    """Width of a value head."""
    q_rank: int = 0
    """MLA: width that queries are projected through; 0 is grouped-query attention."""
    kv_rank: int = 0
    """MLA: width that keys and values are projected through."""
    rope_dim: int = 0
    """MLA: part of a key that carries the position and is shared by all heads."""
    dense_layers: int = 0
    """First layers whose feed-forward is dense."""
    dense_ffn: int = 0
    """Hidden width of a dense feed-forward (SwiGLU)."""
    experts: int = 0
    """Routed experts a layer."""
    top_k: int = 0
    """Routed experts a token reaches."""
    expert_ffn: int = 0
    """Hidden width of an expert (SwiGLU)."""
    shared: int = 0
    """Shared experts a layer."""
    route_nodes: int = 0
    """Nodes that a token may be sent to, at most; 0 is no limit."""
    vocabulary: int = 0
    """Rows of the embedding and of the output projection; 0 has neither."""
    mtp_layers: int = 0
    """Multi-token-prediction layers: a layer and an output projection each (DeepSeek-V3 has one)."""
    sequence: int = 4096
    """Tokens of one packed row."""
    span: float = 0.0
    """Keys that a query looks at on average; 0 is causal attention over the row: half of it."""
    row: int = 0
    """Places of a packed row whose attention has a mask; 0 has none."""
    padding: float = 1.0
    """Places of packed rows over the tokens in them."""
    other_params: int = 0
    """Parameters beside all this: adapters, action tower."""
    other_flops: float = 0.0
    """Forward FLOPs of those for one token of the trunk."""

    @cached_property
    def moe_layers(self) -> int:
        """Layers with routed experts."""
        return self.layers - self.dense_layers

    @cached_property
    def qkv_width(self) -> int:
        """Numbers of queries, keys and values of one token in one layer."""
        return self.heads * self.qk_dim + self.kv_heads * (self.qk_dim + self.v_dim)

    @cached_property
    def up_params(self) -> int:
        """MLA: parameters of a layer's up-projections, which some runs compute again in the backward."""
        return self.q_rank * self.heads * self.qk_dim + self.kv_rank * self.heads * (
            self.qk_dim - self.rope_dim + self.v_dim
        )

    @cached_property
    def attention_params(self) -> int:
        """Parameters of a layer's attention."""
        out = self.heads * self.v_dim * self.d_model
        if not self.kv_rank:
            return self.d_model * self.qkv_width + out
        return self.d_model * (self.q_rank + self.kv_rank + self.rope_dim) + self.up_params + out

    @cached_property
    def expert_params(self) -> int:
        """Parameters of one expert."""
        return 3 * self.d_model * self.expert_ffn

    @cached_property
    def dense_ffn_params(self) -> int:
        """Parameters of a dense layer's feed-forward."""
        return 3 * self.d_model * self.dense_ffn

    @cached_property
    def local_params(self) -> int:
        """Parameters of a mixture-of-experts layer that are not routed experts: attention, shared experts, router."""
        return self.attention_params + self.shared * self.expert_params + self.experts * self.d_model

    @cached_property
    def total(self) -> int:
        """All parameters, embedding included."""
        layer = self.local_params + self.experts * self.expert_params
        dense = self.dense_layers * (self.attention_params + self.dense_ffn_params)
        mtp = self.mtp_layers * (layer + 2 * self.d_model**2)
        return self.moe_layers * layer + dense + mtp + 2 * self.vocabulary * self.d_model + self.other_params

    @cached_property
    def keys(self) -> float:
        """Keys that a query looks at on average."""
        return self.span or self.sequence / 2

    @cached_property
    def core_flops(self) -> float:
        """Forward FLOPs of one token in one layer's attention core."""
        return self.keys * self.key_flops

    @cached_property
    def key_flops(self) -> int:
        """Forward FLOPs of one token in one layer's attention core for each key it meets: score and weighted value."""
        return 2 * self.heads * (self.qk_dim + self.v_dim)

    def layer_parts(self, *, dense: bool) -> dict[str, int]:
        """Forward FLOPs of one token in the products of one layer, by part."""
        projections = {"projections": 2 * self.attention_params}
        if dense:
            return projections | {"dense": 2 * self.dense_ffn_params}
        return projections | {
            "router": 2 * self.experts * self.d_model,
            "shared experts": 2 * self.shared * self.expert_params,
            "routed experts": 2 * self.top_k * self.expert_params,
        }

    def layer_flops(self, *, dense: bool) -> float:
        """Forward FLOPs of one token in one layer, attention core included."""
        return sum(self.layer_parts(dense=dense).values()) + self.core_flops

    @cached_property
    def head_flops(self) -> float:
        """Forward FLOPs of one token in the output projection."""
        return 2.0 * self.vocabulary * self.d_model

    @cached_property
    def train_flops(self) -> float:
        """Model FLOPs of one token, forward and backward (three times the forward), without recomputation.

        Causal attention counts half of the row, as DeepSeek-V3 (arXiv 2505.09343) and Megatron-Bridge do; the
        embedding is a look-up and multi-token prediction is not counted.
        """
        dense, moe = self.layer_flops(dense=True), self.layer_flops(dense=False)
        return 3 * (self.dense_layers * dense + self.moe_layers * moe + self.head_flops + self.other_flops)


def trunk_of(config: ModelConfig) -> Shape:
    """The trunk of one of our models; `work.shape_of` adds the rest."""
    w = config.widths
    return Shape(
        name=config.size,
        layers=w.layers,
        d_model=w.d_model,
        heads=w.heads,
        kv_heads=w.kv_heads,
        qk_dim=w.head_dim,
        v_dim=w.head_dim,
        experts=w.experts,
        top_k=w.top_k,
        expert_ffn=w.expert_ffn,
        shared=1,
        sequence=max(4096, w.pack_tokens) if w.d_model >= 512 else w.pack_tokens,
    )


def sample_lengths(config: ModelConfig) -> dict[str, int]:
    """Tokens of one sample by embodiment."""
    return {layout.embodiment.name: layout.length for layout in sample_layouts(config)}
