"""The scaling law: known exponents come back, bands cover, nonsense is refused, and no claim is made out of reach."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from hagane.cli.plan_scaling import main
from hagane.engine.inputs import train_samples
from hagane.model.moe import Experts, experts_loop
from hagane.model.packing import pack
from hagane.model.slots import DESCRIPTOR, sample_layouts
from hagane.plan.scaling import LIMITS, Form, Law, Points, points_of, theta_of
from hagane.plan.scaling_band import backtest, bootstrap_band, seed_spread
from hagane.plan.scaling_fit import fit, fit_forms, leverage, predict_logs
from hagane.plan.scaling_runs import ScaledRun, Score, append_run, read_runs
from hagane.plan.scaling_score import score_band
from hagane.plan.scaling_study import claim_of, enough_parameters, size_rows, studies
from hagane.plan.work import BACKWARD, data_tokens, sample_flops
from hagane.terms import ConfigError, Embodiment, StoreError
from tests.model_fixture import ARM, CAM, ROAD, make_batch, make_model

TRUE = Law(floor=0.1, a=20.0, alpha=0.3, b=15.0, beta=0.4, repeats=4.0)
LOGS = Law(floor=0.1, a=20.0, alpha=0.3, b=12.0, beta=0.4, c=60.0, gamma=0.6)
"""The same kind of law in the form "diversity"."""
LAWS: dict[Form, Law] = {"repeats": TRUE, "diversity": LOGS}
SIZES = {"1m": 1_830_368, "4m": 5_035_072, "40m": 44_848_384}
STEPS = (60, 120, 240, 480, 960)
PER_STEP = 285
NOISE = 0.02


def grid() -> list[tuple[str, int, int, int]]:
    """(size, parameters, tokens, unique tokens): the largest size has few points, as in the real measurement."""
    return [
        (size, n, steps * PER_STEP, unique)
        for size, n in SIZES.items()
        for unique in (12_400, 60_000, 240_000)
        for steps in STEPS
        if steps <= 240 or size != "40m"
    ]


def points(noise: float, seed: int = 0, law: Law = TRUE) -> Points:
    _, n, tokens, unique = (np.array(c) for c in zip(*grid(), strict=True))
    n, tokens, unique = n.astype(float), tokens.astype(float), unique.astype(float)
    wrong = noise * np.random.default_rng(seed).standard_normal(len(n))
    return Points(n, tokens, unique, law.loss(n, tokens, unique) * np.exp(wrong))


def runs(noise: float = NOISE, seed: int = 0) -> list[ScaledRun]:
    """Runs of a mill whose score follows its loss, of the law above."""
    found, out = points(noise, seed), []
    for (size, n, tokens, unique), loss in zip(grid(), found.loss_n, strict=True):
        score = 250.0 - 800.0 * loss**1.5
        scores = {"mill": Score(score, score - 20, score + 20, 24, 250.0, "return, higher is better")}
        name = f"{size}-{unique}-{tokens}"
        out.append(
            ScaledRun(name, size, 0, n, n // 2, tokens // PER_STEP, tokens, unique, 2 * tokens, 1e12, 9.0,
                      {"mill": float(loss)}, scores)
        )  # fmt: skip
    return out


def written(tmp_path: Path, some: list[ScaledRun]) -> Path:
    path = tmp_path / "runs.jsonl"
    for run in some:
        append_run(path, run)
    return path


@pytest.mark.parametrize("form", LAWS)
def test_exact_losses_give_back_the_law(form: Form) -> None:
    found = fit(points(0.0, law=LAWS[form]), form)
    assert asdict(found.law) == pytest.approx(asdict(LAWS[form]), rel=1e-5)
    assert found.left_out < 1e-6


@pytest.mark.parametrize("form", LAWS)
def test_the_form_that_made_the_losses_is_the_one_that_is_taken(form: Form) -> None:
    best, other = fit_forms(points(NOISE, 4, LAWS[form]))
    assert best.form == form
    assert best.left_out == pytest.approx(NOISE, rel=0.4)
    assert other.left_out > 1.3 * best.left_out
    # where different data was not varied there is nothing to choose from
    same = points(NOISE, 4)
    assert [f.form for f in fit_forms(replace(same, unique_n=np.full(len(same), 1e6)))] == ["repeats"]


@pytest.mark.parametrize("form", LAWS)
def test_the_slopes_are_those_of_the_law(form: Form) -> None:
    exact, step = points(0.0), 1e-6
    theta = theta_of(exact, LAWS[form], form)[None]
    _, slopes = predict_logs(exact, theta)
    lowest, highest = LIMITS[form]
    for k in np.flatnonzero(lowest < highest):
        moved = theta.copy()
        moved[0, k] += step
        change = (predict_logs(exact, moved)[0] - predict_logs(exact, theta)[0])[0] / step
        np.testing.assert_allclose(slopes[0, :, k], change, atol=1e-5)


def test_one_run_that_went_wrong_does_not_bend_the_law() -> None:
    exact = points(0.0)
    loss = exact.loss_n.copy()
    loss[5] *= 3.0
    law = fit(replace(exact, loss_n=loss), "repeats").law
    assert law.alpha == pytest.approx(TRUE.alpha, rel=0.15)
    assert law.beta == pytest.approx(TRUE.beta, rel=0.15)


def test_a_repeated_token_is_worth_less_than_a_fresh_one() -> None:
    worth = TRUE.worth(np.array([500.0, 1000.0, 2000.0, 1e9]), 1000.0)
    assert worth[0] == 500 and worth[1] == 1000
    assert 1000 < worth[2] < 2000
    assert worth[3] == pytest.approx(1000 * (1 + TRUE.repeats))
    # the first repeat is as good as new
    slope = (float(TRUE.worth(1000.0 + 1e-3, 1000.0)) - 1000) / 1e-3
    assert slope == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_balanced_tokens_are_where_data_and_size_are_worth_the_same(law: Law) -> None:
    for n in SIZES.values():
        tokens, step = law.balanced_tokens(n), 1e-4
        here = float(law.loss(n, tokens))
        by_size = here - float(law.loss(n * (1 + step), tokens))
        by_data = here - float(law.loss(n, tokens * (1 + step)))
        assert by_size == pytest.approx(by_data, rel=1e-3)


def test_the_band_holds_the_truth_and_narrows_with_less_noise() -> None:
    wide, narrow = (bootstrap_band(points(noise), draws=100) for noise in (NOISE, NOISE / 10))
    for band in (wide, narrow):
        for field in ("alpha", "beta", "repeats"):
            found = band.of(lambda law, f=field: float(getattr(law, f)))  # type: ignore[misc]
            assert found.low <= getattr(TRUE, field) <= found.high, field
    assert narrow.loss(4e8, 3e6).fold - 1 < 0.3 * (wide.loss(4e8, 3e6).fold - 1)
    # one size of fabricated residuals: the noise is found again
    assert wide.residual == pytest.approx(NOISE, rel=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("form", LAWS)
def test_the_band_covers_as_often_as_it_says(form: Form) -> None:
    """95% bands over 50 measurements with fresh noise; 0.82 leaves room for 50 being few, and the runs of each too."""
    truth, asked = (
        LAWS[form],
        {
            "alpha": lambda law: law.alpha,
            "beta": lambda law: law.beta,
            "loss in reach": lambda law: float(law.loss(4e8, 2.5e6)),
            "tokens of 40m": lambda law: law.balanced_tokens(SIZES["40m"]),
        },
    )
    held = dict.fromkeys(asked, 0)
    for seed in range(50):
        band = bootstrap_band(points(NOISE, seed, truth), form=form, draws=100, seed=seed)
        for name, what in asked.items():
            found = band.of(what)
            held[name] += found.low <= what(truth) <= found.high
    print(form, held)
    assert all(n / 50 >= 0.82 for n in held.values()), held


@pytest.mark.slow
def test_a_band_that_is_too_narrow_would_be_seen() -> None:
    """The check of coverage is checked: a bootstrap of a tenth of the noise misses the truth most of the time."""
    missed = 0
    for seed in range(12):
        noisy = points(NOISE, seed)
        band = bootstrap_band(noisy, draws=40, seed=seed)
        found = band.of(lambda law: float(law.loss(4e8, 2.5e6)))
        low, high = (found.middle + 0.1 * (end - found.middle) for end in (found.low, found.high))
        missed += not low <= float(TRUE.loss(4e8, 2.5e6)) <= high
    assert missed >= 5


@pytest.mark.parametrize(("form", "numbers"), [("repeats", 6), ("diversity", 7)])
def test_leverage_adds_up_to_the_numbers_that_are_fitted(form: Form, numbers: int) -> None:
    exact = points(0.0)
    _, slopes = predict_logs(exact, theta_of(exact, LAWS[form], form)[None])
    pull = leverage(slopes[0], form)
    assert pull.sum() == pytest.approx(numbers)
    assert ((pull > -1e-9) & (pull < 1 + 1e-9)).all()


def test_no_effect_of_size_is_found_as_none() -> None:
    flat = points(NOISE, 1, replace(TRUE, a=1e-12))
    band = bootstrap_band(flat, draws=60)
    assert band.law.gain_of_doubling(SIZES["1m"], 2e5)[0] < 0.01
    said = studies(
        [replace(r, held_out={"mill": float(x)}) for r, x in zip(runs(), flat.loss_n, strict=True)], draws=40
    )
    enough = enough_parameters(said[0], 2e5)
    assert enough.middle <= SIZES["1m"]


def test_longest_runs_are_foretold_by_the_others_and_a_broken_trend_is_not() -> None:
    honest = points(NOISE, 3)
    tried = backtest(honest, "repeats", 100)
    assert tried is not None
    out, said = tried
    assert len(out) == 9
    assert sum(i.low <= x <= i.high for i, x in zip(said, out.loss_n, strict=True)) >= 7
    # a law that breaks: the longest runs stopped learning
    broken = np.where(honest.tokens_n > 200_000, 1.4 * honest.loss_n, honest.loss_n)
    tried = backtest(replace(honest, loss_n=broken), "repeats", 100)
    assert tried is not None
    hits = [
        i.low <= x <= i.high for i, x, t in zip(tried[1], tried[0].loss_n, tried[0].tokens_n, strict=True) if t > 2e5
    ]
    assert not any(hits)


def test_the_spread_of_seeds_is_pooled_over_repeated_cells() -> None:
    base = runs(0.0)[:2]
    again = [
        replace(r, name=f"{r.name}-{k}", held_out={"mill": r.held_out["mill"] * float(np.exp(x))})
        for r in base
        for k, x in enumerate((-0.03, 0.0, 0.03))
    ]
    assert seed_spread(again) == pytest.approx(0.03)
    assert seed_spread(base) == 0.0
    # a law that fits better than seeds repeat is not believed
    assert bootstrap_band(points(0.0), seed_spread=0.05, draws=40).loss(4e8, 2e6).fold > 1.02


def test_score_follows_loss_and_never_passes_the_expert() -> None:
    some = runs()
    band = bootstrap_band(points_of(some, "mill"), draws=60)
    found = score_band(some, "mill", draws=60)
    assert found.law.power == pytest.approx(1.5, abs=0.15)
    assert found.explained > 0.95
    reached = found.predict(band, 4e8, 2.5e6)
    assert reached.low < 250.0 - 800.0 * float(TRUE.loss(4e8, 2.5e6)) ** 1.5 < reached.high
    assert found.predict(band, 1e15, 1e15).high <= 250.0


def test_claims_end_at_ten_times_what_was_trained() -> None:
    found = studies(runs(), draws=40)
    rows = size_rows(found, {**SIZES, "400m": 409_000_000, "4b": 4_020_000_000}, 273_600)
    assert [r.claim for r in rows] == ["trained", "trained", "trained", "within reach", "no claim"]
    band = found[0].band
    assert claim_of(band, SIZES["1m"], 10 * 273_600) == "within reach"
    assert claim_of(band, SIZES["1m"], 11 * 273_600) == "no claim"
    folds = [r.loss.fold for r in rows]
    assert folds[-1] > folds[2]


def too_few_sizes(r: list[ScaledRun]) -> list[ScaledRun]:
    return [x for x in r if x.size != "40m"]


def one_amount(r: list[ScaledRun]) -> list[ScaledRun]:
    return [replace(x, tokens=17_100) for x in r]


def too_few_runs(r: list[ScaledRun]) -> list[ScaledRun]:
    return r[:3] + r[15:17] + r[30:32]


def nothing_shared(r: list[ScaledRun]) -> list[ScaledRun]:
    return [replace(x, tokens=x.tokens + x.parameters % 97) for x in r]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (too_few_sizes, "at least 3 sizes, not 2"),
        (one_amount, "at least 3 amounts of tokens, not 1"),
        (too_few_runs, "too few for a law"),
        (nothing_shared, "no two sizes were trained on the same tokens"),
    ],
)
def test_runs_that_cannot_carry_a_law_are_refused(spoil: object, words: str, tmp_path: Path) -> None:
    assert callable(spoil)
    with pytest.raises(ConfigError, match=words):
        main([str(written(tmp_path, spoil(runs())))])


@pytest.mark.parametrize("loss", [float("nan"), 0.0, -0.3, float("inf")])
def test_a_loss_that_is_none_is_refused(loss: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"1m-12400-17100.*mill|mill.*positive"):
        replace(runs()[0], held_out={"mill": loss})
    some = points(0.0)
    with pytest.raises(ConfigError, match="loss must be positive"):
        fit(replace(some, loss_n=np.full(len(some), loss)), "repeats")
    path = tmp_path / "runs.jsonl"
    line = {**asdict(runs()[0]), "held_out": {"mill": loss}}
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(ConfigError):
        read_runs(path)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        main([str(tmp_path / "none.jsonl")])
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ConfigError, match="at least 3 sizes, not 0"):
        main([str(tmp_path / "empty.jsonl")])
    path = written(tmp_path, runs()[:2])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"name": "half')
    # a torn last line is a killed measurement; the next run takes its place
    assert len(read_runs(path)) == 2
    append_run(path, runs()[2])
    assert len(read_runs(path)) == 3
    path.write_bytes(whole + b'{"name": "half"}\n')
    with pytest.raises(ConfigError, match="line 3 is no run"):
        read_runs(path)
    path.write_bytes(whole + whole)
    with pytest.raises(ConfigError, match="twice"):
        read_runs(path)


def test_the_verb_says_where_extrapolation_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "scaling.html"
    assert main([str(written(tmp_path, runs())), "--draws", "40", "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "Extrapolation ends at 448M parameters and 2.74M data tokens" in said
    (last,) = (line for line in said.splitlines() if line.startswith("1t  "))
    assert last.count("no claim") == 2
    assert "no prediction" in said
    html = page.read_text()
    assert html.count("<svg") == 3 and "no claim" in html
    assert "<script" not in html and "http://" not in html and "https://" not in html
    assert "nan" not in html.split("</style>")[1].lower().replace("hagane", "")


def test_the_page_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write the page"):
        main([str(written(tmp_path, runs())), "--draws", "20", "--html", str(tmp_path / "none" / "x.html")])


@contextmanager
def plain_experts() -> Iterator[None]:
    """Experts as plain matrix products, which torch's counter knows."""
    kept = Experts.forward
    Experts.forward = experts_loop  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Experts.forward = kept  # type: ignore[method-assign]


