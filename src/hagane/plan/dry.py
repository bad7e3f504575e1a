"""Dry run: one rank's real step, with the real parallel code, on fake tensors among fake ranks.

The model is cut on the meta device to what the rank holds; its memory and everything the step makes are fake. One
step tells three meters of every operator: bytes of storages by kind, operations, bytes of collectives by axis. Not in
it: the allocator's fragments, kernels' workspaces, NCCL's own buffers.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule

from hagane.engine.config import StepConfig
from hagane.engine.engine import Engine, cut_model, give_memory
from hagane.engine.layout import Compute, Layout, check_layout
from hagane.engine.mesh import Mesh
from hagane.engine.parallel import held_stages
from hagane.engine.stages import stage_layers
from hagane.engine.step import train_step
from hagane.model import ModelConfig
from hagane.plan.collectives import Flow, Traffic
from hagane.plan.consortium import Reading, deal
from hagane.plan.fake import Fake, fake_ranks
from hagane.plan.flops import FlopMeter
from hagane.plan.meter import Kind, Meter, Peak
from hagane.plan.routing import Routing, plan_routing, rank_tokens
from hagane.plan.synthetic import synthetic_batch
from hagane.plan.watch import Watch
from hagane.plan.work import Share, Work, step_work
from hagane.terms import Batch

ALLOCATOR = 512
"""CUDA's caching allocator hands out multiples of this."""


@dataclass(frozen=True)
class Question:
    """What a dry run is asked."""

    config: ModelConfig
    """The model."""
    layout: Layout
    """Ranks along each axis."""
    compute: Compute = field(default_factory=lambda: Compute(recompute=True))
    """How the step is carried out."""
    step: StepConfig = field(default_factory=lambda: StepConfig(precision="bf16", mask_rate=0.0))
    """Optimiser and precision. Which channels are hidden changes no size, so none is."""
    tokens: int = 4096
    """Tokens of one microbatch on one data rank, about: whole samples are dealt."""
    imbalance: float = 1.2
    """What the busiest rank's experts receive, over what the owners' gates alone would send them."""

    def __post_init__(self) -> None:
        check_layout(self.layout, self.compute, self.config.widths)


@dataclass(frozen=True)
class RankReport:
    """What one rank of a step holds, computes and sends."""

    rank: int
    """Rank."""
    layers: tuple[int, ...]
    """Trunk layers that it holds."""
    static: Mapping[Kind, int]
    """Bytes between two steps, by kind."""
    peak: Peak
    """The fullest moment."""
    tokens: int
    """Tokens of one microbatch of its data rank."""
    microbatches: int
    """Microbatches of the step."""
    flops: Mapping[str, int]
    """Operations counted, by group of operators."""
    expected: Mapping[str, int]
    """The same in closed form."""
    parts: Mapping[str, tuple[int, int, int]]
    """Closed form by part of the model: forward, backward, recompute."""
    flows: Mapping[tuple[str, str], Flow]
    """Traffic by (axis, collective)."""
    received: int
    """Rows that reach its experts in one layer of one microbatch."""
    spread: tuple[float, float]
    """Least and most that a rank of its expert group receives, over the mean, by the owners' gates alone."""
    seconds: float
    """CPU seconds that the dry run took."""
    resident: int
    """Bytes that this process held at most."""

    @property
    def ratio(self) -> float:
        """Operations counted over the closed form."""
        return sum(self.flops.values()) / sum(self.expected.values())


def dry_run(question: Question, rank: int) -> RankReport:
    """One rank of the step.

    Raises:
        ConfigError: the layout does not fit the model, or this process has real ranks beside it.
    """
    began = time.process_time()
    reading = deal(question.config, question.layout.data_ranks, question.tokens)
    routing = rank_routing(question, reading, rank)
    splits, device = routing.planned(rank % question.layout.ep), torch.device("cpu")
    with fake_ranks(rank, question.layout.ranks):
        # the mesh is real arithmetic on rank numbers, so the model is cut before tensors become fake
        cut = cut_model(question.config, question.step, question.layout, question.compute, device.type, splits)
        with Fake():
            engine = give_memory(cut, question.step, 0, question.compute, device)
            return _one_step(question, reading, routing, engine, began)


