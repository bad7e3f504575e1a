"""Memory of one rank in closed form, by kind. `plan dry-run` measures the same kinds on fake tensors."""

from __future__ import annotations

from dataclasses import dataclass

from hagane.plan.rates import Training
from hagane.plan.roofline import FP32, Setup, dealt_layers, microbatches_of
from hagane.plan.shape import Shape
from hagane.plan.traffic import BF16

PREFETCHED = 2
"""Layers whose gathered weights are alive at once: the one that computes, and the next."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at its peak, by kind."""

    weights: float
    """The weights that the optimiser keeps: fp32."""
    gathered: float
    """Weights in bf16, as layers use them."""
    gradients: float
    """Gradients, whole step."""
    optimiser: float
    """Moments."""
    ema: float
    """Moving average of the weights."""
    activations: float
    """What the forward keeps for the backward, and the working set of one layer."""
    buffers: float
    """Tokens on their way to experts and back, pipeline messages, logits."""

    @property
    def total(self) -> float:
        """All bytes."""
        return float(sum(vars(self).values()))

    @property
    def static(self) -> float:
        """Bytes that live from step to step: weights, moments, moving average."""
        return self.weights + self.optimiser + self.ema


def rank_memory(shape: Shape, setup: Setup, training: Training, *, imbalance: float = 1.0, stage: int = 0) -> Memory:
    """Peak memory of a rank.

    Args:
        shape: the model.
        setup: layout, recomputation, sharding.
        training: microbatch, and bytes of the optimiser.
        imbalance: tokens that this rank's experts receive, against the mean.
        stage: pipeline stage; the first holds most microbatches, the last the output projection and the tower.
    """
    layout = setup.layout
    layers = _layers(shape, setup, stage)
    dense = min(layers, shape.dense_layers) if stage == 0 else 0.0
    if shape.dense_layers == shape.layers:
        dense = layers
    last = stage == layout.pp - 1
    ends = (shape.vocabulary * shape.d_model if shape.vocabulary and (last or stage == 0) else 0) / layout.tp
    ends += shape.other_params if last else 0
    # one copy of a layer as a rank uses it: its heads, its experts
    local = _local_layer(shape, setup, dense=False) if shape.moe_layers else 0.0
    local_dense = _local_layer(shape, setup, dense=True) if shape.dense_layers else 0.0
    used = dense * local_dense + (layers - dense) * local + ends
    whole = dense * (shape.attention_params + shape.dense_ffn_params) + ends * layout.tp
    whole += (layers - dense) * (shape.local_params + shape.experts * shape.expert_params)
    own = whole / layout.fsdp
    working = PREFETCHED * max(local, local_dense)
    weights, gathered, gradients = FP32 * own, BF16 * used, FP32 * used
    if setup.sharding == "weights" and setup.gather == "pass":
        # the unsharded gradients of one layer live until they are scattered
        gathered, gradients = BF16 * working, FP32 * own + FP32 * max(local, local_dense)
    elif setup.sharding == "weights" and setup.gather == "microbatch":
        gathered = BF16 * min(used, working + ends)
    return Memory(
        weights=weights,
        gathered=gathered,
        gradients=gradients,
        optimiser=training.optimiser_bytes * own,
        ema=training.ema_bytes * own,
        activations=_activations(shape, setup, training, layers, stage, imbalance),
        buffers=_buffers(shape, setup, training, imbalance, last=last),
    )


def worst_memory(shape: Shape, setup: Setup, training: Training, *, imbalance: float = 1.0) -> Memory:
    """The fullest of the stages: the first, the second (without dense layers) or the last."""
    stages = {0, min(1, setup.layout.pp - 1), setup.layout.pp - 1}
    found = [rank_memory(shape, setup, training, imbalance=imbalance, stage=s) for s in sorted(stages)]
    return max(found, key=lambda m: m.total)


