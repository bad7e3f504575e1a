"""Recording and scoring pilots, on a small world whose every number is known."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import hagane.worlds.registry
from hagane.terms import APPLIED, Channel, ConfigError, Embodiment, Reading
from hagane.worlds import Drawing, Noise, collect, fly, make, names
from hagane.worlds.rollout import QUIET

MACHINE = Embodiment(
    "cart",
    "robot",
    "member-robots",
    rate_hz=10.0,
    horizon=4,
    observe=(
        Channel("place", shape=(1,), unit=("m",)),
        Channel("late", shape=(1,), unit=("m",), delay_s=0.3),
        Channel("slow", shape=(1,), unit=("m",)),
        Channel("others", "set", (2, 1), role="agents"),
        Channel("words", "text", role="instruction"),
    ),
    act=(Channel("push", shape=(1,), unit=("m",), low=(-1.0,), high=(1.0,)), Channel("horn", shape=(1,))),
)


class CartWorld:
    """N carts that move by what they are told, at most 1 m a step; a copy ends after 3 + seed % 5 steps."""

    embodiment = MACHINE
    cases = ("flat",)
    measure = "success: ends beyond 2 m, higher is better"
    step_limit = 20

    def __init__(self) -> None:
        self.pilots = {"constant: stand": lambda: Push(0.0), "classical: push": lambda: Push(0.5)}
        self.pilots["expert"] = lambda: Push(2.0)

    def reset(self, case: str, seeds_N: Sequence[int]) -> None:
        self.life_N = np.array([3 + s % 5 for s in seeds_N])
        self.place_N = np.array([np.random.default_rng(s).uniform() for s in seeds_N])
        self.t = 0

    def observe(self) -> dict[str, Reading]:
        n = len(self.place_N)
        good = np.ones(n, np.bool_)
        column = self.place_N[:, None].astype(np.float32)
        fresh, late = np.zeros(n, np.float32), np.full(n, 0.5, np.float32)
        slow = np.full(n, 0.1 * (self.t % 3), np.float32)
        others = np.stack([column, -column], 1)
        return {
            "place": Reading(column, good, fresh),
            "late": Reading(column, good, late),
            "slow": Reading(column, good, slow),
            "others": Reading(others, np.stack([good, ~good], 1), fresh),
        }

    def step(self, commands_NA: NDArray[np.float32]) -> NDArray[np.float32]:
        applied_NA = np.clip(commands_NA, -1, 1)
        self.place_N = self.place_N + applied_NA[:, 0] * self.alive()
        self.t += 1
        return applied_NA

    def tasks(self) -> tuple[str, ...]:
        return ("go right",) * len(self.place_N)

    def alive(self) -> NDArray[np.bool_]:
        return np.asarray(self.t < self.life_N)

    def scores(self) -> NDArray[np.float64]:
        return np.asarray((self.place_N > 2).astype(np.float64))

    def details(self) -> dict[str, NDArray[np.float64]]:
        return {"place": self.place_N}

    def draw(self, copy: int) -> Drawing:
        return Drawing("cart", {"place": float(self.place_N[copy]), "t": self.t})


class Push:
    """Always the same push; the horn sounds 7."""

    def __init__(self, push: float) -> None:
        self.push = push

    def reset(self, world: object) -> None:
        pass

    def act(self, world: CartWorld) -> NDArray[np.float32]:
        return np.tile(np.array([[self.push, 7.0]], np.float32), (len(world.alive()), 1))


def test_streams_hold_clean_commands_and_what_was_applied() -> None:
    noise = Noise("white", (0.3, 0.0))
    first, second = collect(CartWorld(), "flat", [7, 11], Push(0.5), noise, first_id=41)
    assert (first.id, second.id) == ("cart/flat/000041", "cart/flat/000042")
    assert first.embodiment == "cart" and first.task == "go right"
    assert set(first.streams) == {"place", "late", "slow", "others", "push", "push.applied", "horn", "horn.applied"}
    push, applied = first.streams["push"].values, first.streams["push" + APPLIED].values
    assert (push == 0.5).all() and np.abs(applied).max() <= 1 and (applied != push).all()
    assert first.streams["push"].unit == ("m",)
    assert (first.streams["horn"].values == 7).all() and (first.streams["horn.applied"].values == 1).all()
    # what was applied is what moved the cart
    place = first.streams["place"].values
    np.testing.assert_allclose(np.diff(place[:, 0]), applied[:-1, 0], atol=1e-6)


def test_each_episode_is_as_long_as_its_copy_lived_and_knows_how_it_ended() -> None:
    episodes = list(collect(CartWorld(), "flat", range(5), Push(0.4), QUIET))
    assert [len(e.streams["push"]) for e in episodes] == [3, 4, 5, 6, 7]
    place = [e.streams["place"].values[-1, 0] + 0.4 for e in episodes]
    assert [e.outcome for e in episodes] == ["success" if p > 2 else "failure" for p in place]


def test_times_are_control_times_less_the_age_that_is_not_the_channels_delay() -> None:
    (episode,) = collect(CartWorld(), "flat", [4], Push(0.1), QUIET, start_ns=1000)
    steps_ns = 1000 + 100_000_000 * np.arange(7)
    np.testing.assert_array_equal(episode.streams["place"].times_ns, steps_ns)
    np.testing.assert_array_equal(episode.streams["push"].times_ns, steps_ns)
    np.testing.assert_array_equal(episode.streams["late"].times_ns, steps_ns - 200_000_000)
    # the slow sensor gives one sample for three control steps: recorded once
    np.testing.assert_array_equal(episode.streams["slow"].times_ns, steps_ns[[0, 3, 6]])
    assert episode.streams["others"].values.shape == (7, 2, 1)
    assert episode.streams["others"].valid[:, 0].all() and not episode.streams["others"].valid[:, 1].any()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=6), st.integers(1, 4), st.sampled_from(["white", "ar"]))
def test_an_episode_depends_on_its_seed_only(seeds: list[int], at_once: int, kind: str) -> None:
    noise = Noise(kind, (0.2,))  # type: ignore[arg-type]
    together = list(collect(CartWorld(), "flat", seeds, Push(0.3), noise, at_once=at_once))
    for i, seed in enumerate(seeds):
        (alone,) = collect(CartWorld(), "flat", [seed], Push(0.3), noise, first_id=i)
        assert alone.id == together[i].id and alone.digest == together[i].digest
        for name, stream in alone.streams.items():
            assert stream.values.tobytes() == together[i].streams[name].values.tobytes()


def test_noise_has_the_asked_size_and_memory() -> None:
    white = Noise("white", (2.0, 0.5)).draw(3, 20_000, 2)
    drift = Noise("ar", (2.0,), rho=0.9).draw(3, 20_000, 1)[:, 0]
    np.testing.assert_allclose(white.std(0), [2.0, 0.5], rtol=0.03)
    assert drift.std() == pytest.approx(2.0, rel=0.1)
    assert np.corrcoef(drift[1:], drift[:-1])[0, 1] == pytest.approx(0.9, abs=0.02)
    assert abs(np.corrcoef(white[1:, 0], white[:-1, 0])[0, 1]) < 0.03
    assert not Noise("white", (0.0,)).draw(3, 5, 2).any()


def test_the_worlds_own_noise_is_the_default() -> None:
    world = CartWorld()
    (clean,) = collect(world, "flat", [1], Push(0.3))
    assert (clean.streams["push.applied"].values == np.float32(0.3)).all()
    world.default_noise = Noise("white", (0.1,))  # type: ignore[attr-defined]
    (noisy,) = collect(world, "flat", [1], Push(0.3))
    assert (noisy.streams["push.applied"].values != np.float32(0.3)).all()


def test_fly_scores_without_noise_and_draws_the_watched() -> None:
    done = fly(CartWorld(), "flat", range(5), Push(0.5), watch=[1, 4], every=2, at_once=2)
    np.testing.assert_array_equal(done.steps_N, [3, 4, 5, 6, 7])
    assert done.scores_N.shape == (5,) and done.details["place"].shape == (5,)
    assert [d.values["t"] for d in done.drawings[1]] == [0, 2, 4]
    assert [d.values["t"] for d in done.drawings[4]] == [0, 2, 4, 6, 7]
    assert len(fly(CartWorld(), "flat", [], Push(0.5)).scores_N) == 0


@pytest.mark.parametrize("case, push", [("hill", Push(0.0)), ("flat", None)])
def test_a_wrong_case_or_wrong_commands_are_one_clear_error(case: str, push: Push | None) -> None:
    class Narrow(Push):
        def act(self, world: CartWorld) -> NDArray[np.float32]:
            return np.zeros((1, 1), np.float32)

    pilot = push or Narrow(0.0)
    with pytest.raises(ConfigError, match=r"no case 'hill'|commands of shape \(1, 1\), not \(2, 2\)"):
        fly(CartWorld(), case, [1, 2], pilot)
    with pytest.raises(ConfigError):
        list(collect(CartWorld(), case, [1, 2], pilot))


@pytest.mark.parametrize("noise", [{"kind": "pink"}, {"scale": ()}, {"scale": (-1.0,)}, {"rho": 1.0}])
def test_wrong_noise_is_refused(noise: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Noise(**noise)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="3 noise scales for 2"):
        Noise("white", (1.0, 1.0, 1.0)).draw(0, 4, 2)


def test_registry_knows_the_worlds_and_answers_a_wrong_name() -> None:
    assert {"arm", "road", "mill"} <= set(names())
    with pytest.raises(ConfigError, match="no world 'rod'") as caught:
        make("rod")
    assert "did you mean road" in caught.value.next_step
    with pytest.raises(ConfigError) as caught:
        make("xyzzy")
    assert "installed worlds: arm" in caught.value.next_step


def offer(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    points = [EntryPoint("odd", value, "hagane.worlds") for value in values]
    monkeypatch.setattr(hagane.worlds.registry, "entry_points", lambda group: points)


def test_registry_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "no_such_package.world:make")
    with pytest.raises(ConfigError, match="needs the Python module 'no_such_package'"):
        make("odd")
    offer(monkeypatch, "hagane.worlds:no_such_factory")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        make("odd")
    offer(monkeypatch, "builtins:dict")
    with pytest.raises(ConfigError, match="gave a dict without embodiment"):
        make("odd")
    offer(monkeypatch, "builtins:dict", "builtins:list")
    with pytest.raises(ConfigError, match="several packages offer a world 'odd': builtins:dict, builtins:list"):
        make("odd")


def test_registry_names_the_extra_when_a_simulator_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mujoco", None)
    monkeypatch.delitem(__import__("sys").modules, "hagane.worlds.arm_cell", raising=False)
    with pytest.raises(ConfigError, match="needs the Python module 'mujoco'") as caught:
        make("arm")
    assert 'pip install "hagane[worlds]"' in caught.value.next_step
