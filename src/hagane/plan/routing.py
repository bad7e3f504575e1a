"""Planned routing: how many rows each rank of an expert group sends and receives, where there are no data to count.

Routing is gated by owner: a machine's tokens reach its owner's experts and the consortium's, each evenly (that is what
the balancing bias drives at, gate by gate). So loads are not even over experts: those of the consortium serve every
machine. On top of that comes a stated imbalance, for what balancing leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hagane.engine.experts import striped_rows
from hagane.engine.layout import Layout
from hagane.engine.tokens import shares
from hagane.model import ModelConfig
from hagane.model.generalist import permitted_experts
from hagane.plan.consortium import Reading


@dataclass(frozen=True, eq=False)
class Routing:
    """Rows that travel in one layer of one microbatch within one expert group."""

    rows_RR: NDArray[np.float64]
    """[from rank, to rank] expected rows, gated by owner and even within a gate."""
    imbalance: float
    """Factor on what a rank receives, beyond the gates."""

    @property
    def received_R(self) -> NDArray[np.float64]:
        """[ranks] rows that the gates send to each rank."""
        return self.rows_RR.sum(0)

    @property
    def busiest(self) -> int:
        """The rank that receives most."""
        return int(self.received_R.argmax())

    def spread(self) -> tuple[float, float]:
        """Least and most that a rank receives, over the mean: by the gates alone."""
        received = self.received_R
        return float(received.min() / received.mean()), float(received.max() / received.mean())

    def planned(self, rank: int) -> PlannedSplits:
        """Whole rows for one rank of the group; what it sends adds up to what it has."""
        sent = whole_rows(self.rows_RR[rank], round(float(self.rows_RR[rank].sum())))
        came = self.rows_RR[:, rank] * self.imbalance
        return PlannedSplits(tuple(sent), tuple(whole_rows(came, round(float(came.sum())))))


@dataclass(frozen=True)
class PlannedSplits:
    """Stands in for the counts of real tokens (`hagane.engine.experts.Splits`)."""

    sent: tuple[int, ...]
    """Rows to each rank of the group."""
    received: tuple[int, ...]
    """Rows from each rank of the group."""

    def __call__(self, sent_RE: Tensor, received_RE: Tensor) -> tuple[list[int], list[int]]:
        """The plan; the counts are not looked at."""
        return list(self.sent), list(self.received)


def plan_routing(config: ModelConfig, layout: Layout, reading: Reading, group: int, imbalance: float) -> Routing:
    """Expected rows in one expert group.

    Args:
        config: owners, gates and top-k.
        layout: ranks; an expert group is `ep` ranks side by side.
        reading: each data rank's samples of one microbatch.
        group: which expert group of a pipeline stage, counted over dp_replicate and efsdp.
        imbalance: factor on what a rank receives, 1 for none.
    """
    tokens_RG = np.stack([rank_tokens(config, layout, reading, group * layout.ep + r) for r in range(layout.ep)])
    permitted = permitted_experts(config).numpy()
    block = config.widths.experts // layout.ep
    rank_E = np.array(striped_rows(config.expert_owners(), layout.ep)) // block
    share_GR = np.stack([np.bincount(rank_E[row], minlength=layout.ep) / row.sum() for row in permitted])
    top_k = min(config.widths.top_k, int(permitted.sum(1).max()))
    return Routing(tokens_RG @ share_GR * top_k, imbalance)


def rank_tokens(config: ModelConfig, layout: Layout, reading: Reading, rank: int) -> NDArray[np.float64]:
    """[embodiments] tokens that a rank holds between layers; ranks of cp and tp share theirs in order.

    Args:
        config: the model.
        layout: ranks.
        reading: samples by data rank.
        rank: within a pipeline stage.
    """
    together = layout.cp * layout.tp
    data, at = divmod(rank, together)
    bounds = np.cumsum([0, *share_sizes(reading.tokens[data], layout)])
    out, start = np.zeros(len(config.embodiments)), 0
    for row, n in reading.samples[data].items():
        tokens = n * reading.lengths[row]
        low, high = max(start, bounds[at]), min(start + tokens, bounds[at + 1])
        out[row] += max(0, high - low)
        start += tokens
    return out


def share_sizes(tokens: int, layout: Layout) -> list[int]:
    """Tokens of each of the cp * tp ranks that share some samples, as `engine.tokens` deals them."""
    return [n for part in shares(tokens, layout.cp) for n in shares(part, layout.tp)]


def whole_rows(expected: NDArray[np.float64], total: int) -> list[int]:
    """Whole numbers near some expected ones that add up to a total: the largest remainders are rounded up."""
    scaled = expected * (total / expected.sum()) if expected.sum() else expected
    low = np.floor(scaled).astype(int)
    for i in np.argsort(low - scaled, kind="stable")[: total - int(low.sum())]:
        low[i] += 1
    return [int(n) for n in low]