@pytest.mark.parametrize("machine", [ARM, CAM, ROAD])
def test_operations_in_closed_form_are_those_that_torch_counts(machine: Embodiment) -> None:
    model, n = make_model(embodiments=(machine,)), 5
    (layout,) = sample_layouts(model.config)
    samples = train_samples(model, make_batch(n=n, embodiments=(machine,)), 0, 0.0)
    with plain_experts(), FlopCounterMode(display=False) as counter:
        model(samples)
    w = model.config.widths
    packing = pack((n,), (layout.length,), w.pack_tokens)
    # torch also counts attention between the places of padded rows, and each slot's descriptor once a batch
    square = packing.rows * packing.tokens**2 - n * layout.length**2
    more = w.layers * 4 * square * w.heads * w.head_dim + 2 * len(layout.slots) * DESCRIPTOR * w.d_model
    forward = sample_flops(model.config, machine.name) / (1 + BACKWARD)
    assert counter.get_total_flops() - more == pytest.approx(n * forward, rel=0.01)
    assert data_tokens(layout) == layout.length - w.prompts - w.text_tokens


@pytest.mark.slow
def test_a_cell_is_really_trained_and_a_stopped_measurement_goes_on(tmp_path: Path) -> None:
    """bench/scaling on its smallest cell: a run that the reader takes, made once however often it is asked."""
    script, out = Path(__file__).parents[1] / "bench" / "scaling" / "run.py", tmp_path / "scaling.jsonl"
    command = [sys.executable, str(script), "--out", str(out), "--work", str(tmp_path / "work")]
    for _ in range(2):
        subprocess.run([*command, "--only", "1m-u00800-s00060"], check=True, capture_output=True, timeout=600)
        (run,) = read_runs(out)
    assert run.steps == 60 and set(run.held_out) == set(run.scores) == {"mill", "road"}
    # 15 samples a machine and step; a road's sample has 15 data tokens, a mill's 4
    assert run.tokens == 60 * 15 * (15 + 4)
    assert all(s.low <= s.mean <= s.high < s.expert for s in run.scores.values())
    assert list((tmp_path / "work" / "runs").iterdir()) == []
