"""Evaluation: intervals against closed forms, policies flown like pilots, cards kept, silent zeros caught."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hagane.evaluate import (
    Entry,
    PolicyPilot,
    best_classical,
    bootstrap,
    by_who,
    check_conventions,
    evaluation_seeds,
    load_card,
    paired,
    record_replay,
    run_card,
    save_card,
    save_replay,
    wilson,
)
from hagane.terms import ActionChunk, ConfigError, Embodiment, Observation
from hagane.worlds import World, fly, make
from hagane.worlds.seeds import DATA_SEEDS, EVALUATION_SEEDS, TUNING_SEEDS


def test_wilson_equals_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
    for r, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(r, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(20, 20)[1] == 1.0 and wilson(0, 0) == (0.0, 1.0)


def test_bootstrap_is_near_the_normal_interval_and_repeats() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = bootstrap(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert bootstrap(values) == (low, high)
    assert bootstrap(np.array([2.0])) == (2.0, 2.0)


def test_paired_difference_is_tighter_than_the_two_rows() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 10, 100)
    mean, low, high = paired(hard + 1 + rng.normal(0, 0.1, 100), hard)
    assert 0.9 < low < mean < high < 1.1


def test_the_three_kinds_of_seeds_never_meet() -> None:
    ranges = (DATA_SEEDS, TUNING_SEEDS, EVALUATION_SEEDS)
    assert all(a.stop <= b.start for a, b in pairwise(ranges))
    assert all(seed in EVALUATION_SEEDS for seed in evaluation_seeds(50))


class ExpertPolicy:
    """The mill's expert dressed as a policy: knows the world it is flown in, and its own encode and decode."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.seen: list[Observation] = []
        self.embodiment = make("mill").embodiment

    def reset(self, embodiment: Embodiment, task: str) -> None:
        if embodiment.name != self.embodiment.name:
            raise ConfigError("knows the mill only")

    def act(self, observation: Observation) -> ActionChunk:
        self.seen.append(observation)
        e = self.embodiment
        low, high = (np.array(c, np.float32) for c in (e.act[0].low, e.act[0].high))
        middle = np.broadcast_to((low + high) / 2, (len(observation), e.horizon, e.action_width))
        return ActionChunk(middle.astype(np.float32), observation.time_ns, e.step_ns, "")

    def roundtrip_actions(self, embodiment: str, actions_NHA: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.fault == "swapped":
            return actions_NHA[..., ::-1]
        if self.fault == "negated":
            return -actions_NHA
        if self.fault == "scaled":
            return actions_NHA * 1.4
        return actions_NHA

    def normalised(self, observation: Observation) -> dict[str, NDArray[np.float32]]:
        out = {}
        for name, w in observation.channels.items():
            flat = w.values[w.valid].reshape(-1, w.values.shape[-1])
            centre, scale = flat.mean(0), np.maximum(flat.std(0), 1e-3)
            if self.fault == "stale statistics" and name == "pv":
                centre, scale = centre * 0, scale / 1000
            out[name] = ((w.values - centre) / scale).astype(np.float32)
        return out


def test_a_policy_flies_the_same_loop_as_a_pilot_and_sees_what_was_applied() -> None:
    world, policy = make("mill"), ExpertPolicy()
    outcome = fly(world, world.cases[0], evaluation_seeds(3), PolicyPilot(policy))
    assert outcome.scores_N.shape == (3,) and np.isfinite(outcome.scores_N).all()
    assert len(policy.seen) == world.step_limit // world.embodiment.execute_steps
    act = world.embodiment.act[0]
    first, later = policy.seen[0].channels[act.name], policy.seen[5].channels[act.name]
    assert not first.valid.any(), "nothing was applied before the first step"
    middle = (np.array(act.low) + np.array(act.high)) / 2
    assert later.valid[:, 0].all() and np.allclose(later.values[:, 0], middle, rtol=0.2)


def test_copies_do_not_depend_on_how_many_fly_together() -> None:
    world = make("mill")
    alone = fly(world, world.cases[0], evaluation_seeds(1), PolicyPilot(ExpertPolicy())).scores_N
    crowd = fly(world, world.cases[0], evaluation_seeds(5), PolicyPilot(ExpertPolicy())).scores_N
    assert alone[0] == crowd[0]


def test_a_card_has_all_rows_and_comes_back_from_disk(tmp_path: Path) -> None:
    entries = [Entry("ours", 3, partial(ExpertPolicy)), Entry("classical: PI", 4), Entry("expert", 4)]
    said: list[str] = []
    card = run_card("mill", entries, checkpoint_id="abc", progress=lambda case, who, score, n: said.append(who))
    assert said == ["ours", "classical: PI", "expert"]
    assert [r.n for r in card.rows] == [3, 4, 4] and all(r.low <= r.score <= r.high for r in card.rows)
    assert card.row("expert").score > best_classical(card).score > card.row("ours").score
    assert len(card.seeds) == 4 and set(by_who(card)) == {"ours", "classical: PI", "expert"}
    save_card(tmp_path / "scorecards" / "mill.json", card)
    assert load_card(tmp_path / "scorecards" / "mill.json") == card
    (tmp_path / "bad.json").write_text('{"embodiment": 3}')
    with pytest.raises(ConfigError, match="no score card"):
        load_card(tmp_path / "bad.json")


def test_rows_in_other_processes_score_the_same() -> None:
    entries = [Entry("classical: PI", 3), Entry("expert", 3)]
    assert run_card("mill", entries, processes=2).rows == run_card("mill", entries).rows


def test_an_unknown_row_is_refused_before_anything_flies() -> None:
    with pytest.raises(ConfigError, match="no row 'classical: magic'"):
        run_card("mill", [Entry("classical: magic", 2)])


@pytest.mark.parametrize("fault", ["", "swapped", "negated", "scaled", "stale statistics"])
def test_silent_zeros_are_caught(fault: str) -> None:
    world: World = make("mill")
    checks = check_conventions(ExpertPolicy(fault), world, evaluation_seeds(2))
    failed = [c.name for c in checks if not c.passed]
    assert bool(failed) == bool(fault), failed
    if fault == "stale statistics":
        assert failed == ["scale of pv"]


def test_a_replay_holds_frames_of_each_row(tmp_path: Path) -> None:
    world = make("mill")
    pilots = {"expert": world.pilots["expert"](), "ours": PolicyPilot(ExpertPolicy())}
    replay = record_replay(world, pilots, evaluation_seeds(1), every=10)
    assert [e["who"] for e in replay["episodes"]] == ["expert", "ours"]
    assert replay["kind"] == "mill" and replay["rate_hz"] == pytest.approx(0.1)
    assert len(replay["episodes"][0]["frames"]) == world.step_limit // 10 + 1
    save_replay(tmp_path / "replays" / "mill.json", replay)
    assert (tmp_path / "replays" / "mill.json").stat().st_size > 1000


def test_history_is_emptied_between_episodes() -> None:
    world, policy = make("mill"), ExpertPolicy()
    pilot = PolicyPilot(policy)
    for _ in range(2):
        fly(world, world.cases[0], evaluation_seeds(1), pilot)
    again = policy.seen[len(policy.seen) // 2]
    assert int(again.time_ns[0]) == 0
    assert not again.channels["pv"].valid[:, 1:].any()
