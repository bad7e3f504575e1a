"""Planted delays between command and state are recovered within half a control step; without evidence, none is told."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hagane.catalog.lag import Lag, LagEstimator
from hagane.terms import Channel, Embodiment, Episode, Stream

RATE_HZ, STEP_S = 20.0, 0.05


def machine(state_hz: float = 0.0) -> Embodiment:
    observe = (Channel("q", shape=(3,), rate_hz=state_hz), Channel("aim", shape=(2,), role="goal"))
    return Embodiment("m", "robot", "o", RATE_HZ, 8, observe, (Channel("u", shape=(2,)),))


def commands(kind: str, rng: np.random.Generator, steps: int) -> NDArray[np.float64]:
    """[steps] commands at the control rate."""
    if kind == "white":
        return rng.normal(size=steps)
    if kind == "steps":
        return np.repeat(rng.normal(size=steps // 25 + 1), 25)[:steps]
    if kind == "smooth":
        t = np.arange(steps) * STEP_S
        return sum(np.sin(w * t + p) for w, p in zip(rng.uniform(0.5, 8, 12), rng.uniform(0, 6, 12), strict=True))
    return np.cumsum(rng.normal(size=steps))


def held(values: NDArray[np.float64], t_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a controller holds at any time, its first value before the start."""
    return values[np.clip(np.floor(t_s / STEP_S + 1e-6).astype(int), 0, len(values) - 1)]


def episode(
    kind: str, delay_s: float, follows: str, seed: int, *, state_hz: float = 0.0, steps: int = 600, noise: float = 0.02
) -> Episode:
    """State q.1 follows u.0 after the delay; all other columns are independent."""
    rng = np.random.default_rng(seed)
    u = commands(kind, rng, steps)
    hz = state_hz or RATE_HZ
    t_s = np.arange(round(steps * hz / RATE_HZ)) / hz
    if follows == "rate":
        fine_s = np.arange(0, steps * STEP_S, 0.001)
        y = np.interp(t_s, fine_s + 0.001, np.cumsum(held(u, fine_s - delay_s)) * 0.001)
    elif kind == "smooth":
        y = np.interp(t_s - delay_s, np.arange(steps) * STEP_S, u)
    else:
        y = held(u, t_s - delay_s)
    q = rng.normal(size=(len(t_s), 3))
    q[:, 1] = y + noise * y.std() * rng.normal(size=len(y))
    other = commands("white", rng, steps)
    return Episode(
        f"m/{seed}",
        "m",
        {
            "q": stream(t_s, q),
            "aim": stream(np.arange(steps) * STEP_S, np.stack([u, u], 1)),
            "u": stream(np.arange(steps) * STEP_S, np.stack([u, other], 1)),
        },
    )


def stream(t_s: NDArray[np.float64], values: NDArray[np.float64]) -> Stream:
    return Stream(np.rint(t_s * 1e9).astype(np.int64), values.astype(np.float32), np.ones(len(t_s), bool))


def estimate(episodes: list[Episode], state_hz: float = 0.0) -> list[Lag]:
    estimator = LagEstimator(machine(state_hz))
    for e in episodes:
        estimator.add(e)
    return [x for x in estimator.estimates() if x.column == 0]


@pytest.mark.parametrize("delay_s", [0.05, 0.1, 0.35, 0.72, 1.5])
@pytest.mark.parametrize(
    ("kind", "follows"),
    [("white", "level"), ("steps", "level"), ("walk", "level"), ("white", "rate"), ("walk", "rate")],
)
def test_a_planted_delay(kind: str, follows: str, delay_s: float) -> None:
    noise = 0.0005 if (kind, follows) == ("walk", "rate") else 0.02  # of what a double sum of noise spans
    lag = estimate([episode(kind, delay_s, follows, seed, noise=noise) for seed in range(3)])[0]
    assert lag.lag_s is not None, lag
    # between two stamps nobody can see when a held command showed: a whole number of steps, rounded up
    seen_s = delay_s if follows == "rate" else STEP_S * np.ceil(delay_s / STEP_S - 1e-9)
    assert min(abs(lag.lag_s - delay_s), abs(lag.lag_s - seen_s)) <= STEP_S / 2
    assert (lag.response, lag.response_column, lag.follows) == ("q", 1, follows)
    assert lag.confidence >= 0.5 and lag.correlation > 0.4 and lag.why == ""


