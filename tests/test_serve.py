"""The policy server as its clients see it: good ones, an unmodified openpi client, and hostile ones."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from hagane.serve import ServerThread
from hagane.terms import (
    ActionChunk,
    Channel,
    ConfigError,
    Embodiment,
    History,
    HistoryBuffer,
    Observation,
    Reading,
    RemoteError,
    WireError,
)
from hagane.wire import Limits, RemotePolicy, pack, request_of, unpack

CAR = Embodiment(
    "car", "vehicle", "member-cars", 10.0, 4,
    (Channel("ego", shape=(3,), history=History(3, 2)), Channel("agents", "set", (2, 3)), Channel("say", "text")),
    (Channel("drive", shape=(2,), history=History(2)),),
)  # fmt: skip
ARM = Embodiment("arm", "robot", "member-robots", 20.0, 6, (Channel("joints"),), (Channel("action"),))
MACHINES = {"car": CAR, "arm": ARM}


class Echo:
    """Says the sum of the newest ego sample; waits when told to, and fails when told to."""

    def __init__(self) -> None:
        self.resets: list[tuple[str, str]] = []
        self.seen: list[Observation] = []
        self.go = threading.Event()
        self.go.set()
        self.asked = threading.Event()
        self.fail: Exception | None = None
        self.spoil = 0.0

    def reset(self, embodiment: Embodiment, task: str) -> None:
        self.resets.append((embodiment.name, task))

    def act(self, observation: Observation) -> ActionChunk:
        self.asked.set()
        self.go.wait(10)
        if self.fail is not None:
            raise self.fail
        self.seen.append(observation)
        e = MACHINES[observation.embodiment]
        name = "ego" if e is CAR else "joints"
        value = observation.channels[name].values[:, 0].sum() + self.spoil
        actions = np.full((len(observation), e.horizon, e.action_width), value, np.float32)
        return ActionChunk(actions, observation.time_ns, e.step_ns, "weights-1")


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def server(echo: Echo) -> Iterator[ServerThread]:
    limits = Limits(frame_bytes=1 << 20)
    with ServerThread(echo, MACHINES, checkpoint_id="weights-1", limits=limits, drain_s=2.0) as running:
        yield running


def observation(value: float = 1.0, size: int = 1) -> Observation:
    buffer = HistoryBuffer(CAR, size)
    for t in range(6):
        ego = np.full((size, 3), value + t, np.float32)
        agents = np.full((size, 2, 3), 2.0, np.float32)
        valid = np.tile([True, False], (size, 1))
        age = np.full(size, 0.02, np.float32)
        buffer.push(
            {"ego": Reading(ego, np.ones(size, bool), age), "agents": Reading(agents, valid, age)},
            np.full(size, t * CAR.step_ns, np.int64),
        )
        if t < 5:
            buffer.push_action(np.full((size, 2), 0.1 * t, np.float32))
    return buffer.observation(("keep the lane",) * size)


def opened(server: ServerThread, **options: Any) -> ClientConnection:
    connection = connect(server.url, compression=None, **options).__enter__()
    connection.recv(timeout=5)
    return connection


def error_and_close(connection: ClientConnection) -> tuple[str, int]:
    """The text that the server sends, and its close code."""
    text = ""
    try:
        while True:
            message = connection.recv(timeout=5)
            text += message if isinstance(message, str) else ""
    except ConnectionClosed:
        pass
    code = connection.protocol.close_code
    assert code is not None
    return text, code


def health(server: ServerThread) -> tuple[int, str, float]:
    parts = urlsplit(server.url)
    begin = time.perf_counter()
    asked = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    asked.request("GET", "/healthz")
    reply = asked.getresponse()
    return reply.status, reply.read().decode().strip(), time.perf_counter() - begin


def alive(server: ServerThread) -> None:
    with RemotePolicy(server.url) as policy:
        policy.reset(CAR, "t")
        assert policy.act(observation()).actions_NHA.shape == (1, 4, 2)


def test_an_observation_arrives_whole_and_its_chunk_comes_back(server: ServerThread, echo: Echo) -> None:
    sent = observation()
    with RemotePolicy(server.url) as policy:
        policy.reset(CAR, "keep the lane")
        assert policy.checkpoint_id == "weights-1"
        chunk = policy.act(sent)
        policy.act(sent)
    assert chunk.actions_NHA.shape == (1, 4, 2) and chunk.actions_NHA[0, 0, 0] == 18.0
    assert chunk.step_ns == CAR.step_ns and chunk.start_ns[0] == sent.time_ns[0]
    assert chunk.checkpoint_id == "weights-1"
    got = echo.seen[0]
    assert got.tasks == ("keep the lane",) and got.time_ns[0] == sent.time_ns[0]
    assert got.channels.keys() == sent.channels.keys()
    for name, window in sent.channels.items():
        # tensors are made from these without a copy
        assert got.channels[name].values.flags.writeable and got.channels[name].values.flags.aligned
        np.testing.assert_array_equal(got.channels[name].values, window.values)
        np.testing.assert_array_equal(got.channels[name].valid, window.valid)
        np.testing.assert_allclose(got.channels[name].age_s, window.age_s, rtol=1e-6)
    assert echo.resets == [("car", "keep the lane")]


def test_several_machines_are_asked_for_one_by_one(server: ServerThread) -> None:
    with RemotePolicy(server.url) as policy:
        policy.reset(CAR, "")
        assert policy.act(observation(size=3)).actions_NHA.shape == (3, 4, 2)
        assert len(policy.latencies_ms) == 3


def test_metadata_and_timings(server: ServerThread) -> None:
    with connect(server.url, compression=None) as connection:
        metadata = unpack(connection.recv(timeout=5))  # type: ignore[arg-type]
        assert sorted(metadata["embodiments"]) == ["arm", "car"]
        assert metadata["embodiments"]["car"]["horizon"] == 4
        assert metadata["checkpoint_id"] == "weights-1" and metadata["hagane_version"]
        replies = []
        for _ in range(2):
            connection.send(pack(request_of(observation())))
            replies.append(unpack(connection.recv(timeout=5)))  # type: ignore[arg-type]
    assert replies[0]["actions"].dtype == np.float32
    assert "infer_ms" in replies[0]["policy_timing"]
    assert "prev_total_ms" not in replies[0]["server_timing"]
    assert replies[1]["server_timing"]["prev_total_ms"] > 0


def test_the_unmodified_openpi_client(server: ServerThread, echo: Echo) -> None:
    client = pytest.importorskip("openpi_client.websocket_client_policy", reason="openpi-client is not installed")
    parts = urlsplit(server.url)
    policy = client.WebsocketClientPolicy(parts.hostname, parts.port)
    assert policy.get_server_metadata()["embodiments"]["car"]["action_width"] == 2
    now = {
        "observation/ego": np.array([1.0, 2.0, 3.0]),
        "observation/agents": np.zeros((2, 3), np.float32),
        "prompt": "go",
        "embodiment": "car",
    }
    reply = policy.infer(now)
    np.testing.assert_allclose(reply["actions"], np.full((4, 2), 6.0))
    ego = echo.seen[0].channels["ego"]
    assert ego.values.shape == (1, 3, 3) and ego.valid.tolist() == [[True, False, False]]
    np.testing.assert_allclose(ego.age_s, [[0.0, 0.2, 0.4]])
    assert not echo.seen[0].channels["drive"].valid.any()
    with pytest.raises(RuntimeError, match="missing"):
        policy.infer({"prompt": "go", "embodiment": "car"})


def test_health_is_answered_while_the_policy_computes(server: ServerThread, echo: Echo) -> None:
    echo.go.clear()
    with opened(server) as connection:
        connection.send(pack(request_of(observation())))
        assert echo.asked.wait(5)
        status, text, seconds = health(server)
        assert (status, text) == (200, "OK") and seconds < 2
        echo.go.set()
        assert isinstance(connection.recv(timeout=5), bytes)


def test_only_the_newest_waiting_request_is_answered(server: ServerThread, echo: Echo) -> None:
    echo.go.clear()
    with opened(server) as connection:
        connection.send(pack(request_of(observation(1.0))))
        assert echo.asked.wait(5)
        for value in (2.0, 3.0, 4.0):
            connection.send(pack(request_of(observation(value))))
        connection.ping().wait(5)  # the server has read all of them
        echo.go.set()
        replies = [unpack(connection.recv(timeout=5)) for _ in range(2)]  # type: ignore[arg-type]
        with pytest.raises(TimeoutError):
            connection.recv(timeout=0.2)
    assert [r["actions"][0, 0] for r in replies] == [18.0, 27.0]


def spoilt(**changes: Any) -> bytes:
    request = {**request_of(observation()), **changes}
    return pack({k: v for k, v in request.items() if v is not ...})


REFUSED: dict[str, tuple[Any, str]] = {
    "random bytes": (np.random.default_rng(1).bytes(500), ""),
    "text": ("hello", "binary"),
    "a list": (pack([1, 2]), "map"),
    "object array": (pack({"a": {b"__ndarray__": True, b"data": bytes(8), b"dtype": "|O", b"shape": [1]}}), "dtype"),
    "huge shape": (
        pack({"a": {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f8", b"shape": [2**40]}}),
        "dimensions",
    ),
    "unknown embodiment": (spoilt(embodiment="boat"), "boat"),
    "no embodiment": (spoilt(embodiment=...), "embodiment"),
    "missing channel": (spoilt(**{"observation/ego": ...}), "'ego' is missing"),
    "misspelt channel": (spoilt(**{"observation/eggo": np.zeros(3)}), "observation/ego"),
    "wrong shape": (spoilt(**{"observation/ego": np.zeros((3, 4))}), "observation/ego"),
    "wrong history": (spoilt(**{"observation/ego": np.zeros((2, 3))}), "observation/ego"),
    "not finite": (spoilt(**{"observation/ego": np.full((3, 3), np.nan)}), "not finite"),
    "too large for float32": (spoilt(**{"observation/ego": np.full((3, 3), 1e300)}), "not finite"),
    "validity of numbers": (spoilt(**{"observation/ego/valid": np.ones(3)}), "observation/ego/valid"),
    "negative age": (spoilt(**{"observation/ego/age_s": np.full(3, -1.0)}), "age_s"),
    "prompt as number": (spoilt(prompt=3), "prompt"),
    "time as text": (spoilt(time_ns="now"), "time_ns"),
    "a number for an array": (spoilt(**{"observation/ego": 1.0}), "must be an array"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nonsense_gets_a_text_and_1011_and_others_go_on(name: str, server: ServerThread) -> None:
    frame, words = REFUSED[name]
    with RemotePolicy(server.url) as other:
        other.reset(CAR, "t")
        with opened(server) as connection:
            connection.send(frame)
            text, code = error_and_close(connection)
        assert code == 1011 and words in text and text
        assert "Traceback" not in text and ".py" not in text
        other.act(observation())


def test_values_that_are_not_valid_do_not_reach_the_policy(server: ServerThread, echo: Echo) -> None:
    agents = np.array([[[1.0, 2, 3], [np.nan, np.inf, 1e30]]])
    with opened(server) as connection:
        connection.send(spoilt(**{"observation/agents": agents}))
        connection.recv(timeout=5)
    assert echo.seen[0].channels["agents"].values[0, 0].tolist() == [[1, 2, 3], [0, 0, 0]]


def test_a_300_mb_message_is_refused_by_its_header(server: ServerThread) -> None:
    with opened(server) as connection:
        # a frame that announces 300 MB, and a little of it
        raw = bytes([0x82, 0xFF]) + (300 << 20).to_bytes(8, "big") + bytes(4) + bytes(1000)
        connection.socket.sendall(raw)
        _, code = error_and_close(connection)
    assert code == 1009
    alive(server)


def test_a_message_over_the_limit_is_refused(server: ServerThread) -> None:
    with opened(server) as connection:
        with contextlib.suppress(ConnectionClosed):
            connection.send(bytes(3 << 20))
        _, code = error_and_close(connection)
    assert code == 1009
    alive(server)


def test_noise_instead_of_http(server: ServerThread) -> None:
    parts = urlsplit(server.url)
    for noise in (b"\x00" * 50, b"GET\r\n\r\n", np.random.default_rng(2).bytes(3000)):
        with socket.create_connection((parts.hostname, parts.port), 5) as raw:
            raw.sendall(noise)
            raw.settimeout(5)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(4096):
                pass
    alive(server)


def test_a_policy_that_fails_says_so_without_its_traceback(server: ServerThread, echo: Echo) -> None:
    echo.fail = RuntimeError("secret path /home/someone")
    with opened(server) as connection:
        connection.send(pack(request_of(observation())))
        text, code = error_and_close(connection)
    assert code == 1011 and "policy failed" in text and "secret" not in text
    echo.fail = None
    alive(server)


def test_actions_that_are_not_finite_never_leave(server: ServerThread, echo: Echo) -> None:
    echo.spoil = float("nan")
    with RemotePolicy(server.url) as policy:
        policy.reset(CAR, "")
        with pytest.raises(RemoteError, match="not finite"):
            policy.act(observation())
        echo.spoil = 0.0
        policy.act(observation())  # connects anew


def test_the_key_is_checked(echo: Echo) -> None:
    with ServerThread(echo, MACHINES, api_key="correct horse") as server:
        for wrong in ("", "correct hors", "Correct horse"):
            with pytest.raises(RemoteError, match="401"):
                RemotePolicy(server.url, wrong).reset(CAR, "")
        with RemotePolicy(server.url, "correct horse") as policy:
            policy.reset(CAR, "")
            policy.act(observation())
        assert health(server)[0] == 200


def test_the_client_waits_no_longer_than_told(server: ServerThread, echo: Echo) -> None:
    with RemotePolicy(server.url, timeout_s=0.3) as policy:
        policy.reset(CAR, "")
        echo.go.clear()
        begin = time.perf_counter()
        with pytest.raises(WireError, match=r"no reply within 0\.3 s"):
            policy.act(observation(1.0))
        assert time.perf_counter() - begin < 3
        echo.go.set()
        # the late answer to the first question is not taken for this one's
        assert policy.act(observation(2.0)).actions_NHA[0, 0, 0] == 21.0


def test_a_client_that_means_another_machine_is_told(server: ServerThread) -> None:
    other = Embodiment("car", "vehicle", "member-cars", 20.0, 4, CAR.observe, CAR.act)
    with RemotePolicy(server.url) as policy:
        with pytest.raises(ConfigError, match="rate_hz"):
            policy.reset(other, "")
        boat = Embodiment("boat", "vehicle", "member-cars", 10.0, 4, CAR.observe, CAR.act)
        with pytest.raises(ConfigError, match="no embodiment 'boat'"):
            policy.reset(boat, "")


def test_no_server_and_no_address() -> None:
    with pytest.raises(WireError, match="hagane serve"):
        RemotePolicy("ws://127.0.0.1:1").reset(CAR, "")
    with pytest.raises(ConfigError, match="ws://"):
        RemotePolicy("127.0.0.1:8000")


def test_a_port_in_use_is_one_clear_message(server: ServerThread, echo: Echo) -> None:
    port = urlsplit(server.url).port or 0
    with pytest.raises(WireError, match="is in use") as e, ServerThread(echo, MACHINES, port=port):
        pass
    assert "--port" in str(e.value)


def test_too_many_clients_are_told(echo: Echo) -> None:
    with ServerThread(echo, MACHINES) as server:
        server._server._max_connections = 1
        with opened(server), pytest.raises(RemoteError, match="503"):
            RemotePolicy(server.url).reset(CAR, "")


def test_stopping_finishes_the_reply_under_way(echo: Echo) -> None:
    server = ServerThread(echo, MACHINES).start()
    with opened(server) as connection:
        echo.go.clear()
        connection.send(pack(request_of(observation())))
        assert echo.asked.wait(5)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        echo.go.set()
        assert isinstance(connection.recv(timeout=5), bytes)
        assert error_and_close(connection) == ("", 1001)
    stopping.join(5)
    assert not stopping.is_alive()


def test_sigterm_drains_and_a_frozen_policy_cannot_keep_the_process(tmp_path: Any) -> None:
    program = textwrap.dedent("""
        import sys, time
        import numpy as np
        from hagane.serve import serve_policy
        from hagane.terms import Channel, Embodiment
        import hagane.serve.server as s
        class Frozen:
            def reset(self, embodiment, task): pass
            def act(self, observation):
                print("asked", flush=True)
                time.sleep(600)
        arm = Embodiment("arm", "robot", "member-robots", 20.0, 6, (Channel("joints"),), (Channel("action"),))
        s.PolicyServer.__init__.__defaults__ = (*s.PolicyServer.__init__.__defaults__[:-1], 0.2)
        serve_policy(Frozen(), {"arm": arm}, port=0, ready=lambda url: print(url, flush=True))
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ})
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        with connect(url, compression=None) as connection:
            connection.recv(timeout=5)
            connection.send(pack({"observation/joints": np.zeros(1)}))
            assert process.stdout.readline().strip() == "asked"
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


def test_random_frames_never_take_the_server_down(server: ServerThread) -> None:
    rng, good = np.random.default_rng(3), pack(request_of(observation()))
    for _ in range(60):
        frame = bytearray(good)
        for at in rng.integers(0, len(frame), 4):
            frame[at] = rng.integers(256)
        with opened(server) as connection:
            connection.send(bytes(frame))
            answer = connection.recv(timeout=5)
            assert isinstance(answer, bytes) or "Traceback" not in answer
    alive(server)
