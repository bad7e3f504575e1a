"""Layout: how many ranks along each axis of the mesh, and what of it a model allows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from hagane.model import Size
from hagane.terms import ConfigError

NEAREST = 3
"""Layouts that a refusal names."""


@dataclass(frozen=True)
class Layout:
    """Ranks along each axis. Mesh order, outermost first: pp, dp_replicate, dp_shard, cp, tp.

    The same ranks seen as experts: pp, dp_replicate, efsdp, ep, where efsdp * ep = dp_shard * cp * tp.

    Raises:
        ConfigError: an axis below 1, or an ep that does not divide dp_shard * cp * tp.
    """

    pp: int = 1
    """Pipeline: parts of the trunk's layers."""
    dp_replicate: int = 1
    """Whole copies of the weights (each sharded over the axes below), each with its share of the samples."""
    dp_shard: int = 1
    """Ranks that share one copy of the weights, each with its share of the samples (FSDP)."""
    cp: int = 1
    """Sequence: ranks that share the tokens of the same samples (Ulysses)."""
    tp: int = 1
    """Tensor: ranks that share the heads of the same tokens."""
    ep: int = 1
    """Experts: groups of ranks within dp_shard * cp * tp that share the routed experts."""

    def __post_init__(self) -> None:
        if min(self.pp, self.dp_replicate, self.dp_shard, self.cp, self.tp, self.ep) < 1:
            raise ConfigError(f"every axis of a layout is at least 1: {self}")
        if self.fsdp % self.ep:
            near = sorted((e for e in range(1, self.fsdp + 1) if self.fsdp % e == 0), key=lambda e: abs(e - self.ep))
            raise ConfigError(
                f"ep = {self.ep} does not divide dp_shard * cp * tp = {self.fsdp}",
                next_step=f"use ep = {' or '.join(map(str, near[:NEAREST]))}",
            )

    @property
    def ranks(self) -> int:
        """Ranks in all."""
        return self.pp * self.dp_replicate * self.fsdp

    @property
    def fsdp(self) -> int:
        """Ranks that share one copy of a stage's weights: dp_shard * cp * tp."""
        return self.dp_shard * self.cp * self.tp

    @property
    def efsdp(self) -> int:
        """Ranks that share one expert's weights."""
        return self.fsdp // self.ep

    @property
    def data_ranks(self) -> int:
        """Shares that a batch is dealt in."""
        return self.dp_replicate * self.dp_shard

    def __str__(self) -> str:
        axes = {k: v for k, v in vars(self).items() if v > 1}
        return ", ".join(f"{k} = {v}" for k, v in axes.items()) or "one rank"


@dataclass(frozen=True)
class Compute:
    """How a step is carried out: never what it computes. It may differ from one start of a run to the next."""

    microbatches: int = 0
    """Parts that a rank's samples are worked off in; 0 takes one, or twice the pipeline's stages."""
    schedule: Literal["1f1b", "interleaved"] = "1f1b"
    """Order of a pipeline's forwards and backwards; interleaved gives every rank two stages."""
    recompute: bool = False
    """Compute trunk layers again in the backward instead of keeping their activations."""
    regather: bool = False
    """In a pipeline, gather a stage's sharded weights for every microbatch instead of keeping them for the step."""
    compile: bool = False
    """Compile attention, experts' activations and tower layers with torch.compile."""

    def parts(self, layout: Layout) -> int:
        """Microbatches that a rank's samples are worked off in."""
        return self.microbatches or (2 * layout.pp if layout.pp > 1 else 1)

    def stages(self, layout: Layout) -> int:
        """Stages of the pipeline, over all ranks."""
        return layout.pp * (2 if self.schedule == "interleaved" and layout.pp > 1 else 1)


def check_layout(layout: Layout, compute: Compute, size: Size, world: int | None = None) -> None:
    """Compare a layout with a model's widths and with the processes that run.

    Args:
        layout: to check.
        compute: how a step is carried out on it.
        size: widths of the model.
        world: processes that run; None does not compare.

    Raises:
        ConfigError: the product is not the number of processes, or an axis does not divide what it shares; the
            message names the nearest layouts that work.
    """
    if world is not None and layout.ranks != world:
        near = " or ".join(f"({n})" for n in nearest(layout, size, world))
        raise ConfigError(
            f"the layout ({layout}) needs {layout.ranks} ranks, {world} are running",
            next_step=f"start {layout.ranks} ranks (--nproc or torchrun), or use {near or 'another size'}",
        )
    if odd := misfit(layout, size):
        near = " or ".join(f"({n})" for n in nearest(layout, size, layout.ranks))
        raise ConfigError(odd, where=f"layout ({layout})", next_step=f"use {near or 'fewer ranks or a larger size'}")
    if compute.stages(layout) > size.layers:
        raise ConfigError(
            f"{compute.stages(layout)} stages for {size.layers} layers",
            next_step='use schedule = "1f1b" or a smaller pp',
        )
    if layout.pp > 1 and (compute.parts(layout) < layout.pp or compute.parts(layout) % layout.pp):
        raise ConfigError(
            f"microbatches = {compute.parts(layout)} is no multiple of pp = {layout.pp}: stages would idle",
            next_step=f"use {2 * layout.pp} or more, in steps of {layout.pp}; or 0",
        )


def misfit(layout: Layout, size: Size) -> str:
    """What of a layout does not divide a model's widths; empty when all does."""
    heads = layout.cp * layout.tp
    if size.heads % heads or size.kv_heads % heads:
        return f"cp * tp = {heads} does not divide {size.heads} heads and {size.kv_heads} key-value heads"
    if size.experts % layout.ep:
        return f"ep = {layout.ep} does not divide {size.experts} experts"
    if layout.pp > size.layers:
        return f"pp = {layout.pp} is more than {size.layers} layers"
    if layout.tp > 1 and size.d_model % (layout.dp_shard * layout.cp):
        # heads are cut by tp, the other dimension by FSDP; both on one dimension would need another order on disk
        return f"dp_shard * cp = {layout.dp_shard * layout.cp} does not divide the width {size.d_model} beside tp"
    # a dimension other than the first is cut evenly only
    if layout.efsdp > 1 and (size.d_model % layout.efsdp or size.expert_ffn % layout.efsdp):
        return f"efsdp = {layout.efsdp} does not divide the experts' widths {size.d_model} and {size.expert_ffn}"
    return ""


def nearest(layout: Layout, size: Size, ranks: int) -> list[Layout]:
    """Layouts of that many ranks that fit the size, nearest first: least change of the axes, in octaves."""
    found = []
    for pp, cp, tp in product(divisors(ranks), divisors(size.kv_heads), divisors(size.kv_heads)):
        if ranks % (pp * cp * tp):
            continue
        data = ranks // (pp * cp * tp)
        for shard in divisors(data):
            for ep in divisors(shard * cp * tp):
                near = replace(layout, pp=pp, dp_replicate=data // shard, dp_shard=shard, cp=cp, tp=tp, ep=ep)
                if not misfit(near, size):
                    found.append((distance(layout, near), near))
    return [near for _, near in sorted(found, key=lambda pair: (pair[0], str(pair[1])))[:NEAREST]]


def distance(a: Layout, b: Layout) -> float:
    """How far two layouts are apart: axes that differ, and by what factor."""
    total = 0.0
    for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
        total += max(x, y) / min(x, y) - 1
    return total


def divisors(n: int) -> list[int]:
    """Divisors of n in order."""
    return [d for d in range(1, n + 1) if n % d == 0]
