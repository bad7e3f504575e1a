"""Pipeline parallelism: microbatches travel through the stages by torch's schedules (1F1B or interleaved 1F1B).

Microbatches need not have equal numbers of tokens: what travels is padded to the largest, and each stage, which has
the same batch, knows how many rows are real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle

from hagane.engine.mesh import Mesh
from hagane.engine.stages import Stage, Work
from hagane.model import TrainSample

ROUND = 64
"""Rows of what travels are rounded up to this, so that a mixture that varies a little keeps its buffers."""

Schedule = PipelineScheduleSingle | PipelineScheduleMulti


@dataclass(eq=False)
class Pipeline:
    """The stages of one rank, and the schedule that runs them."""

    stages: list[Stage]
    """This rank's, in order."""
    mesh: Mesh
    """Ranks."""
    device: torch.device
    """Where tokens travel from and to."""
    dtype: torch.dtype
    """Of the tokens that travel."""
    work: Work
    """What the stages look up."""
    schedule: Schedule | None = field(default=None, init=False)
    """Made for `micros` microbatches of `work.rows` rows."""
    micros: int = field(default=0, init=False)
    """Microbatches that the schedule was made for."""
    loss: Callable[[Tensor], Tensor] = field(init=False)
    """Of the last stage's loss sums, for the step that runs."""
    sums: list[Tensor] = field(default_factory=list, init=False)
    """The last stage's loss sums of each microbatch."""

    @property
    def count(self) -> int:
        """Stages over all ranks."""
        return len(self.stages) * self.mesh.layout.pp

    def load(self, micros: list[list[TrainSample]], pick: slice) -> int:
        """Lay out the microbatches that run next; the rows of this rank's largest."""
        model = self.stages[0].model
        self.work.micros, self.work.pick = micros, pick
        self.work.packed = [model.packed([t.sample for t in m]) for m in micros]
        for stage in self.stages:
            stage.at = 0
        return max(len(self.stages[0].shares.mine(p.gate_M)) for p in self.work.packed)

    def backward(self, micros: list[list[TrainSample]], pick: slice, loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Forward and backward of all microbatches.

        Args:
            micros: microbatches, the same on all ranks of the pipeline.
            pick: samples whose losses are this rank's.
            loss: of the last stage's [parts, 2] loss sums.

        Returns:
            Loss sums of each microbatch on the last stage, nothing elsewhere.
        """
        rows = self.load(micros, pick)
        if self.schedule is None or rows > self.work.rows or len(micros) != self.micros:
            self.work.rows, self.micros = -(-rows // ROUND) * ROUND, len(micros)
            self.schedule = self.make(loss_of(self))
        self.loss, self.sums = loss, []
        start = (torch.zeros(len(micros), device=self.device),) if self.stages[0].is_first else ()
        target = torch.zeros(len(micros), device=self.device) if self.stages[-1].is_last else None
        self.schedule.step(*start, target=target, return_outputs=False)
        return self.sums

    def make(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Schedule:
        """A schedule over this rank's stages; losses are sums, so gradients are not scaled."""
        model, group = self.stages[0].model, self.mesh.group("pp")
        parts = len(self.work.micros[0])
        travels = torch.empty(
            self.work.rows, model.config.widths.d_model, dtype=self.dtype, device="meta", requires_grad=True
        )
        stages = []
        for stage in self.stages:
            entry = torch.empty(1, device="meta") if stage.is_first else travels
            leave = torch.empty(parts, 2, device="meta", requires_grad=True) if stage.is_last else travels
            made = UnderWay(
                stage, stage.index, self.count, self.device, input_args=entry, output_args=leave, group=group
            )
            stages.append(made)
        if len(stages) == 1:
            return Schedule1F1B(stages[0], self.micros, loss_fn=loss, scale_grads=False)
        return ScheduleInterleaved1F1B(stages, self.micros, loss_fn=loss, scale_grads=False)  # type: ignore[arg-type]

    @torch.no_grad()
    def forward(self, samples: list[TrainSample], pick: slice) -> Tensor | None:
        """Loss sums [parts, 2] of one batch on the last stage, None elsewhere: stage after stage, no schedule."""
        kept, self.work.rows = self.work.rows, self.load([samples], pick)
        width, group = self.stages[0].model.config.widths.d_model, self.mesh.group("pp")
        x = torch.empty(self.work.rows, width, dtype=self.dtype, device=self.device)
        out = None
        for index in range(self.count):
            stage = next((s for s in self.stages if s.index == index), None)
            if stage is None:
                continue
            if not stage.is_first:
                dist.recv(x, group=group, group_src=(index - 1) % self.mesh.layout.pp)
            out = stage(x)
            if not stage.is_last:
                dist.send(out.contiguous(), group=group, group_dst=(index + 1) % self.mesh.layout.pp)
                out = None
        self.work.rows = kept
        return out


class UnderWay(PipelineStage):
    """torch's stage, but with places to receive in only for the microbatches under way.

    Its own has one for every microbatch of the step, there and back: a step of 200 at 4096 x 7168 takes 22 GiB.
    """

    def _setup_forward_recv_info(self, *args: Any) -> None:
        super()._setup_forward_recv_info(*args)
        for infos in self.args_recv_info.values():
            let_go(infos)

    def _setup_backward_recv_info(self, *args: Any) -> None:
        super()._setup_backward_recv_info(*args)
        for infos in self.grad_recv_info.values():
            let_go(infos)

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Make the place, then torch's own."""
        make_room(self.args_recv_info[fwd_chunk_id])
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Make the place, then torch's own."""
        make_room(self.grad_recv_info[bwd_chunk_id])
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> None:
        """torch's own, after which nobody looks at what was received."""
        super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)
        if (loss := kwargs.get("loss")) is not None:
            # the schedule keeps losses, whose graphs would keep what was received
            loss.detach_()
        let_go((*self.args_recv_info[bwd_chunk_id], *self.grad_recv_info[bwd_chunk_id]))


def let_go(infos: Iterable[Any]) -> None:
    """Keep the shape and type of what is received, and no memory for it."""
    for info in infos:
        if info.buffer is not None:
            info.buffer = info.buffer.new_empty((1,) * info.buffer.ndim).expand(info.buffer.shape)


def make_room(infos: Iterable[Any]) -> None:
    """Memory for what is received next."""
    for info in infos:
        if info.buffer is not None and not info.buffer.is_contiguous():
            info.buffer = info.buffer.new_empty(info.buffer.shape)


def loss_of(pipeline: Pipeline) -> Callable[[Tensor, Tensor], Tensor]:
    """The schedule's loss function: notes the sums, and asks the step for their loss."""

    def loss(sums: Tensor, target: Tensor) -> Tensor:
        pipeline.sums.append(sums.detach())
        return pipeline.loss(sums)

    return loss
