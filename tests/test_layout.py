"""Layouts: what does not fit is refused with the nearest that do; experts are striped; tokens are shared whole."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hagane.engine import Compute, Layout, StepConfig, check_layout, make_engine
from hagane.engine.experts import by_expert, striped_rows
from hagane.engine.layout import misfit, nearest
from hagane.engine.parallel import shard_dim
from hagane.engine.stages import stage_layers
from hagane.engine.tokens import shares
from hagane.model import SIZES
from hagane.terms import ConfigError
from tests.model_fixture import shape_of

AXES = st.sampled_from([1, 2, 3, 4, 8])


@given(AXES, AXES, AXES, AXES, AXES, AXES, st.sampled_from(sorted(SIZES)), st.integers(1, 64))
def test_a_layout_fits_or_is_refused_with_layouts_that_do(
    pp: int, replicate: int, shard: int, cp: int, tp: int, ep: int, size: str, world: int
) -> None:
    widths = SIZES[size]
    try:
        layout = Layout(pp, replicate, shard, cp, tp, ep)
    except ConfigError as e:
        assert (shard * cp * tp) % ep and "next: use ep = " in str(e)
        return
    assert layout.ranks == pp * replicate * shard * cp * tp and layout.efsdp * ep == shard * cp * tp
    near = nearest(layout, widths, world)
    for n in near:
        assert n.ranks == world and not misfit(n, widths)
        check_layout(n, Compute(microbatches=n.pp), widths, world)
    if layout.ranks == world and not misfit(layout, widths):
        assert near[0] == layout
    else:
        with pytest.raises(ConfigError, match=r"next: "):
            check_layout(layout, Compute(microbatches=pp), widths, world)


@pytest.mark.parametrize(
    ("layout", "compute", "message"),
    [
        (Layout(tp=4), Compute(), "cp \\* tp = 4 does not divide 4 heads and 2 key-value heads"),
        (Layout(dp_shard=3, ep=3), Compute(), "ep = 3 does not divide 8 experts"),
        (Layout(pp=8), Compute(), "pp = 8 is more than 4 layers"),
        (Layout(dp_shard=12, ep=4), Compute(), "efsdp = 3 does not divide the experts' widths 128 and 64"),
        (Layout(dp_shard=3, tp=2, ep=1), Compute(), "dp_shard \\* cp = 3 does not divide the width 128 beside tp"),
        (Layout(pp=4), Compute(schedule="interleaved"), "8 stages for 4 layers"),
        (Layout(pp=2), Compute(microbatches=3), "microbatches = 3 is no multiple of pp = 2"),
    ],
)
def test_what_does_not_divide_is_named(layout: Layout, compute: Compute, message: str) -> None:
    with pytest.raises(ConfigError, match=f"{message}(.|\n)*next: use"):
        check_layout(layout, compute, SIZES["1m"])


def test_an_engine_refuses_the_wrong_number_of_processes() -> None:
    with pytest.raises(ConfigError, match=r"needs 4 ranks, 1 are running(.|\n)*use \(one rank\)"):
        make_engine(shape_of(), StepConfig(), 0, layout=Layout(dp_shard=4, ep=2))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.sampled_from([1, 2, 4, 8]))
def test_each_owners_experts_spread_evenly_over_the_ranks(counts: list[int], ranks: int) -> None:
    counts[0] += -sum(counts) % ranks
    owners = tuple(f"member-{i:02d}" for i, n in enumerate(counts) for _ in range(n))
    rows = striped_rows(owners, ranks)
    assert sorted(rows) == list(range(len(owners)))
    block = len(owners) // ranks
    for owner in set(owners):
        held = Counter(row // block for row, o in zip(rows, owners, strict=True) if o == owner)
        share = [held.get(r, 0) for r in range(ranks)]
        assert max(share) - min(share) <= 1, (owner, share)


@given(st.integers(0, 1000), st.integers(1, 17))
def test_token_shares_are_whole_and_even(tokens: int, ranks: int) -> None:
    sizes = shares(tokens, ranks)
    assert sum(sizes) == tokens and max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


@given(st.integers(1, 64), st.integers(1, 64))
def test_stages_hold_every_layer_once_and_the_last_is_never_the_larger(layers: int, stages: int) -> None:
    ranges = stage_layers(layers, min(stages, layers))
    assert [i for r in ranges for i in r] == list(range(layers))
    assert len(ranges[-1]) == min(map(len, ranges)) > 0


@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=4))
def test_arrived_rows_are_ordered_by_expert_then_by_rank(received: list[list[int]]) -> None:
    counts = torch.tensor(received)
    rows = [(e, r) for r, row in enumerate(received) for e, n in enumerate(row) for _ in range(n)]
    order = by_expert(counts, len(rows))
    assert [rows[i] for i in order.tolist()] == sorted(rows)


def test_fsdp_cuts_a_dimension_that_divides() -> None:
    assert shard_dim("trunk.layers.0.moe.experts.up", torch.empty(6, 8, 10), 4) == 1
    assert shard_dim("tokeniser.w_in", torch.empty(4, 7, 8), 4) == 2
    assert shard_dim("tower.time.weight", torch.empty(96, 64), 4) == 0
    assert shard_dim("trunk.norm.gain", torch.empty(7), 4) == 0
