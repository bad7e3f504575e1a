"""Roofline: how long one training step takes on one layout, and where the time goes.

One layer on one rank: products at a share of the best measured matrix product, attention cores at theirs, element-wise
kernels and the products' own bytes at a share of the memory bandwidth; the backward is twice the forward (2.5 times in
the attention core), plus what is computed again. Collectives add what does not hide behind computation. A step is the
slowest pipeline stage's time for its microbatches, the pipeline's bubble, and what happens once a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from hagane.engine.layout import Layout
from hagane.engine.stages import stage_layers
from hagane.plan.rates import Assumptions, Gpu, Precision, Training
from hagane.plan.shape import Shape
from hagane.plan.traffic import BF16, Wire, element_bytes, product_bytes

Recompute = Literal["none", "up", "layers"]
Sharding = Literal["weights", "optimiser"]
Schedule = Literal["1f1b", "dualpipe"]
Gather = Literal["pass", "microbatch", "step"]
Dealing = Literal["even", "full"]
FP32 = 4
STATE_PASSES = 2
"""The optimiser reads and writes what it keeps."""


@dataclass(frozen=True)
class Setup:
    """How a step is carried out on a layout."""

    layout: Layout
    """Ranks along each axis."""
    virtual: int = 1
    """Parts of the trunk that a pipeline rank holds (interleaved 1F1B)."""
    precision: Precision = "bf16"
    """Arithmetic of the trunk's products; everything else is bf16."""
    recompute: Recompute = "none"
    """Computed again in the backward: nothing, MLA's up-projections, or whole layers."""
    sharding: Sharding = "weights"
    """What data-parallel ranks share: weights, gradients and optimiser (FSDP), or the optimiser alone (ZeRO-1)."""
    gather: Gather = "pass"
    """FSDP: weights are gathered for every pass and let go, gradients scattered after every backward ("pass": without
    a pipeline). In one, a stage keeps whole gradient sums and scatters them once a step; its weights are gathered once
    a step ("step"), or once a microbatch ("microbatch": `Compute.regather`): fewer are whole when most is kept."""
    dealing: Dealing = "even"
    """Layers of a pipeline's parts: as even as it goes (ours), or full parts first and the rest to the last one."""
    schedule: Schedule = "1f1b"
    """1F1B (interleaved where virtual > 1), or DualPipe (arXiv 2412.19437)."""
    dispatch_bytes: float = BF16
    """Bytes of a number on its way to an expert; 1 is fp8. The way back is bf16."""
    sm_share: float = 1.0
    """Share of a GPU's multiprocessors left for computation; DeepSeek-V3 gives 20 of 132 to communication."""


