"""Driving worlds against a server, through the guard: by hand, by verb, and when things break."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hagane.cli import main
from hagane.cli.drive import drive
from hagane.guard import State, load_envelope
from hagane.intake import read_logs
from hagane.intake.recorder import McapRecorder
from hagane.serve import ServerThread
from hagane.terms import ActionChunk, Embodiment, Observation, WireError
from hagane.wire import RemotePolicy
from hagane.worlds import World, make


class Steady:
    """The same action for ever; breaks in a chosen way after some chunks."""

    def __init__(self, world: World, values: list[float], fault: str = "", after: int = 3) -> None:
        self.embodiment, self.values, self.fault, self.left = world.embodiment, values, fault, after
        self.calls = 0

    def reset(self, embodiment: Embodiment, task: str) -> None:
        assert embodiment.name == self.embodiment.name

    def act(self, observation: Observation) -> ActionChunk:
        self.calls += 1
        e = self.embodiment
        actions = np.tile(np.array(self.values, np.float32), (1, e.horizon, 1))
        start_ns, step_ns = observation.time_ns, e.step_ns
        if self.calls > self.left:
            match self.fault:
                case "dead":
                    raise WireError("the connection was lost")
                case "nan":
                    actions[0, 5] = np.nan
                case "narrow":
                    actions = actions[:, :, :1]
                case "old":
                    start_ns = start_ns - 10**10
                case "wild":
                    actions *= (-1e6) ** self.calls
        return ActionChunk(actions, start_ns, step_ns, "weights-1")


@pytest.fixture(scope="module")
def mill() -> World:
    return make("mill")


@pytest.fixture(scope="module")
def road() -> World:
    return make("road")


def test_a_steady_policy_drives_the_mill_to_its_end(mill: World) -> None:
    policy = Steady(mill, [35.0, 12.0])
    result = drive(mill, mill.cases[0], 7, policy, load_envelope(mill.embodiment))
    assert result.steps == mill.step_limit and not result.failed and result.misses == 0
    assert policy.calls == mill.step_limit // mill.embodiment.execute_steps
    assert np.isfinite(result.score) and result.state is State.NOMINAL


def test_lockstep_is_deterministic_and_the_same_through_a_server(mill: World, tmp_path: Path) -> None:
    envelope, case = load_envelope(mill.embodiment), mill.cases[0]
    alone = drive(mill, case, 7, Steady(mill, [40.0, 11.0]), envelope)
    again = drive(mill, case, 7, Steady(mill, [40.0, 11.0]), envelope)
    served = Steady(mill, [40.0, 11.0])
    with ServerThread(served, {"mill": mill.embodiment}) as server, RemotePolicy(server.url) as policy:
        remote = drive(mill, case, 7, policy, envelope)
    assert alone.score == again.score == remote.score
    assert alone.interventions == again.interventions == remote.interventions
    assert len(remote.latency_ms) == served.calls


@pytest.mark.parametrize(
    ("fault", "kind"), [("nan", "not-finite"), ("narrow", "schema"), ("old", "stale-observation"), ("dead", "watchdog")]
)
def test_a_policy_that_breaks_leads_to_the_fallback(fault: str, kind: str, road: World, tmp_path: Path) -> None:
    policy = Steady(road, [1.0, 0.0], fault)
    path = tmp_path / "run.mcap"
    with McapRecorder(path, road.embodiment, wait=True) as recorder:
        result = drive(road, road.cases[0], 11, policy, load_envelope(road.embodiment), recorder)
    assert result.state is State.SAFE_STOP and result.failed
    assert result.interventions[kind] >= 1 and result.interventions["watchdog"] == 1
    (episode,) = read_logs(path, road.embodiment)
    # it braked, gently, and the recording shows it
    assert episode.streams["drive"].values[-1].tolist() == [-2.0, 0.0]
    assert episode.streams["ego"].values[-1, 0] < episode.streams["ego"].values[20, 0]
    assert episode.outcome == "failure"


def test_wild_actions_stay_in_the_envelope(road: World, tmp_path: Path) -> None:
    with McapRecorder(tmp_path / "run.mcap", road.embodiment, wait=True) as recorder:
        result = drive(
            road, road.cases[0], 3, Steady(road, [1.0, 0.01], "wild", 0), load_envelope(road.embodiment), recorder
        )
    assert result.interventions["range"] > 0 and result.interventions["rate"] > 0
    (episode,) = read_logs(tmp_path / "run.mcap", road.embodiment)
    commands = episode.streams["drive"].values
    assert (commands >= np.float32([-6, -0.2])).all() and (commands <= np.float32([3, 0.2])).all()
    assert (np.abs(np.diff(commands, axis=0)) <= np.array([6.0, 0.05]) + 1e-5).all()


def test_the_verb_prints_a_table_and_records(road: World, tmp_path: Path, capsys: Any) -> None:
    with ServerThread(Steady(road, [0.0, 0.0]), {"road": road.embodiment}, checkpoint_id="weights-1") as server:
        argv = ["drive", "road", "--at", server.url, "--episodes", "2", "--record", str(tmp_path)]
        assert main(argv) == 0
    out = capsys.readouterr().out
    assert "right-hand" in out and "left-hand" in out and "p99" in out and "2 drives" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "road-left-hand-1000001.mcap",
        "road-right-hand-1000000.mcap",
    ]
    episodes = [next(iter(read_logs(p, road.embodiment))) for p in sorted(tmp_path.iterdir())]
    assert {e.id for e in episodes} == {"road/left-hand/1000001", "road/right-hand/1000000"}
    assert all("drive.applied" in e.streams and e.task for e in episodes)


def test_a_server_that_dies_mid_drive_ends_the_verb_with_one_message(road: World, tmp_path: Path, capsys: Any) -> None:
    class Dying(Steady):
        def act(self, observation: Observation) -> ActionChunk:
            if self.calls == 5:
                raise SystemError("gone")
            return super().act(observation)

    with ServerThread(Dying(road, [0.5, 0.0]), {"road": road.embodiment}) as server:
        assert main(["drive", "road", "--at", server.url, "--record", str(tmp_path), "--episodes", "3"]) == 1
    caught = capsys.readouterr()
    assert "SAFE_STOP" in caught.err and "policy failed" in caught.err and "kept:" in caught.err
    assert "Traceback" not in caught.err and "watchdog 1" in caught.out
    assert [p.suffix for p in tmp_path.iterdir()] == [".mcap"]


def test_no_server_is_one_message_and_no_file(tmp_path: Path, capsys: Any) -> None:
    record = tmp_path / "drives"
    assert main(["drive", "mill", "--at", "ws://127.0.0.1:1", "--record", str(record)]) == 1
    assert "hagane serve" in capsys.readouterr().err and not record.exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["drive", "boat"], "no world 'boat'"),
        (["drive", "mill", "--case", "x"], "delay-25"),
        (["drive", "mill", "--episodes", "0"], "at least one"),
        (["drive", "mill", "--api-key-file", "/nowhere/key"], "key"),
        (["serve", "/nowhere", "--host", "0.0.0.0"], "--api-key-file"),
    ],
)
def test_wrong_flags_are_one_message(argv: list[str], words: str, capsys: Any) -> None:
    assert main(argv) == 1
    assert words in capsys.readouterr().err


def test_a_port_in_use_ends_the_serve_verb(road: World, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    from urllib.parse import urlsplit

    policies = pytest.importorskip("hagane.policy")

    loaded: Any = Steady(road, [0.0, 0.0])
    loaded.checkpoint_id, loaded.embodiments = "weights-1", {"road": road.embodiment}
    monkeypatch.setattr(policies, "load_policy", lambda path: loaded)
    with ServerThread(Steady(road, [0.0, 0.0]), {"road": road.embodiment}) as server:
        assert main(["serve", str(tmp_path), "--port", str(urlsplit(server.url).port)]) == 1
    assert "is in use" in capsys.readouterr().err


class Slow(Steady):
    """Answers after some control steps, with the number of the observation's step in every row."""

    def __init__(self, world: World, seconds: float) -> None:
        super().__init__(world, [0.0] * world.embodiment.action_width)
        self.seconds = seconds
        self.threads: set[str] = set()

    def act(self, observation: Observation) -> ActionChunk:
        self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        return super().act(observation)


def test_real_time_goes_on_while_the_policy_thinks(road: World) -> None:
    policy = Slow(road, 0.15)
    world = make("road")
    world.step_limit = 20  # two seconds
    result = drive(world, "right-hand", 1, policy, load_envelope(road.embodiment), realtime=True)
    assert result.steps == 20 and not result.failed
    assert threading.current_thread().name not in policy.threads
    assert result.latency_ms.min() >= 150 and result.interventions.get("exhausted", 0) == 0
