"""A run's plan: layouts that fit, time and money that add up, refusals, the verb and its page."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hagane.cli import main
from hagane.engine.layout import Layout
from hagane.model import SIZES, make_config
from hagane.plan.cost import by_fiscal_year, fiscal_year, run_cost
from hagane.plan.count import closed_form
from hagane.plan.goodput import estimate_goodput
from hagane.plan.memory import in_flight, rank_memory, worst_memory
from hagane.plan.rates import Assumptions, Faults, Links, Training, gpu_named, gpus, lines_of, load_assumptions
from hagane.plan.roofline import Setup, estimate_step, layer_pass
from hagane.plan.run import RunPlan, RunRequest, plan_run, require_budget, sweep
from hagane.plan.search import Problem, check_count, choose, layouts, parse_layout, search
from hagane.plan.sources import read_sources
from hagane.plan.tokens import count_tokens
from hagane.plan.traffic import Wire
from hagane.plan.work import shape_of
from hagane.terms import ConfigError
from tests.model_fixture import ARM, ROAD

EXAMPLES = Path(__file__).parents[1] / "examples"
SOURCES = EXAMPLES / "plan-sources.toml"
OURS = Assumptions()


@pytest.fixture(scope="module")
def trillion() -> RunPlan:
    account = count_tokens(read_sources(SOURCES).source, "1t", EXAMPLES)
    request = RunRequest("1t", 1e13, 4096, gpu_named("b200", OURS), "bf16", date(2028, 3, 28))
    return plan_run(request, account, OURS)


def problem(size: str = "4b", count: int = 64, gpu: str = "h100") -> Problem:
    config = make_config(size, (ARM, ROAD))
    return Problem(shape_of(config, 50.0), config.widths, count, gpu_named(gpu, OURS), "bf16", OURS)


@pytest.mark.parametrize("size", SIZES)
def test_our_shapes_have_every_parameter(size: str) -> None:
    config = make_config(size, (ARM, ROAD))
    shape, count = shape_of(config, 50.0), closed_form(config)
    assert shape.total == count.total
    # forward and backward of what a token uses, the attention's core and the tower aside
    trunk = shape.train_flops / 6 - shape.layers * shape.core_flops / 2 - shape.other_flops / 2
    active = count.active - sum(count.parts[p] for p in ("action tower", "text and image"))
    assert trunk == pytest.approx(active, rel=0.05)


def test_the_trillion_fits_and_adds_up(trillion: RunPlan) -> None:
    best, q = trillion.best, trillion.request
    assert best.setup.layout.ranks == q.gpus
    assert best.memory.total < 0.9 * q.gpu.memory_gib * 2**30
    step = best.step
    assert step.seconds == pytest.approx(step.work.total + step.waiting + step.once)
    assert trillion.steps * step.tokens == pytest.approx(q.tokens, rel=1e-3)
    assert trillion.days * 86_400 * trillion.goodput.share == pytest.approx(trillion.steps * step.seconds, rel=1e-3)
    assert set(trillion.by_year) == {2027, 2028}
    assert sum(trillion.by_year.values()) == pytest.approx(trillion.cost.total_yen)
    speeds = [c.step.tokens_s_gpu for c in trillion.choices]
    assert speeds == sorted(speeds, reverse=True)
    assert 0.1 < step.mfu(q.gpu, "bf16") < 0.6


def test_more_gpus_are_faster_and_never_cheaper() -> None:
    account = count_tokens(read_sources(SOURCES).source, "4b", EXAMPLES)
    found = sweep(
        plan_run(RunRequest("4b", 1e12, 64, gpu_named("h100", OURS), "bf16", date(2027, 4, 1)), account, OURS)
    )
    assert [s.gpus for s in found] == [16, 32, 64, 128, 256]
    assert [s.days for s in found] == sorted((s.days for s in found), reverse=True)
    assert [s.yen for s in found] == sorted(s.yen for s in found)


def test_search_is_the_best_of_all_that_fit() -> None:
    p = problem()
    found = search(p)
    assert all(c.memory.total <= p.room and c.setup.layout.ranks == 64 for c in found)
    by_hand = [
        estimate_step(p.shape, Setup(layout, recompute=again), p.gpu, OURS).tokens_s_gpu
        for layout in layouts(64, p.size, 8)
        for again in ("none", "layers")
        if worst_memory(p.shape, Setup(layout, recompute=again), OURS.training, imbalance=1.2).total <= p.room
    ]
    assert found[0].step.tokens_s_gpu >= max(by_hand)


def test_every_assumption_moves_the_answer_the_right_way() -> None:
    p = problem("1t", 2048, "h100")
    setup = Setup(Layout(pp=8, dp_shard=64, tp=4, ep=64), recompute="layers")

    def seconds(**changed: object) -> float:
        return estimate_step(p.shape, setup, p.gpu, replace(OURS, **changed)).seconds  # type: ignore[arg-type]

    base = seconds()
    kernels, links = OURS.kernels, OURS.links
    slower = {
        "matmul": {"kernels": replace(kernels, matmul=0.5)},
        "attention": {"kernels": replace(kernels, attention=0.3)},
        "memory": {"kernels": replace(kernels, memory=0.5)},
        "network": {"links": replace(links, network=0.5)},
        "hop_us": {"links": replace(links, hop_us=500.0)},
        "hide_tensor": {"links": replace(links, hide_tensor=0.0)},
        "hide_shards": {"links": replace(links, hide_shards=0.0)},
        "imbalance": {"links": replace(links, imbalance=2.0)},
    }
    for name, changed in slower.items():
        assert seconds(**changed) > base, name
    assert seconds(links=replace(links, hide_experts=1.0)) < base
    # within one NVLink domain the network does not matter, NVLink does
    near = Problem(p.shape, p.size, 64, gpu_named("gb300", OURS), "bf16", OURS)
    inside = Setup(Layout(dp_shard=64, ep=64))
    slow = replace(OURS, links=replace(links, nvlink=0.2))
    assert (
        estimate_step(p.shape, inside, near.gpu, slow).seconds > estimate_step(p.shape, inside, near.gpu, OURS).seconds
    )


def test_memory_by_kind() -> None:
    p = problem("1t", 1024)
    layout = Layout(pp=8, dp_shard=128, ep=64)
    plain = rank_memory(p.shape, Setup(layout), Training())
    again = rank_memory(p.shape, Setup(layout, recompute="layers"), Training())
    kept, let_go = (rank_memory(p.shape, Setup(layout, gather=g), Training()) for g in ("step", "microbatch"))
    assert again.activations < plain.activations / 3
    assert kept.gathered > let_go.gathered >= plain.gathered
    assert kept.gradients == let_go.gradients > plain.gradients
    assert rank_memory(p.shape, Setup(layout), Training(), imbalance=2.0).activations > plain.activations
    muon = rank_memory(p.shape, Setup(layout), Training(optimiser_bytes=4.0))
    assert muon.optimiser == plain.optimiser / 2
    # what all ranks keep together is the whole model, once
    whole = sum(rank_memory(p.shape, Setup(layout), Training(), stage=s).weights for s in range(8)) * 128
    assert whole == pytest.approx(4 * p.shape.total, rel=1e-6)


@given(
    st.dates(date(2026, 1, 1), date(2034, 1, 1)),
    st.floats(0.01, 2000.0),
    st.floats(1.0, 1e12),
)
def test_fiscal_years_add_up(start: date, days: float, amount: float) -> None:
    parts = by_fiscal_year(start, days, amount)
    assert sum(parts.values()) == pytest.approx(amount)
    assert min(parts) == fiscal_year(start)
    assert list(parts) == list(range(min(parts), max(parts) + 1))


def test_fiscal_years_begin_in_april() -> None:
    assert fiscal_year(date(2027, 3, 31)) == 2026
    assert fiscal_year(date(2027, 4, 1)) == 2027
    parts = by_fiscal_year(date(2027, 3, 31), 2.0, 10.0)
    assert parts == {2026: pytest.approx(5.0), 2027: pytest.approx(5.0)}


def test_goodput_at_its_ends() -> None:
    small, large = estimate_goodput(8, Faults()), estimate_goodput(1_000_000, Faults())
    assert small.share > 0.96
    assert large.share < 0.2
    for g in (small, large):
        assert g.share + g.checkpoints + g.faults + g.other == pytest.approx(1.0)
    worse = [estimate_goodput(4096, f).share for f in (Faults(restart_s=4000.0), Faults(checkpoint_stall_s=120.0))]
    assert max(worse) < estimate_goodput(4096, Faults()).share
    # the interval is near the best one
    best = estimate_goodput(16_384, Faults())
    assert best.every_s == pytest.approx((2 * 10 * best.mtbf_s) ** 0.5, rel=0.05)


def test_rent_replaces_buying() -> None:
    gpu = gpu_named("b200", OURS)
    bought = run_cost(1024, 10.0, gpu, OURS.prices)
    rented = run_cost(1024, 10.0, gpu, replace(OURS.prices, rent_yen_per_gpu_hour=500.0))
    assert rented.total_yen == 1024 * 240 * 500
    assert (rented.site_yen, rented.energy_yen, rented.energy_mwh) == (0, 0, bought.energy_mwh)
    assert bought.energy_mwh == pytest.approx(1024 * 1.79 * 1.25 * 240 / 1000)


def test_assumptions_are_printed_with_reason_and_changed_by_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[kernels]\nmatmul = 0.5\n[[gpu]]\nname = "x1"\nmemory_gib = 64.0\nbf16_peak = 500.0\n'
                    'fp8_peak = 1000.0\nbf16_matmul = 400.0\nfp8_matmul = 700.0\nhbm_tbs = 2.0\nnvlink_gbs = 200.0\n'
                    'domain = 8\nnetwork_gbs = 25.0\nwatts = 900.0\nyen = 3e6\n')  # fmt: skip
    mine = load_assumptions(file)
    assert gpu_named("x1", mine).memory_gib == 64
    lines = {key: (value, why) for key, value, _, why in lines_of(mine)}
    assert lines["kernels.matmul"] == ("0.5", "yours; the default is 0.709")
    assert all(value and why for value, why in lines.values())
    assert all(g.source for g in gpus(OURS).values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[kernels]\nmatmull = 0.5", "did you mean `matmul`"),
        ("[kernels]\nmatmul = 1.5", "between 0 and 1"),
        ("[links]\nimbalance = 0.5", "at least 1"),
        ("[faults]\nmtbf_gpu_hours = 0.0", "must be positive"),
        ("[training]\nbatch_tokens = -1", "must be positive"),
    ],
)
def test_bad_assumptions(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_assumptions(file)


def test_an_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'b200'"):
        gpu_named("b20", OURS)


@pytest.mark.parametrize(
    ("count", "step"), [(0, "use 8"), (4095, "use 4,088 or 4,096"), (-4, "use 8"), (12, "8 or 16")]
)
def test_an_impossible_number_of_gpus(count: int, step: str) -> None:
    with pytest.raises(ConfigError, match=step):
        check_count(count)


def test_too_few_gpus_names_a_number_that_is_enough() -> None:
    with pytest.raises(ConfigError, match="512 are enough"):
        search(problem("1t", 64))
    assert search(problem("1t", 512))


def test_a_layout_that_does_not_fit_names_the_nearest_that_do() -> None:
    p = problem("1t", 2048)
    with pytest.raises(ConfigError, match="GiB may be used") as e:
        choose(p, parse_layout("pp=8,dp_shard=8,dp_replicate=32,ep=8", 2048))
    nearest = e.value.next_step.removeprefix("nearest that fit: ").split(" or ")
    assert len(nearest) == 3
    for text in nearest:
        assert choose(p, parse_layout(text.strip("()"), 2048))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dp_shards=2", "did you mean 'dp_shard'"),
        ("xx=2", "axes: pp, dp_replicate"),
        ("pp=two", "write it as pp=16,ep=64"),
        ("pp=0", "write it as"),
        ("pp=3", "cannot be dealt"),
        ("ep=5", "does not divide"),
        ("pp=2,dp_shard=4", "8 ranks, not 64"),
        ("tp=16", "key-value heads"),
        ("pp=64", "pp = 64"),
    ],
)
def test_bad_layouts(text: str, message: str) -> None:
    p = problem()
    with pytest.raises(ConfigError, match=message):
        choose(p, parse_layout(text, 64))


def test_a_budget_that_does_not_cover(trillion: RunPlan) -> None:
    with pytest.raises(ConfigError, match=r"lacks .* pays for [\d.]+t tokens".replace(" pays", "(?s:.*)pays")):
        require_budget(trillion, 1e8)
    require_budget(trillion, 1e9)


def test_a_machine_that_never_finishes() -> None:
    account = count_tokens(read_sources(SOURCES).source, "4b", EXAMPLES)
    hopeless = replace(OURS, faults=Faults(mtbf_gpu_hours=1.0))
    with pytest.raises(ConfigError, match="does not end"):
        plan_run(RunRequest("4b", 1e9, 1024, gpu_named("h100", OURS), "bf16", date(2027, 4, 1)), account, hopeless)


def run(*flags: str) -> int:
    return main(["plan", "run", "--size", "4b", "--gpus", "64", "--gpu", "h100", "--tokens", "100b", *flags])


def test_the_verb_prints_everything_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "plan.html"
    assert run("--sources", str(SOURCES), "--start", "2027-04-01", "--html", str(page), "--precision", "fp8") == 0
    out = capsys.readouterr().out
    for key, *_ in lines_of(OURS):
        assert key in out
    for part in ("assumed 100%", "fiscal 2027", "interruptions", "no GPU figure of our own engine", "fleet-drives"):
        assert part in out
    html = page.read_text("utf-8")
    assert "fleet-drives" in html
    assert "http" not in html.replace("http-equiv", "")
    assert "<script" not in html


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "cannot be audited"),
        (("--sources", str(SOURCES), "--gpu", "h10"), "did you mean 'h100'"),
        (("--sources", str(SOURCES), "--gpus", "63"), "use 56 or 64"),
        (("--sources", str(SOURCES), "--layout", "pp=5"), "cannot be dealt"),
        (("--sources", str(SOURCES), "--tokens", "90t"), "lacks 77"),
        (("--sources", str(SOURCES), "--tokens", "many"), "is no amount"),
        (("--sources", str(SOURCES), "--budget", "1k"), "pays for"),
        (("--sources", str(SOURCES), "--start", "soon"), "2027-04-01"),
        (("--sources", str(SOURCES), "--size", "5b"), "unknown size"),
        (("--sources", "none.toml"), "no such file"),
        (("--sources", str(SOURCES), "--assume", "none.toml"), "no such file"),
    ],
)
def test_bad_input_is_one_message(
    flags: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "plan.html"
    assert run("--html", str(page), *flags) == 1
    err = capsys.readouterr().err
    assert err.startswith("hagane plan: ")
    assert message in err
    assert "  next: " in err or "no such file" in err
    assert "Traceback" not in err
    assert not page.exists()


def test_the_dispatcher(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 0
    assert "dry-run" in capsys.readouterr().out
    assert main(["plan", "runn"]) == 2
    assert "did you mean 'run'" in capsys.readouterr().err


def test_cutting_the_sequence_costs_two_exchanges_of_heads_a_pass() -> None:
    p = problem("4b", 64, "h100")
    quiet = replace(OURS, links=replace(OURS.links, hide_tensor=0.0))
    w = p.size
    for cp, tp in ((2, 1), (2, 2), (4, 1)):
        setup = Setup(Layout(dp_shard=64 // cp // tp, cp=cp, tp=tp))
        found = layer_pass(p.shape, setup, p.gpu, quiet, dense=False).tensor
        # by hand: bf16 queries, keys, values there, the core's output back; forward and backward; NVLink of 450 GB/s
        sent = 2 * (2 * w.heads + 2 * w.kv_heads) * w.head_dim * 4096 / cp / tp * (cp - 1) / cp
        gathered = 2 * 2 * w.d_model * 4096 / cp * (tp - 1) / tp
        assert found == pytest.approx(2 * (sent + gathered) / (450e9 * 0.78)), (cp, tp)
    wire = Wire(p.gpu, OURS.links)
    # sixteen ranks two nodes wide: half of what is sent goes over each GPU's own link of 50 GB/s
    assert wire.swap_s(1e9, 16, 1) == pytest.approx(0.5e9 / (50e9 * 0.92))


def test_the_search_cuts_sequences_where_ranks_keep_tokens() -> None:
    p = problem("4b", 64)
    cut = {(lo.cp, lo.tp) for lo in layouts(64, p.size, 8, 4096)}
    assert cut == {(c, t) for c in (1, 2, 4) for t in (1, 2, 4) if c * t <= 4}
    assert {lo.cp for lo in layouts(64, p.size, 8, 1024)} == {1, 2}
    assert {lo.cp for lo in layouts(64, p.size, 8, 1000)} == {1}
    assert max(lo.cp * lo.tp for lo in layouts(64, p.size, 2, 4096)) == 2
    assert any(c.setup.layout.cp > 1 for c in search(p))


def test_a_batch_that_leaves_ranks_without_work_is_named() -> None:
    small = replace(OURS, training=replace(OURS.training, batch_tokens=65_536))
    p = replace(problem("4b", 512), assumed=small)
    for ask in (lambda: search(p), lambda: choose(p, parse_layout("pp=4", 512))):
        with pytest.raises(ConfigError, match="a step of 65,536 tokens has no microbatch"):
            ask()


def test_interleaving_holds_what_torchs_schedule_warms_up() -> None:
    setup = Setup(Layout(pp=4, dp_shard=4), virtual=2)
    # (2 - 1) x 4 + 2 x (3 - rank) forwards of half a rank's layers, and one more
    assert [in_flight(setup, 100, rank) for rank in range(4)] == [5.5, 4.5, 3.5, 2.5]
    assert [in_flight(replace(setup, virtual=1), 100, rank) for rank in range(4)] == [4, 3, 2, 1]


def test_an_unbalanced_router_costs_memory_and_time() -> None:
    p = problem("1t", 2048, "b200")
    even = replace(OURS, links=Links(imbalance=1.0))
    setup = Setup(Layout(pp=16, dp_shard=128, ep=64))
    assert (
        estimate_step(p.shape, setup, p.gpu, even).tokens_s_gpu
        > estimate_step(p.shape, setup, p.gpu, OURS).tokens_s_gpu
    )
