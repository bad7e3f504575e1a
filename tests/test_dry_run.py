"""The dry run: real ranks use the same bytes, move the same rows and do the same work as the fake one says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hagane.cli import main
from hagane.engine.engine import cut_model, give_memory, start
from hagane.engine.layout import Compute, Layout
from hagane.engine.step import train_step
from hagane.model import make_config
from hagane.plan.collectives import Traffic
from hagane.plan.consortium import consortium_config, deal
from hagane.plan.dry import (
    ALLOCATOR,
    Question,
    RankReport,
    axes_of,
    dry_run,
    fullest_rank,
    gradients,
    name_gathered_gradients,
    name_static,
    rank_batch,
    rank_routing,
)
from hagane.plan.dry_choice import gated_imbalance, least_microbatches, packed_rows
from hagane.plan.fake import fake_ranks
from hagane.plan.flops import FlopMeter
from hagane.plan.memory import rank_memory
from hagane.plan.meter import Meter
from hagane.plan.rates import Training
from hagane.plan.roofline import Gather, Setup
from hagane.plan.watch import Watch
from hagane.plan.work import shape_of
from hagane.terms import ConfigError
from tests.model_fixture import ARM, ROAD
from tests.rank_fixture import on_ranks


def question(layout: Layout, **words: object) -> Question:
    """A small model that fits a test, on some layout."""
    compute = Compute(microbatches=layout.pp, recompute=True)
    return Question(make_config("1m", (ARM, ROAD)), layout, compute, tokens=160, **words)  # type: ignore[arg-type]


def real_peak(rank_question: Question) -> None:
    """On a real gloo rank: bytes and traffic of the second step, against the dry run that this rank asks for."""
    reading = deal(rank_question.config, rank_question.layout.data_ranks, rank_question.tokens)
    rank = dist.get_rank()
    splits = rank_routing(rank_question, reading, rank).planned(rank % rank_question.layout.ep)
    cpu = torch.device("cpu")
    cut = cut_model(
        rank_question.config, rank_question.step, rank_question.layout, rank_question.compute, "cpu", splits
    )
    engine = give_memory(cut, rank_question.step, 0, rank_question.compute, cpu)
    start(engine, {})
    batch = rank_batch(rank_question, reading, engine.mesh)
    train_step(engine, batch)
    meter, flops, traffic = Meter(ALLOCATOR), FlopMeter(), Traffic(axes_of(engine.mesh))
    name_static(meter, engine)
    name_gathered_gradients(meter, engine)
    with Watch(meter, flops, traffic):
        train_step(engine, batch)
    meter.name(gradients(engine), "gradients")
    seen = (meter.peak_bytes, flops.by_group(), {k: (f.calls, f.payload) for k, f in traffic.flows.items()})
    dist.barrier()
    dist.destroy_process_group()
    said = dry_run(rank_question, rank)
    dry = (said.peak.nbytes, dict(said.flops), {k: (f.calls, f.payload) for k, f in said.flows.items()})
    for kind in ("send", "receive"):
        # at their first step, which the dry run is, torch's stages also agree that shapes are known: four bytes
        if ("pp", kind) in dry[2]:
            calls, payload = dry[2]["pp", kind]
            dry[2]["pp", kind] = calls - 1, payload - 4
    assert seen == dry, rank
    dist.init_process_group("fake", rank=0, world_size=1, store=dist.HashStore())


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout(dp_shard=2), Layout(pp=2), Layout(tp=2), Layout(pp=2, dp_shard=2)], ids=str)
def test_real_ranks_use_send_and_compute_what_the_dry_run_says(layout: Layout) -> None:
    """To the byte: the peak, every collective's calls and payload, every group's operations."""
    on_ranks(layout.ranks, real_peak, question(layout))


def test_a_rank_of_a_pipeline_with_experts_shared_out() -> None:
    asked = question(Layout(pp=2, dp_shard=4, ep=4))
    said = dry_run(asked, fullest_rank(asked, 1))
    assert said.layers == (2, 3)
    assert said.ratio == pytest.approx(1, abs=0.01)
    kinds = said.peak.kinds
    assert all(kinds[k] for k in ("weights", "gathered", "gradients", "optimiser", "averages", "activations"))
    assert said.static["optimiser"] == pytest.approx(2 * said.static["weights"], rel=0.2)
    axes = {axis for axis, _ in said.flows}
    assert {"pp", "ep", "fsdp", "world"} <= axes
    assert "other" not in axes
    # two microbatches, two layers, there and back, forward, backward and again, counts beside rows
    assert said.flows["ep", "all-to-all"].calls >= 2 * 2 * 6


@pytest.mark.parametrize(
    "layout", [Layout(dp_shard=4, cp=2), Layout(dp_shard=2, tp=2), Layout(dp_replicate=2, dp_shard=2, ep=2)], ids=str
)
def test_counted_work_is_the_closed_form_on_every_axis(layout: Layout) -> None:
    said = dry_run(question(layout), 0)
    assert said.ratio == pytest.approx(1, abs=0.01)
    for group, n in said.flops.items():
        assert n == pytest.approx(said.expected[group], rel=0.02), group


def test_a_rank_alone_with_its_layers_is_fullest_once_gradients_have_begun() -> None:
    asked, layout = make_config("1m", (ARM, ROAD)), Layout(dp_shard=4)
    assert least_microbatches(layout, 0) == 2
    peaks = [dry_run(Question(asked, layout, Compute(microbatches=n), tokens=160), 0).peak for n in (1, 2)]
    assert peaks[1].kinds["gradients"] > peaks[0].kinds["gradients"] == 0


@pytest.mark.slow
def test_more_microbatches_than_the_pipeline_has_stages_do_not_raise_the_peak() -> None:
    layout, config = Layout(pp=2, dp_shard=2), make_config("1m", (ARM, ROAD))
    for stage in (0, 1):
        enough = least_microbatches(layout, stage)
        peaks = [
            dry_run(Question(config, layout, Compute(microbatches=n, recompute=True), tokens=160), 2 * stage).peak
            for n in (enough, enough + 2, enough + 4)
        ]
        # only the batch itself, which the step holds, grows: by the same bytes each time
        growth = [b.nbytes - a.nbytes for a, b in pairwise(peaks)]
        assert growth[0] == growth[1] < 0.02 * peaks[0].nbytes


def test_a_stages_weights_are_gathered_once_a_step_unless_asked_for_every_microbatch() -> None:
    config, layout = make_config("1m", (ARM, ROAD)), Layout(pp=2, dp_shard=2)

    def gathers(micros: int, *, regather: bool) -> int:
        how = Compute(microbatches=micros, recompute=True, regather=regather)
        return dry_run(Question(config, layout, how, tokens=160), 0).flows["fsdp", "all-gather"].calls

    assert gathers(2, regather=False) == gathers(4, regather=False)
    assert gathers(4, regather=True) > gathers(2, regather=True) > gathers(2, regather=False)


def test_a_stage_has_places_to_receive_in_only_for_microbatches_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Question(make_config("1m", (ARM, ROAD)), Layout(pp=2, dp_shard=2), Compute(microbatches=8), tokens=160)
    ours = dry_run(asked, 2).peak.nbytes
    monkeypatch.setattr("hagane.engine.pipeline.let_go", lambda infos: None)
    # the last stage has one microbatch under way: torch's own holds seven more places of 128 numbers a token in bf16
    assert dry_run(asked, 2).peak.nbytes - ours > 6 * 128 * 128 * 2


@pytest.mark.slow
def test_imbalance_costs_memory_and_work_where_experts_are_shared_out() -> None:
    even, skewed = (dry_run(question(Layout(dp_shard=4, ep=4), imbalance=i), 0) for i in (1.0, 2.0))
    assert skewed.received == pytest.approx(2 * even.received, rel=0.01)
    assert skewed.flops["grouped matmul"] == pytest.approx(2 * even.flops["grouped matmul"], rel=0.01)
    assert skewed.flows["ep", "all-to-all"].payload > even.flows["ep", "all-to-all"].payload


SHOULD_FIT = [
    ("40m", Layout(dp_shard=8), Compute()),
    ("40m", Layout(pp=2, dp_shard=4, ep=4), Compute()),
    ("40m", Layout(pp=2, dp_shard=4, ep=4), Compute(recompute=True)),
    ("40m", Layout(pp=2, dp_shard=4), Compute(regather=True)),
    ("400m", Layout(dp_shard=16, ep=8), Compute()),
    ("400m", Layout(pp=4, dp_shard=4, ep=4), Compute(schedule="interleaved")),
    ("400m", Layout(dp_shard=8, tp=2), Compute()),
    ("4b", Layout(dp_shard=32, cp=2, ep=16), Compute()),
]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "layout", "compute"), SHOULD_FIT, ids=str)
def test_the_closed_form_of_memory_is_near_the_dry_run(size: str, layout: Layout, compute: Compute) -> None:
    """Within 15% where most is kept; with recomputation, where everything is small, an upper bound."""
    config = consortium_config(size)
    for stage in sorted({0, layout.pp - 1}):
        how = replace(compute, microbatches=least_microbatches(layout, stage))
        said = dry_run(asked := Question(config, layout, how, imbalance=1.0), fullest_rank(asked, stage))
        ratio = closed_memory(asked, said, stage) / said.peak.nbytes
        print(f"{size} ({layout}) {compute.schedule} stage {stage}: closed form {ratio:.2f} of the dry run")
        assert 0.85 < ratio < (1.5 if compute.recompute else 1.15)


def closed_memory(asked: Question, said: RankReport, stage: int) -> float:
    """The planner's bytes for the rank that a dry run was made of."""
    layout, compute = asked.layout, asked.compute
    reading = deal(asked.config, layout.data_ranks, asked.tokens)
    row, padding = packed_rows(asked.config, reading)
    shape = replace(shape_of(asked.config, 800.0), row=row, padding=padding)
    gather: Gather = "pass" if layout.pp == 1 else "microbatch" if compute.regather else "step"
    setup = Setup(
        layout,
        compute.stages(layout) // layout.pp,
        recompute="layers" if compute.recompute else "none",
        gather=gather,
    )
    batch = said.microbatches * said.tokens * layout.data_ranks
    gated = gated_imbalance(asked.config, layout, asked.tokens, 1.0)
    training = Training(batch_tokens=batch, microbatch_tokens=said.tokens)
    return rank_memory(shape, setup, training, imbalance=gated, stage=stage).total