@pytest.mark.parametrize("seed", range(3))
def test_a_smooth_command_of_one_episode(seed: int) -> None:
    lag = estimate([episode("smooth", 0.35, "level", seed, steps=1200)])[0]
    assert lag.lag_s is not None and abs(lag.lag_s - 0.35) <= STEP_S / 2


@pytest.mark.parametrize(("state_hz", "delay_s"), [(100.0, 0.35), (500.0, 0.13), (50.0, 0.08)])
def test_a_state_faster_than_its_command(state_hz: float, delay_s: float) -> None:
    lag = estimate([episode("steps", delay_s, "level", 1, state_hz=state_hz)], state_hz)[0]
    # finer than the control step, since the state's own stamps are
    assert lag.lag_s is not None and abs(lag.lag_s - delay_s) <= 0.01


def test_gaps_jitter_and_an_opposite_sign() -> None:
    e = episode("white", 0.35, "level", 5, steps=2000)
    rng = np.random.default_rng(0)
    q = e.streams["q"]
    keep = rng.random(len(q)) > 0.1
    keep[800:900] = False
    late_ns = q.times_ns + rng.integers(-2_000_000, 2_000_000, len(q))
    streams = {**e.streams, "q": Stream(late_ns[keep], -q.values[keep], q.valid[keep])}
    lag = estimate([Episode("e", "m", streams)])[0]
    assert lag.lag_s is not None and abs(lag.lag_s - 0.35) <= STEP_S / 2 and lag.correlation < -0.5


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["white", "steps", "walk", "smooth"])
def test_nothing_follows(kind: str, seed: int) -> None:
    told, other = episode(kind, 0.2, "level", seed), episode(kind, 0.2, "level", seed + 100)
    lag = estimate([Episode("e", "m", {**told.streams, "q": other.streams["q"]})])[0]
    assert lag.lag_s is None and lag.response == "" and lag.why


def test_no_excitation_no_state_and_no_command() -> None:
    e = episode("white", 0.2, "level", 0)
    u = e.streams["u"]
    still = Stream(u.times_ns, np.ones_like(u.values), u.valid)
    lag = estimate([Episode("e", "m", {**e.streams, "u": still})])[0]
    assert lag.lag_s is None and "no excitation: the command changes 0 times" in lag.why
    lag = estimate([Episode("e", "m", {"u": u})])[0]
    assert lag.lag_s is None and "no observed state moves" in lag.why
    assert estimate([Episode("e", "m", {"q": e.streams["q"]})])[0].lag_s is None


def test_a_state_that_moves_first_is_told_with_its_sign() -> None:
    e = episode("white", 0.0, "level", 0)
    early = Stream(e.streams["q"].times_ns - 200_000_000, e.streams["q"].values, e.streams["q"].valid)
    lag = estimate([Episode("e", "m", {**e.streams, "q": early})])[0]
    assert lag.lag_s is not None and abs(lag.lag_s + 0.2) < STEP_S / 2


def test_a_feedback_law_is_not_taken_for_a_response() -> None:
    rng = np.random.default_rng(0)
    q = np.cumsum(rng.normal(size=(2000, 1)), 0)
    t_s = np.arange(2000) * STEP_S
    u = -0.5 * q + rng.normal(size=q.shape)  # reacts at once, moves nothing
    streams = {"q": stream(t_s, np.repeat(q, 3, 1)), "u": stream(t_s, np.repeat(u, 2, 1))}
    lag = estimate([Episode("e", "m", streams)])[0]
    assert lag.lag_s is None or lag.lag_s <= 0


def test_estimates_add_up_over_episodes_and_keep_to_their_columns() -> None:
    estimator = LagEstimator(machine())
    for seed in range(12):  # each alone is too short
        estimator.add(episode("white", 0.35, "level", seed, steps=30))
    first = [x for x in estimator.estimates() if x.column == 0]
    assert first[0].lag_s is not None and abs(first[0].lag_s - 0.35) <= STEP_S / 2
    (left,) = [x for x in estimator.estimates(leave_out={("q", 1)}) if x.column == 0]
    assert left.lag_s is None
