"""Goodput: the share of the calendar that becomes training, with failures and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, expm1, sqrt

from hagane.plan.rates import Faults


@dataclass(frozen=True)
class Goodput:
    """What failures and checkpoints cost."""

    mtbf_s: float
    """Mean time between interruptions of the whole machine, seconds."""
    every_s: float
    """Seconds of training between two checkpoints."""
    share: float
    """Training time over calendar time."""
    checkpoints: float
    """Share of the calendar spent on checkpoints."""
    faults: float
    """Share lost to interruptions: work done again, and restarts."""
    other: float
    """Share lost otherwise."""

    def interruptions(self, days: float) -> float:
        """Interruptions to expect in so many days."""
        return 86_400 * days / self.mtbf_s


def estimate_goodput(gpus: int, faults: Faults) -> Goodput:
    """Expected goodput at the best checkpoint interval.

    Interruptions come at random, one GPU's share of them every `mtbf_gpu_hours`. The interval is Young's,
    sqrt(2 x stall x MTBF) (CACM 17(9), 1974), less the stall (Daly, FGCS 22(3), 2006, first order); the expected time
    is Daly's exact one for exponential failures, MTBF exp(restart / MTBF) (exp((every + stall) / MTBF) - 1) an
    interval.
    """
    mtbf, stall = 3600 * faults.mtbf_gpu_hours / gpus, faults.checkpoint_stall_s
    every = max(sqrt(2 * stall * mtbf) - stall, stall)
    # beyond a few hundred MTBFs nothing is ever finished; exp would only overflow
    if (every + stall + faults.restart_s) / mtbf > 300:
        return Goodput(mtbf, every, 0.0, 0.0, 1.0 - faults.other_loss, faults.other_loss)
    expected = mtbf * exp(faults.restart_s / mtbf) * expm1((every + stall) / mtbf)
    up = 1 - faults.other_loss
    share = up * every / expected
    checkpoints = up * stall / expected
    return Goodput(mtbf, every, share, checkpoints, up - share - checkpoints, faults.other_loss)