def test_real_ranks_are_refused() -> None:
    with (
        fake_ranks(0, 4),
        pytest.raises(ConfigError, match="real ranks beside it"),
    ):
        dry_run(question(Layout(dp_shard=4)), 0)
    assert not dist.is_initialized()


def test_the_verb_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "dry.json"
    words = ["--size", "1m", "--gpus", "4", "--layout", "pp=2,ep=2", "--members", "2", "--tokens", "1700"]
    assert main(["plan", "dry-run", *words, "--rank", "3", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "closed form" in said
    assert "all-to-all" in said
    assert out.read_text().count('"collective"') > 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layout", "pp=3"], "cannot be dealt"),
        (["--layout", "pp=2,dp_shard=4"], "has 8 ranks, not 4"),
        (["--layout", "ep=3"], "does not divide"),
        (["--gpu", "h20"], "unknown gpu"),
        (["--rank", "9", "--layout", "pp=2"], "no rank"),
        (["--imbalance", "0.5"], "at least 1"),
        (["--tokens", "10", "--layout", "pp=2"], "hold no sample"),
        (["--members", "-1"], "cannot be negative"),
    ],
)
def test_bad_words_get_one_message(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["plan", "dry-run", "--size", "1m", "--gpus", "4"]
    assert main([*base, *words]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_what_does_not_fit_is_refused_with_layouts_that_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small.toml"
    small.write_text(
        '[[gpu]]\nname = "small"\nmemory_gib = 0.02\nbf16_peak = 1.0\nfp8_peak = 1.0\nbf16_matmul = 1.0\n'
        "fp8_matmul = 1.0\nhbm_tbs = 1.0\nnvlink_gbs = 1.0\ndomain = 8\nnetwork_gbs = 1.0\nwatts = 1.0\nyen = 1.0\n"
    )
    words = ["--size", "1m", "--gpus", "4", "--layout", "dp_shard=4", "--gpu", "small", "--assume", str(small)]
    assert main(["plan", "dry-run", *words, "--tokens", "1700"]) == 1
    said = capsys.readouterr()
    assert "in all" in said.out
    assert "GiB of a small" in said.err
    assert "next:" in said.err
