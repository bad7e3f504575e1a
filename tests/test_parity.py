"""Every axis of parallelism and their pairs against one process: loss, gradients, norms by group, expert loads.

`python -m tests.test_parity` prints the table.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch.distributed as dist

from hagane.engine import Compute, Layout
from tests.parity_fixture import HEADER, SKEW, Reference, Row, compare, reference
from tests.rank_fixture import on_ranks

SIZE = 13
"""Samples of each machine: no axis divides them."""
TOLERANCE = 1e-5
Case = tuple[Layout, Compute]
FOUR: list[Case] = [
    (Layout(dp_replicate=4), Compute()),
    (Layout(dp_shard=4), Compute(microbatches=3)),
    (Layout(dp_replicate=2, dp_shard=2), Compute()),
    (Layout(dp_shard=4, ep=4), Compute(recompute=True)),
    (Layout(dp_shard=4, ep=2), Compute(microbatches=2)),
    (Layout(dp_replicate=2, dp_shard=2, ep=2), Compute()),
    (Layout(dp_shard=2, tp=2), Compute(recompute=True)),
    (Layout(dp_shard=2, cp=2), Compute()),
    (Layout(dp_shard=2, tp=2, ep=4), Compute()),
    (Layout(dp_replicate=2, cp=2, ep=2), Compute()),
    (Layout(pp=4), Compute()),
    (Layout(pp=2, dp_shard=2), Compute(microbatches=6, recompute=True)),
    (Layout(pp=2, dp_replicate=2), Compute(schedule="interleaved")),
    (Layout(pp=2, dp_shard=2), Compute(regather=True)),
    (Layout(pp=2, dp_shard=2, ep=2), Compute(schedule="interleaved")),
]
EIGHT: list[Case] = [
    (Layout(dp_shard=4, tp=2, ep=4), Compute()),
    (Layout(dp_replicate=2, dp_shard=2, cp=2, ep=2), Compute(recompute=True, microbatches=2)),
    (Layout(pp=2, dp_shard=4, ep=2), Compute()),
    (Layout(pp=2, dp_shard=2, tp=2, ep=4), Compute(recompute=True, schedule="interleaved")),
]


def work(cases: list[Case], wants: dict[str, Reference], whole: bool, out: str) -> None:
    """On every rank: all cases one after another; rank 0 writes the table."""
    runs = [(lo, how, r) for lo, how in cases for r in SKEW if whole or r == ("skewed" if lo.ep > 1 else "drawn")]
    rows = [compare(lo, how, routing, SIZE, wants[routing]) for lo, how, routing in runs]
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps([[str(r), r.loss, r.gradient, r.groups, r.loads] for r in rows]))


def table(cases: list[Case], folder: Path, whole: bool) -> list[tuple[str, float, float, float, float]]:
    """The table's lines and figures; not whole: skewed routing where experts are shared, drawn routing elsewhere."""
    wants = {routing: reference(routing, SIZE) for routing in SKEW}
    on_ranks(cases[0][0].ranks, work, cases, wants, whole, str(folder / "rows.json"))
    return [tuple(row) for row in json.loads((folder / "rows.json").read_text())]


def check(rows: list[tuple[str, float, float, float, float]]) -> None:
    """Print the table and hold it to the tolerance."""
    print("\n" + HEADER, *(row[0] for row in rows), sep="\n")
    for text, loss, gradient, groups, loads in rows:
        assert max(loss, gradient, groups) <= TOLERANCE, text
        assert loads == 0, text


def test_four_ranks_compute_what_one_process_does(tmp_path: Path) -> None:
    check(table(FOUR, tmp_path, whole=False))


@pytest.mark.slow
def test_eight_ranks_compute_what_one_process_does(tmp_path: Path) -> None:
    check(table(EIGHT, tmp_path, whole=True))


def scaled(out: str, want: Reference) -> None:
    """A planted fault: expert gradients divided by the size of their group, as FSDP does by itself."""
    import hagane.engine.parallel as parallel

    shard = parallel.shard

    def faulty(model, roots, mesh, precision, kept):  # type: ignore[no-untyped-def]
        shard(model, roots, mesh, precision, kept=kept)
        for layer in model.trunk.blocks:
            layer.moe.experts.set_gradient_divide_factor(float(mesh.layout.efsdp))

    parallel.shard = faulty
    row: Row = compare(Layout(dp_shard=4, ep=2), Compute(), "drawn", SIZE, want)
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps([row.gradient, row.worst]))


def test_the_check_sees_wrongly_scaled_expert_gradients(tmp_path: Path) -> None:
    on_ranks(4, scaled, str(tmp_path / "row.json"), reference("drawn", SIZE))
    gradient, worst = json.loads((tmp_path / "row.json").read_text())
    assert gradient > 0.1 and ".moe.experts." in worst


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        print(HEADER)
        for cases in (FOUR, EIGHT):
            for row in table(cases, Path(folder), whole=True):
                print(row[0], flush=True)
