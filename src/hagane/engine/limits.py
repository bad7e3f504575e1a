"""Limits: figures beyond which a step is not taken."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The largest loss and gradient norm that an update is made from; what is not finite is beyond any."""

    loss: float = math.inf
    """Largest loss."""
    gradient_norm: float = math.inf
    """Largest gradient norm, before clipping."""

    def hold(self, loss: float, gradient_norm: float) -> bool:
        """Whether both figures are finite and within; all ranks ask with the same globally summed figures."""
        finite = math.isfinite(loss) and math.isfinite(gradient_norm)
        return finite and loss <= self.loss and gradient_norm <= self.gradient_norm
