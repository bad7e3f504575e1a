"""Traffic: bytes that a layer moves through a GPU's memory, and seconds that collectives take on NVLink and network."""

from __future__ import annotations

from dataclasses import dataclass

from hagane.engine.layout import Layout
from hagane.plan.rates import Gpu, Links, Precision
from hagane.plan.shape import Shape

BF16 = 2


def element_bytes(shape: Shape, *, dense: bool, precision: Precision) -> float:
    """Bytes that element-wise kernels read and write for one token in one layer's forward.

    Counted in numbers of bf16, each kernel fused as far as the published stacks do: two norms (4 D), two residual
    sums (6 D), rotary positions and copies of queries, keys and values (3 x their width), the attention's output;
    experts: tokens copied to and from their order ((1 + k) D each way), read and written again around the all-to-all
    (2 k D), gate times up (3 x ffn). In fp8 every input of a product is read once more and written as one byte.
    """
    d, k = shape.d_model, shape.top_k
    numbers = 10.0 * d + 3 * shape.qkv_width + shape.heads * shape.v_dim
    inputs = 2.0 * d + shape.q_rank + shape.kv_rank + shape.heads * shape.v_dim
    if dense:
        numbers += 3 * shape.dense_ffn
        inputs += shape.dense_ffn
    else:
        numbers += 2 * (1 + k) * d + 2 * k * d + 3 * (k + shape.shared) * shape.expert_ffn
        inputs += (k + shape.shared) * shape.expert_ffn + d
    return BF16 * numbers + (3 * inputs if precision == "fp8" else 0.0)


def product_bytes(shape: Shape, layout: Layout, tokens: float, *, dense: bool) -> float:
    """Bytes that a layer's matrix products read and write in the forward: weights once, inputs and outputs.

    They do not overlap with the arithmetic at a product's start and end, so their time is added to it: small
    products (an expert with few tokens) reach less of the peak than large ones.
    """
    d = shape.d_model
    weights = shape.attention_params / layout.tp
    numbers = 2.0 * d + 2 * (shape.q_rank + shape.kv_rank) + shape.qkv_width + shape.heads * shape.v_dim
    if dense:
        weights += shape.dense_ffn_params / layout.tp
        numbers += 2 * d + 3 * shape.dense_ffn
    else:
        weights += shape.shared * shape.expert_params + shape.experts / layout.ep * shape.expert_params
        numbers += (shape.top_k + shape.shared) * (2 * d + 3 * shape.expert_ffn)
    return BF16 * (weights + numbers * tokens)


@dataclass(frozen=True)
class Wire:
    """Collectives of one GPU: seconds for bytes, by where the group's ranks lie.

    Ranks are numbered as in `Layout`: tp innermost, so a group of n ranks that are `stride` apart has
    domain / stride of them in one NVLink domain.
    """

    gpu: Gpu
    """Bandwidths and the domain."""
    links: Links
    """Shares of the bandwidths that collectives reach."""

    def gather_s(self, size_bytes: float, ranks: int, stride: int) -> float:
        """An all-gather to, or a reduce-scatter from, `size_bytes` on every rank of the group (ring)."""
        if ranks == 1:
            return 0.0
        inside = min(ranks, max(1, self.gpu.domain // stride))
        near = size_bytes * (ranks - 1) / ranks / self._near
        # a node's incoming bytes are shared by the links of those of its GPUs that are in the group
        far = size_bytes * (1 - inside / ranks) / inside / self._far
        return max(near, far) + (ranks / inside - 1) * 1e-6 * self.links.hop_us

    def swap_s(self, size_bytes: float, ranks: int, stride: int) -> float:
        """An even all-to-all of `size_bytes` on every rank of the group: each sends others' parts by its own link."""
        inside = min(ranks, max(1, self.gpu.domain // stride))
        return max(size_bytes * (1 - 1 / ranks) / self._near, size_bytes * (1 - inside / ranks) / self._far)

    def dispatch_s(self, shape: Shape, layout: Layout, tokens: float, *, bytes_number: float) -> float:
        """One all-to-all of a layer's tokens to their experts, or back.

        A token goes once to every rank that has one of its k experts, and over the network once to every node
        (forwarded inside by NVLink, as DeepEP and HybridEP do). Experts are drawn evenly.
        """
        ep = layout.ep
        if ep == 1:
            return 0.0
        size = shape.d_model * bytes_number * tokens
        near = size * distinct(ep, shape.top_k) * (1 - 1 / ep) / self._near
        nodes = ep // min(ep, self.gpu.domain)
        if nodes == 1:
            return near
        reached = min(distinct(nodes, shape.top_k), shape.route_nodes or nodes)
        return max(near, size * reached * (1 - 1 / nodes) / self._far)

    @property
    def _near(self) -> float:
        return 1e9 * self.gpu.nvlink_gbs * self.links.nvlink

    @property
    def _far(self) -> float:
        return 1e9 * self.gpu.network_gbs * self.links.network


def distinct(places: int, draws: int) -> float:
    """Different places that so many even draws hit, on average."""
    return places * (1 - (1 - 1 / places) ** draws)
