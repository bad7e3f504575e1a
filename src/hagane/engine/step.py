"""One training step, the same for one process and for many."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from hagane.engine.config import learning_rate
from hagane.engine.engine import Engine
from hagane.engine.inputs import train_samples
from hagane.engine.limits import Limits
from hagane.engine.loads import forget_loads, moe_layers
from hagane.engine.parallel import is_sharded
from hagane.engine.ranks import part_slice, share, sum_over
from hagane.engine.stages import as_tensor
from hagane.model import TrainSample, loss_counts
from hagane.terms import Batch, TrainingError


def total_loss(sums: Tensor, counts: Tensor, next_weight: float) -> Tensor:
    """Mean over parts of (action + weight * next), each sum [parts, 2] divided by its global count [parts, 2]."""
    means = sums / counts.clamp_min(1).to(sums.dtype)
    return (means[:, 0] + next_weight * means[:, 1]).sum() / len(sums)


def train_step(engine: Engine, batch: Batch, limits: Limits | None = None, *, stop: bool = False) -> dict[str, float]:
    """One optimiser step on one batch (all ranks call it with the same batch, or each with its share).

    Where the loss or the gradient norm is beyond the limits, or not finite, the step is not taken: weights, moments,
    averages and expert loads are as before, and so is `engine.step`.

    Args:
        engine: this rank's.
        batch: to learn from.
        limits: the same on all ranks; None makes what is not finite an error.
        stop: whether this rank was asked to stop; it travels with the losses, so that all ranks know at this step.

    Returns:
        loss, loss/<embodiment>, next/<embodiment>, gradient norm, learning rate; taken: whether the step was (1, 0);
        stop: ranks that were asked to.

    Raises:
        TrainingError: without limits, the loss or the gradient is not finite.
    """
    engine.model.train()
    micros = microbatches(engine, batch)
    counts = global_counts(engine, micros)
    engine.drop_gradients()
    figures = backward(engine, micros, counts)
    grads = sum_gradients(engine)
    norm = gradient_norm(engine, grads)
    asked = figures.new_tensor(float(stop))
    sum_over([figures, asked])
    sum_over([m.load_GE for m in moe_layers(engine.model)], engine.mesh.peers)
    means = figures / counts.clamp_min(1)
    rate = learning_rate(engine.config, engine.step)
    result = {"loss": 0.0, "gradient_norm": float(norm), "lr": rate, "stop": float(asked)}
    for part, (action, following) in zip(batch.parts, means.tolist(), strict=True):
        result[f"loss/{part.observation.embodiment}"] = action
        result[f"next/{part.observation.embodiment}"] = following
        result["loss"] += action / len(batch.parts)
    finite = bool(torch.isfinite(figures).all())
    result["taken"] = float(finite and (limits or Limits()).hold(result["loss"], float(norm)))
    if result["taken"]:
        update(engine, grads, norm, rate)
        return result
    forget_loads(engine.model)
    if limits is None:
        raise TrainingError(
            f"the loss is not finite at step {engine.step}",
            next_step="lower lr, or look at this batch's data sets with `hagane catalog show`",
        )
    return result


def microbatches(engine: Engine, batch: Batch) -> list[list[TrainSample]]:
    """This rank's samples in the parts that they are worked off in."""
    layout, config = engine.mesh.layout, engine.config
    mine = share(batch, engine.mesh.data_rank, layout.data_ranks)
    n = engine.compute.parts(layout)
    pieces = [Batch(mine.step, tuple(part_slice(p, slice(i, None, n)) for p in mine.parts)) for i in range(n)]
    return [train_samples(engine.model, piece, engine.seed, config.mask_rate) for piece in pieces]


def global_counts(engine: Engine, micros: list[list[TrainSample]]) -> Tensor:
    """[parts, 2] numbers in each loss over all ranks: known before the forward, so that every loss is divided once."""
    counts = torch.stack([loss_counts(m) for m in micros]).sum(0)
    sum_over([counts], engine.mesh.peers)
    # ranks of cp and tp counted the same samples
    return counts / (engine.mesh.layout.cp * engine.mesh.layout.tp)


def backward(engine: Engine, micros: list[list[TrainSample]], counts: Tensor) -> Tensor:
    """Forward and backward of all microbatches; this rank's loss sums [parts, 2]."""
    pick, weight = own_samples(engine), engine.config.next_weight
    if engine.pipeline is not None:
        found = engine.pipeline.backward(micros, pick, lambda sums: total_loss(sums, counts, weight))
        return torch.stack(found).double().sum(0) if found else torch.zeros_like(counts)
    figures = torch.zeros_like(counts)
    for samples in micros:
        sums = as_tensor(engine.model(samples, pick))
        total_loss(sums, counts, weight).backward()
        figures += sums.detach()
    return figures


def own_samples(engine: Engine) -> slice:
    """Of the samples that ranks of cp and tp have in common, those whose losses are this rank's."""
    mesh, layout = engine.mesh, engine.mesh.layout
    return slice(mesh.at("cp") * layout.tp + mesh.at("tp"), None, layout.cp * layout.tp)


def sum_gradients(engine: Engine) -> list[Tensor]:
    """Local gradients of the whole batch; FSDP has added them up already, copies have not."""
    grads = engine.take_gradients()
    if engine.mesh.layout.dp_replicate > 1 and not is_sharded(engine.mesh, engine.config.precision):
        sum_over(grads, engine.mesh.group("dp_replicate"))
    return grads


def gradient_norm(engine: Engine, grads: list[Tensor]) -> Tensor:
    """Norm of the whole gradient: every number of the model lives on `dp_replicate` ranks."""
    square = torch.stack(torch._foreach_norm(grads)).double().square().sum()
    sum_over([square])
    return (square / engine.mesh.layout.dp_replicate).sqrt()


@torch.no_grad()
def update(engine: Engine, grads: list[Tensor], norm: Tensor, rate: float) -> None:
    """Clip, step the optimiser at a learning rate, and the averages."""
    torch._foreach_mul_(grads, (engine.config.clip / (norm + 1e-6)).clamp_max(1.0).float())
    engine.optimizer.step(rate)
    # early on averages follow faster, so that they are not the random start
    decay = min(engine.config.ema, (1 + engine.step) / (10 + engine.step))
    torch._foreach_lerp_(list(engine.ema.values()), list(engine.local.values()), 1 - decay)
    engine.step += 1


@torch.no_grad()
def evaluate_loss(engine: Engine, batch: Batch) -> dict[str, float]:
    """Action loss by embodiment on a batch that training never sees; all ranks call it."""
    engine.model.eval()
    mine = share(batch, engine.mesh.data_rank, engine.mesh.layout.data_ranks)
    samples = train_samples(engine.model, mine, engine.seed, 0.0)
    counts = global_counts(engine, [samples])
    if engine.pipeline is None:
        found: Tensor | None = as_tensor(engine.model(samples, own_samples(engine)))
    else:
        found = engine.pipeline.forward(samples, own_samples(engine))
    figures = torch.zeros_like(counts) if found is None else found.double()
    # without a backward FSDP leaves weights whole, made where no gradient is kept: the next step's would be wrong
    for module in engine.model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    sum_over([figures])
    means = (figures / counts.clamp_min(1)).tolist()
    return {p.observation.embodiment: action for p, (action, _) in zip(batch.parts, means, strict=True)}