def _one_step(question: Question, reading: Reading, routing: Routing, engine: Engine, began: float) -> RankReport:
    batch = rank_batch(question, reading, engine.mesh)
    flops, meter, traffic = FlopMeter(), Meter(ALLOCATOR), Traffic(axes_of(engine.mesh))
    name_static(meter, engine)
    name_gathered_gradients(meter, engine)
    static = meter.alive()
    with Watch(meter, flops, traffic):
        told = train_step(engine, batch)
    assert told["taken"], "a step that is not taken has no optimiser in it"
    meter.name(gradients(engine), "gradients")
    peak = meter.peak()
    work = rank_work(question, reading, routing, engine.mesh)
    layers = tuple(int(name) for name in engine.model.trunk.layers)
    return RankReport(
        rank=engine.mesh.rank,
        layers=layers,
        static=static,
        peak=peak,
        tokens=reading.tokens[engine.mesh.data_rank],
        microbatches=question.compute.parts(question.layout),
        flops=flops.by_group(),
        expected=work.by_group(),
        parts={part: (row[0], row[1], row[2]) for part, row in work.parts.items()},
        flows=traffic.flows,
        received=received_rows(routing, question.layout, engine.mesh.rank),
        spread=routing.spread(),
        seconds=time.process_time() - began,
        resident=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def rank_routing(question: Question, reading: Reading, rank: int) -> Routing:
    """The planned routing of a rank's expert group."""
    group = rank % (question.layout.dp_replicate * question.layout.fsdp) // question.layout.ep
    return plan_routing(question.config, question.layout, reading, group, question.imbalance)


def received_rows(routing: Routing, layout: Layout, rank: int) -> int:
    """Rows that reach a rank's experts in one layer: all of its own where experts are not shared out."""
    return sum(routing.planned(rank % layout.ep).received) if layout.ep > 1 else round(float(routing.rows_RRX.sum()))


def fullest_rank(question: Question, pp: int) -> int:
    """Of a pipeline stage's first expert group, the rank with the most tokens of its own and of others."""
    layout = question.layout
    reading = deal(question.config, layout.data_ranks, question.tokens)
    received = plan_routing(question.config, layout, reading, 0, 1.0).received_R
    own = [sum(rank_tokens(question.config, layout, reading, r)) for r in range(layout.ep)]
    score = received / received.mean() + np.array(own) / np.mean(own)
    return pp * layout.dp_replicate * layout.fsdp + int(score.argmax())


def rank_batch(question: Question, reading: Reading, mesh: Mesh, seed: int | None = None) -> Batch:
    """What the rank reads in a step: so many microbatches of the same samples; all values 0 without a seed."""
    parts = question.compute.parts(question.layout)
    # a part without samples holds and computes nothing
    counts = {row: n * parts for row, n in reading.samples[mesh.data_rank].items() if n}
    return synthetic_batch(question.config, counts, rank=mesh.data_rank, ranks=question.layout.data_ranks, seed=seed)


def name_static(meter: Meter, engine: Engine) -> None:
    """Tell a meter what stays between steps."""
    meter.name([*engine.model.parameters(), *engine.model.buffers()], "weights")
    meter.name(engine.ema.values(), "averages")
    meter.name((t for kind in engine.optimizer.moments().values() for t in kind.values()), "optimiser")


def name_gathered_gradients(meter: Meter, engine: Engine) -> None:
    """Tell a meter of whole gradients as FSDP2 gets them: they live until a group's are reduced and scattered."""
    for module in engine.model.modules():
        if isinstance(module, FSDPModule) and (group := module._get_fsdp_state()._fsdp_param_group):
            named = partial(_named_post_backward, meter, group.fsdp_params, group.post_backward)
            group.post_backward = named  # type: ignore[method-assign]


def _named_post_backward(meter: Meter, params: list[Any], post_backward: Callable[..., None], *unused: Any) -> None:
    for p in params:
        whole = getattr(p, "_unsharded_param", None)
        meter.name([None if whole is None else whole.grad, p.unsharded_accumulated_grad], "gradients")
    post_backward(*unused)
    meter.name((p.unsharded_accumulated_grad for p in params), "gradients")


def gradients(engine: Engine) -> Iterable[Tensor | None]:
    """Gradients that the step left."""
    yield from (p.grad for p in engine.model.parameters())
    yield from (t.grad for t in engine.local.values())


def axes_of(mesh: Mesh) -> dict[str, tuple[str, ...]]:
    """Axes by name of process group, for all the ways that a mesh is factored."""
    axes: dict[str, tuple[str, ...]] = {}
    for view in ("tokens", "dense", "attention", "experts", "stage"):
        factored: DeviceMesh | None = getattr(mesh, view)
        for axis in factored.mesh_dim_names or () if factored is not None else ():
            assert factored is not None
            name = factored.get_group(axis).group_name
            # views share their outer axes
            axes[name] = tuple(dict.fromkeys((*axes.get(name, ()), axis)))
    world = torch.distributed.group.WORLD
    if world is not None:
        axes[world.group_name] = (*axes.get(world.group_name, ()), "world")
    return axes


def rank_work(question: Question, reading: Reading, routing: Routing, mesh: Mesh) -> Work:
    """The closed form of what the rank computes in a step."""
    layout, compute = question.layout, question.compute
    stages = compute.stages(layout)
    held = held_stages(mesh, compute)
    layers = stage_layers(question.config.widths.layers, stages)
    share = Share(
        layers=sum(len(layers[s]) for s in held),
        first=0 in held,
        last=stages - 1 in held,
        tp=layout.tp,
        cp=layout.cp,
        at=mesh.rank % (layout.cp * layout.tp),
        received=received_rows(routing, layout, mesh.rank),
        recompute=compute.recompute,
    )
    return step_work(question.config, reading.samples[mesh.data_rank], share).times(compute.parts(layout))