def layer_activation_bytes(shape: Shape, setup: Setup, imbalance: float, *, dense: bool) -> float:
    """Bytes that one layer keeps for the backward for one token of a rank, without recomputation.

    Numbers of bf16. Latent attention, which is not ours, as stacks with fused kernels keep it: inputs of every product
    and kernel. Ours is what autograd keeps of `model.attention` and `model.moe`: residual and norm twice; queries and
    keys before their norm and before they are turned; the packed row, and keys and values once more for every head; the
    core's output, packed and flat; the row's mask; the router's scores (fp32). Then for every row that reaches an
    expert its input and, of the hidden layer, gate, value, activated gate and their product; for every row sent its
    result.
    """
    d, out, t = shape.d_model, shape.heads * shape.v_dim, setup.layout.tp
    q, k, v = shape.heads * shape.qk_dim, shape.kv_heads * shape.qk_dim, shape.kv_heads * shape.v_dim
    if shape.kv_rank:
        up = 0 if setup.recompute == "up" else shape.qkv_width
        numbers, hidden, sent = 4.0 * d + up + shape.q_rank + shape.kv_rank + out, 3, d
    else:
        # around attention tp ranks hold each other's tokens; the mask is that of all their tokens
        numbers = (3.0 + t) * d + 2 * (q + k) + out + shape.padding * (2 * q + k + v + 2 * out)
        numbers += shape.padding * shape.row * t * setup.layout.cp + 2 * shape.experts
        hidden, sent = 4, d
    if dense:
        return BF16 * (numbers + hidden * shape.dense_ffn)
    reached = shape.top_k * imbalance
    routed = shape.top_k * sent + reached * (d + hidden * shape.expert_ffn)
    return BF16 * (numbers + routed + hidden * shape.shared * shape.expert_ffn)


def in_flight(setup: Setup, microbatches: int, stage: int) -> float:
    """Microbatches whose activations a rank holds at once: pp - stage for 1F1B, pp + 1 for DualPipe.

    Interleaving begins with (virtual - 1) pp + 2 (pp - 1 - stage) forwards of one part of the trunk each (Narayanan et
    al. 2021, arXiv 2104.04473, as in torch's schedule), and holds one more.
    """
    pp = setup.layout.pp
    if setup.schedule == "dualpipe":
        return min(pp + 1, microbatches)
    parts = (setup.virtual - 1) * pp + 2 * (pp - 1 - stage) + 1
    held = parts / setup.virtual if setup.virtual > 1 else float(pp - stage)
    return min(held, microbatches)


def _layers(shape: Shape, setup: Setup, stage: int) -> float:
    pp = setup.layout.pp
    last = shape.mtp_layers if stage == pp - 1 else 0
    return sum(dealt_layers(shape.layers, setup)[stage::pp]) + last


def _local_layer(shape: Shape, setup: Setup, *, dense: bool) -> float:
    """Parameters of one layer as a rank uses them when they are gathered."""
    attention = shape.attention_params / setup.layout.tp
    if dense:
        return attention + shape.dense_ffn_params / setup.layout.tp
    rest = shape.local_params - shape.attention_params
    return attention + rest + shape.experts * shape.expert_params / setup.layout.ep


def _activations(shape: Shape, setup: Setup, training: Training, layers: float, stage: int, imbalance: float) -> float:
    layout = setup.layout
    tokens = training.microbatch_tokens / (layout.cp * layout.tp)
    held = in_flight(setup, microbatches_of(setup, training), stage)
    if not shape.moe_layers:
        kept = layer_activation_bytes(shape, setup, imbalance, dense=True)
    else:
        kept = layer_activation_bytes(shape, setup, imbalance, dense=False)
    if setup.recompute == "layers":
        # what a layer was given, and one layer (and its gradients) at work
        return tokens * (held * layers * BF16 * shape.d_model + 2 * kept)
    return tokens * (held * layers * kept + kept)


def _buffers(shape: Shape, setup: Setup, training: Training, imbalance: float, *, last: bool) -> float:
    layout = setup.layout
    tokens = training.microbatch_tokens / (layout.cp * layout.tp)
    size = 0.0
    if layout.ep > 1:
        # sent and received, on the way there and back
        size += 2 * BF16 * shape.d_model * shape.top_k * tokens * (1 + imbalance)
    if layout.pp > 1:
        size += 4 * BF16 * shape.d_model * tokens
    if last and shape.vocabulary:
        size += (BF16 + FP32) * shape.vocabulary * training.microbatch_tokens / layout.tp / layout.cp
    return size
