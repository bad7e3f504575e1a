"""Logs played again in their world, and the order of observed columns: planted faults are caught."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hagane.evaluate.conventions import check_order, expert_observations
from hagane.evaluate.recording import check_recording
from hagane.intake import read_logs
from hagane.intake.historian_write import write_historian
from hagane.terms import APPLIED, ConfigError, Episode, Observation
from hagane.worlds import World, collect, make

Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]
FAULTS: dict[str, Change] = {
    "swapped": lambda a: a[..., ::-1].copy(),
    "negated": lambda a: -a,
    "scaled": lambda a: a * np.float32(1.2),
}


def recorded(world: World, seed: int) -> Episode:
    (episode,) = collect(world, world.cases[0], [seed], world.pilots["expert"]())
    return episode


def with_fault(episode: Episode, change: Change, world: World) -> Episode:
    streams = dict(episode.streams)
    for channel in world.embodiment.act:
        for name in (channel.name, channel.name + APPLIED):
            streams[name] = replace(streams[name], values=change(streams[name].values))
    return replace(episode, streams=streams)


def failed(world: World, seed: int, episode: Episode) -> list[str]:
    return [c.name for c in check_recording(world, world.cases[0], seed, episode) if not c.passed]


@pytest.mark.parametrize("name", ["mill", "road"])
def test_a_recorded_episode_replays_to_what_it_recorded(name: str) -> None:
    world = make(name)
    checks = check_recording(world, world.cases[0], 3, recorded(world, 3))
    assert checks and all(c.passed for c in checks), checks


def test_the_arm_replays_to_the_same_outcome() -> None:
    pytest.importorskip("metaworld")
    world = make("arm")
    checks = check_recording(world, world.cases[0], 3, recorded(world, 3))
    assert "outcome of the replay" in {c.name for c in checks} and all(c.passed for c in checks), checks


@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("name", ["mill", "road"])
def test_a_fault_in_the_logs_actions_is_caught(name: str, fault: str) -> None:
    world = make(name)
    assert failed(world, 3, with_fault(recorded(world, 3), FAULTS[fault], world))


def test_another_seed_is_not_taken_for_the_recording() -> None:
    world = make("mill")
    assert failed(world, 4, recorded(world, 3))


def other(letter: str) -> str:
    return "KNIFE_D_SP{} [mm]" if letter == "P" else "KNIFE_P_SP{} [kPa]"


def test_a_log_on_disk_replays_too_and_a_swapped_header_is_caught(tmp_path: Path) -> None:
    world = make("mill")
    path = write_historian([recorded(world, 5)], world.embodiment, tmp_path / "log.csv")
    (episode,) = read_logs(path, world.embodiment)
    assert not failed(world, 5, episode)
    # the plant's export names the two set points the wrong way round; the columns' units still fit their names
    head, rest = path.read_text().split("\n", 1)
    head = re.sub(r"KNIFE_([PD])_SP(\w*) \[\w+\]", lambda m: other(m[1]).format(m[2]), head)
    path.write_text(head + "\n" + rest)
    (episode,) = read_logs(path, world.embodiment)
    assert failed(world, 5, episode)


def test_an_episode_without_actions_is_refused_in_words() -> None:
    world = make("mill")
    episode = recorded(world, 3)
    observed = {c.name: episode.streams[c.name] for c in world.embodiment.observe}
    with pytest.raises(ConfigError, match="no actions under 'knife'"):
        check_recording(world, world.cases[0], 3, replace(episode, streams=observed))


class Affine:
    """Shows the network each channel at unit scale, with a fault planted in one channel."""

    def __init__(self, channel: str = "", columns: tuple[int, ...] = (), sign: float = 1.0, clip: float = 8.0) -> None:
        self.channel, self.columns, self.sign, self.clip = channel, columns, sign, clip

    def roundtrip_actions(self, embodiment: str, actions_NHA: NDArray[np.float32]) -> NDArray[np.float32]:
        return actions_NHA

    def normalised(self, observation: Observation) -> dict[str, NDArray[np.float32]]:
        out = {}
        for name, w in observation.channels.items():
            flat = w.values[w.valid].reshape(-1, w.values.shape[-1])
            x = (w.values - flat.mean(0)) / np.maximum(flat.std(0), 1e-6)
            if name == self.channel:
                x = self.sign * (x[..., list(self.columns)] if self.columns else x)
            out[name] = np.clip(x, -self.clip, self.clip).astype(np.float32)
        return out


@pytest.fixture(scope="module")
def mill_seen() -> Observation:
    return expert_observations(make("mill"), [1_000_000, 1_000_001])


@pytest.mark.parametrize("clip", [8.0, 1.0])
def test_order_holds_also_where_values_are_cut(mill_seen: Observation, clip: float) -> None:
    checks = check_order(Affine(clip=clip), mill_seen)
    assert {c.name for c in checks} == {"order of pv", "order of line", "order of sp", "order of knife"}
    assert all(c.passed for c in checks), checks


@pytest.mark.parametrize(
    ("channel", "columns", "sign"),
    [("line", (0, 2, 1), 1.0), ("pv", (), -1.0), ("sp", (1, 0, *range(2, 16)), 1.0), ("knife", (1, 0), 1.0)],
)
def test_a_swapped_or_turned_column_is_caught(
    mill_seen: Observation, channel: str, columns: tuple[int, ...], sign: float
) -> None:
    bad = [c.name for c in check_order(Affine(channel, columns, sign), mill_seen) if not c.passed]
    assert bad == [f"order of {channel}"]
