"""One training step, the same for one process and for many."""

from __future__ import annotations

import torch
from torch import Tensor

from hagane.engine.config import learning_rate
from hagane.engine.engine import Engine
from hagane.engine.inputs import train_samples
from hagane.engine.loads import moe_layers
from hagane.engine.parallel import is_sharded
from hagane.engine.ranks import part_slice, share, sum_over
from hagane.engine.stages import as_tensor
from hagane.model import TrainSample, loss_counts
from hagane.terms import Batch, TrainingError


def total_loss(sums: Tensor, counts: Tensor, next_weight: float) -> Tensor:
    """Mean over parts of (action + weight * next), each sum [parts, 2] divided by its global count [parts, 2]."""
    means = sums / counts.clamp_min(1).to(sums.dtype)
    return (means[:, 0] + next_weight * means[:, 1]).sum() / len(sums)


def train_step(engine: Engine, batch: Batch) -> dict[str, float]:
    """One optimiser step on one batch (all ranks call it with the same batch, or each with its share).

    Returns:
        loss, loss/<embodiment>, next/<embodiment>, gradient norm and learning rate.

    Raises:
        TrainingError: the loss or the gradient is not finite; the weights are as before.
    """
    engine.model.train()
    micros = microbatches(engine, batch)
    counts = global_counts(engine, micros)
    engine.drop_gradients()
    figures = backward(engine, micros, counts)
    grads = sum_gradients(engine)
    norm = gradient_norm(engine, grads)
    sum_over([figures])
    stage = engine.mesh.group("stage") if engine.mesh.stage else None
    sum_over([m.load_GE for m in moe_layers(engine.model)], stage)
    if not bool(torch.isfinite(norm)) or not bool(torch.isfinite(figures).all()):
        raise TrainingError(
            f"the loss is not finite at step {engine.step}",
            next_step="lower lr, or look at this batch's data sets with `hagane catalog show`",
        )
    rate = update(engine, grads, norm)
    means = figures / counts.clamp_min(1)
    result = {"loss": 0.0, "gradient_norm": float(norm), "lr": rate}
    for part, (action, following) in zip(batch.parts, means.tolist(), strict=True):
        result[f"loss/{part.observation.embodiment}"] = action
        result[f"next/{part.observation.embodiment}"] = following
        result["loss"] += action / len(batch.parts)
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
    sum_over([counts], engine.mesh.group("stage") if engine.mesh.stage else None)
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
def update(engine: Engine, grads: list[Tensor], norm: Tensor) -> float:
    """Clip, step the optimiser and the averages; returns the learning rate."""
    torch._foreach_mul_(grads, (engine.config.clip / (norm + 1e-6)).clamp_max(1.0).float())
    rate = learning_rate(engine.config, engine.step)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    engine.optimizer.step()
    # early on averages follow faster, so that they are not the random start
    decay = min(engine.config.ema, (1 + engine.step) / (10 + engine.step))
    torch._foreach_lerp_(list(engine.ema.values()), list(engine.local.values()), 1 - decay)
    engine.step += 1
    return rate


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
    sum_over([figures])
    means = (figures / counts.clamp_min(1)).tolist()
    return {p.observation.embodiment: action for p, (action, _) in zip(batch.parts, means, strict=True)}
