"""Planned routing: how many rows each rank of an expert group sends and receives, where there are no data to count.

Routing is gated by owner: a machine's tokens reach its owner's experts and the consortium's, each evenly (that is what
the balancing bias drives at, gate by gate). So loads are not even over experts: those of the consortium serve every
machine. On top of that comes a stated imbalance, for what balancing leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
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

    rows_RRX: NDArray[np.float64]
    """[from rank, to rank, expert of that rank] expected rows, gated by owner and even within a gate."""
    imbalance: float
    """Factor on what a rank receives, beyond the gates."""

    @property
    def received_R(self) -> NDArray[np.float64]:
        """[ranks] rows that the gates send to each rank."""
        received: NDArray[np.float64] = self.rows_RRX.sum((0, 2))
        return received

    def spread(self) -> tuple[float, float]:
        """Least and most that a rank receives, over the mean: by the gates alone."""
        received = self.received_R
        return float(received.min() / received.mean()), float(received.max() / received.mean())

    def planned(self, rank: int) -> PlannedSplits:
        """Whole rows for one rank of the group; what it sends adds up to what it has."""
        sent = self.rows_RRX[rank].sum(1)
        came = self.rows_RRX[:, rank] * self.imbalance
        whole = np.array(whole_rows(came.reshape(-1), round(float(came.sum())))).reshape(came.shape)
        return PlannedSplits(
            tuple(whole_rows(sent, round(float(sent.sum())))), tuple(tuple(int(n) for n in row) for row in whole)
        )


@dataclass(frozen=True)
class PlannedSplits:
    """Stands in for the counts of real tokens (`hagane.engine.experts.Splits`)."""

    sent: tuple[int, ...]
    """Rows to each rank of the group."""
    came: tuple[tuple[int, ...], ...]
    """Rows from each rank of the group, for each of this rank's experts."""

    @property
    def received(self) -> list[int]:
        """Rows from each rank."""
        return [sum(row) for row in self.came]

    def __call__(self, sent_RE: Tensor, received_RE: Tensor) -> tuple[list[int], list[int]]:
        """The plan, which also takes the place of the counts: nobody sent any."""
        received_RE.copy_(torch.tensor(self.came).to(received_RE))
        return list(self.sent), self.received


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
    permitted_GE = permitted_experts(config).numpy().astype(float)
    in_memory = np.argsort(striped_rows(config.expert_owners(), layout.ep))
    share_GE = (permitted_GE / permitted_GE.sum(1, keepdims=True))[:, in_memory]
    top_k = min(config.widths.top_k, int(permitted_GE.sum(1).max()))
    return Routing((tokens_RG @ share_GE * top_k).reshape(layout.ep, layout.ep, -1), imbalance)


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