@dataclass(frozen=True)
class Pass:
    """Seconds of one microbatch, forward and backward; of one layer or of a whole stage."""

    products: float = 0.0
    """Matrix products."""
    attention: float = 0.0
    """Attention cores."""
    elements: float = 0.0
    """Element-wise kernels, and products' bytes."""
    again: float = 0.0
    """Recomputation."""
    experts: float = 0.0
    """Experts' all-to-all that is not hidden."""
    tensor: float = 0.0
    """Tensor- and sequence-parallel collectives that are not hidden."""
    shards: float = 0.0
    """Weight gathers and gradient reductions that are not hidden."""

    @property
    def compute(self) -> float:
        """Seconds in which the GPU computes."""
        return self.products + self.attention + self.elements + self.again

    @property
    def total(self) -> float:
        """All seconds."""
        return self.compute + self.experts + self.tensor + self.shards

    def times(self, n: float) -> Pass:
        """n of it."""
        return Pass(*(n * v for v in vars(self).values()))

    def plus(self, other: Pass) -> Pass:
        """Both, one after the other."""
        return Pass(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class StepTime:
    """One optimiser step, seconds."""

    work: Pass
    """An average rank's microbatches."""
    waiting: float
    """Pipeline: the bubble, and stages that wait for a slower one."""
    once: float
    """Once a step: gradients over the copies, weights gathered once, the optimiser."""
    tokens: float
    """Tokens of the step, all ranks."""
    ranks: int
    """GPUs."""
    model_flops: float
    """Model FLOPs of a token."""
    microbatches: int
    """Microbatches that a pipeline works off in a step."""

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.work.total + self.waiting + self.once

    @property
    def tokens_s_gpu(self) -> float:
        """Tokens a second and GPU."""
        return self.tokens / self.seconds / self.ranks

    def mfu(self, gpu: Gpu, precision: Precision) -> float:
        """Model FLOPs over the data sheet's peak at a precision."""
        return self.tokens_s_gpu * self.model_flops / gpu.peak(precision)


def estimate_step(shape: Shape, setup: Setup, gpu: Gpu, assumed: Assumptions) -> StepTime:
    """Estimate one step.

    Args:
        shape: the model.
        setup: layout and how it is run; its axes are taken to fit the shape.
        gpu: the accelerator.
        assumed: rates, links and the batch.
    """
    layout, batch = setup.layout, assumed.training
    microbatches = microbatches_of(setup, batch)
    dense = layer_pass(shape, setup, gpu, assumed, dense=True) if shape.dense_layers else Pass()
    moe = layer_pass(shape, setup, gpu, assumed, dense=False) if shape.moe_layers else Pass()
    head = head_pass(shape, setup, gpu, assumed)
    extra = moe.times(shape.mtp_layers)
    everything = dense.times(shape.dense_layers).plus(moe.times(shape.moe_layers)).plus(head).plus(extra)
    average = everything.times(1 / layout.pp)
    slowest = average.total
    if setup.schedule == "1f1b":
        slowest = max(slowest, _slowest_stage(shape, setup, dense.total, moe.total, head.plus(extra).total))
    step = slowest * (microbatches + _bubble(setup))
    once = _once(shape, setup, gpu, assumed, step)
    tokens = microbatches * layout.data_ranks * batch.microbatch_tokens
    work = average.times(microbatches)
    return StepTime(work, step - work.total, once, tokens, layout.ranks, shape.train_flops, microbatches)


def layer_pass(shape: Shape, setup: Setup, gpu: Gpu, assumed: Assumptions, *, dense: bool) -> Pass:
    """One layer of one microbatch on one rank, forward and backward."""
    layout, kernels, links = setup.layout, assumed.kernels, assumed.links
    # a rank computes its heads for all tokens of its row, and everything else for its share of the tokens
    tokens = assumed.training.microbatch_tokens / (layout.cp * layout.tp)
    product_s = 1 / (gpu.matmul(setup.precision) * kernels.matmul * setup.sm_share)
    core_s = 1 / (gpu.matmul("bf16") * kernels.attention * setup.sm_share)
    byte_s = 1 / (1e12 * gpu.hbm_tbs * kernels.memory)
    routed = 0.0 if dense else 2.0 * shape.top_k * shape.expert_params
    flops = shape.layer_flops(dense=dense) - shape.core_flops + routed * (links.imbalance - 1)
    products = flops * tokens * product_s
    core = shape.core_flops * tokens * core_s
    moved = element_bytes(shape, dense=dense, precision=setup.precision) * tokens
    moved += product_bytes(shape, layout, tokens, dense=dense)
    elements = moved * byte_s
    again = {
        "none": 0.0,
        "up": 2 * shape.up_params * tokens * product_s,
        "layers": products + core + elements,
    }[setup.recompute]
    compute = Pass(3 * products, 3.5 * core, 3 * elements, again)
    wire = Wire(gpu, links)
    passes = 3 if setup.recompute == "layers" else 2
    experts = 0.0 if dense else passes * _exchange(wire, shape, layout, tokens, setup.dispatch_bytes) * links.imbalance
    tensor = passes * _tensor_s(wire, shape, layout, tokens)
    shards = 0.0
    if setup.sharding == "weights" and setup.gather != "step":
        # bf16 weights; fp32 gradients
        shards = (2 if setup.gather == "pass" else 1) * _shard_s(wire, shape, layout, dense=dense, number=BF16)
        if setup.gather == "pass":
            shards += _shard_s(wire, shape, layout, dense=dense, number=FP32)
    return Pass(
        compute.products,
        compute.attention,
        compute.elements,
        compute.again,
        exposed(experts, compute.compute, links.hide_experts),
        exposed(tensor, compute.compute, links.hide_tensor),
        exposed(shards, compute.compute, links.hide_shards),
    )


def head_pass(shape: Shape, setup: Setup, gpu: Gpu, assumed: Assumptions) -> Pass:
    """Output projections, action tower and adapters of one microbatch, in bf16 on the last stage."""
    layout = setup.layout
    tokens = assumed.training.microbatch_tokens / (layout.cp * layout.tp)
    flops = shape.head_flops * (1 + shape.mtp_layers) + shape.other_flops
    return Pass(products=3 * flops * tokens / (gpu.matmul("bf16") * assumed.kernels.matmul * setup.sm_share))


def exposed(communication: float, computation: float, hidden: float) -> float:
    """Seconds of communication that are left when a share of it runs behind computation."""
    return communication - hidden * min(communication, computation)


def _exchange(wire: Wire, shape: Shape, layout: Layout, tokens: float, dispatch_bytes: float) -> float:
    """Tokens to their experts and back, once."""
    there = wire.dispatch_s(shape, layout, tokens, bytes_number=dispatch_bytes)
    return there + wire.dispatch_s(shape, layout, tokens, bytes_number=BF16)


def _tensor_s(wire: Wire, shape: Shape, layout: Layout, tokens: float) -> float:
    """One pass: tp gathers tokens and scatters sums around attention (and a dense feed-forward); cp exchanges heads."""
    seconds = 0.0
    if layout.tp > 1:
        blocks = 2 if shape.dense_layers == shape.layers else 1
        size = BF16 * shape.d_model * tokens * layout.tp
        seconds += 2 * blocks * wire.gather_s(size, layout.tp, 1)
    if layout.cp > 1:
        # tp has gathered tokens and cut heads by the same factor
        size = BF16 * (shape.qkv_width + shape.heads * shape.v_dim) * tokens
        seconds += wire.swap_s(size, layout.cp, layout.tp)
    return seconds


def _shard_s(wire: Wire, shape: Shape, layout: Layout, *, dense: bool, number: float) -> float:
    """Gather (or scatter) one layer's weights over the ranks that share them, `number` bytes each."""
    ffn = shape.dense_ffn_params if dense else shape.local_params - shape.attention_params
    seconds = wire.gather_s(number * shape.attention_params / layout.tp, layout.dp_shard * layout.cp, layout.tp)
    seconds += wire.gather_s(number * ffn, layout.fsdp, 1)
    if not dense:
        own = number * shape.experts * shape.expert_params / layout.ep
        seconds += wire.gather_s(own, layout.efsdp, layout.ep)
    return seconds


def dealt_layers(layers: int, setup: Setup) -> list[int]:
    """Layers of each part of the pipeline, in the trunk's order; rank r holds the parts r, r + pp, ..."""
    parts = setup.layout.pp * setup.virtual
    if setup.dealing == "even":
        return [len(r) for r in stage_layers(layers, parts)]
    size = ceil(layers / parts)
    return [max(min(size, layers - size * i), 0) for i in range(parts)]


def _slowest_stage(shape: Shape, setup: Setup, dense: float, moe: float, last: float) -> float:
    """Seconds of the slowest rank for one microbatch; the trunk's first layers are the dense ones."""
    pp, cost, at = setup.layout.pp, [0.0] * setup.layout.pp, 0
    for part, layers in enumerate(dealt_layers(shape.layers, setup)):
        few = min(max(shape.dense_layers - at, 0), layers)
        cost[part % pp] += few * dense + (layers - few) * moe
        at += layers
    cost[-1] += last
    return max(cost)


def microbatches_of(setup: Setup, batch: Training) -> int:
    """Microbatches of a step on one data-parallel rank; 1F1B takes a multiple of its stages."""
    wanted = batch.batch_tokens / (setup.layout.data_ranks * batch.microbatch_tokens)
    unit = setup.layout.pp if setup.schedule == "1f1b" else 1
    return max(unit, round(wanted / unit) * unit)


def _bubble(setup: Setup) -> float:
    """The pipeline's bubble in stage passes: (pp - 1) / virtual for 1F1B (Narayanan et al. 2021, arXiv 2104.04473);
    (pp / 2 - 1)(F&B + B - 3W) for DualPipe with F : B : W = 1 : 2 : 1 (arXiv 2412.19437)."""
    pp = setup.layout.pp
    return (pp / 2 - 1) * 2 / 3 if setup.schedule == "dualpipe" and pp > 1 else (pp - 1) / setup.virtual


def _once(shape: Shape, setup: Setup, gpu: Gpu, assumed: Assumptions, step: float) -> float:
    """What happens once a step: reductions that hide behind it, then the optimiser."""
    layout, wire = setup.layout, Wire(gpu, assumed.links)
    own = shape.total / layout.pp / layout.fsdp
    seconds = 2 * wire.gather_s(FP32 * own, layout.dp_replicate, layout.fsdp)
    if setup.sharding == "optimiser" or setup.gather != "pass":
        numbers = (FP32,) if setup.gather == "microbatch" and setup.sharding == "weights" else (BF16, FP32)
        dense, moe = (sum(_shard_s(wire, shape, layout, dense=d, number=n) for n in numbers) for d in (True, False))
        seconds += (shape.dense_layers * dense + (shape.moe_layers + shape.mtp_layers) * moe) / layout.pp
    kept = own * (8 + assumed.training.optimiser_bytes + assumed.training.ema_bytes)
    update = STATE_PASSES * kept / (1e12 * gpu.hbm_tbs * assumed.kernels.memory)
    return exposed(seconds, step, assumed.links.hide_shards) + update
