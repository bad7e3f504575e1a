"""The relay to a model in a jail: actions come out of it, and nothing else, whatever the jail says."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from hagane.seal.broker_wire import receive_frame, send_frame
from hagane.serve import RelayPolicy, ServerThread
from hagane.serve.relay import actions_of, answer_link, jail_answerer
from hagane.terms import ActionChunk, Channel, Embodiment, HistoryBuffer, Observation, Reading, WireError, digest_value
from hagane.wire import RemotePolicy, pack

LOOM = Embodiment(
    "loom", "plant", "member-looms", 10.0, 4,
    (Channel("tension", shape=(3,)),),
    (Channel("speed", shape=(2,), low=(-1.0, -0.1), high=(1.0, 0.1)),),
)  # fmt: skip
OTHER = Embodiment("loom", "plant", "member-looms", 20.0, 4, LOOM.observe, LOOM.act)
WEIGHTS = "ab" * 32
HELLO = {"checkpoint_id": WEIGHTS, "machines": [digest_value(LOOM)]}
GOOD = np.full((4, 2), 0.0625, np.float32)
SECRET = "member-looms-recipe"


def with_value(value: float) -> np.ndarray[Any, Any]:
    actions = GOOD.copy()
    actions[2, 1] = value
    return actions


class Steady:
    """Says the same; fails when the first tension is above 100."""

    def reset(self, embodiment: Embodiment, task: str) -> None:
        pass

    def act(self, observation: Observation) -> ActionChunk:
        if observation.channels["tension"].values[0, 0, 0] > 100:
            raise ValueError(SECRET)
        return ActionChunk(GOOD[None], observation.time_ns, LOOM.step_ns, WEIGHTS)


def observation(value: float = 1.0, size: int = 1) -> Observation:
    buffer = HistoryBuffer(LOOM, size)
    reading = Reading(np.full((size, 3), value, np.float32), np.ones(size, bool), np.zeros(size, np.float32))
    buffer.push({"tension": reading}, np.full(size, 7, np.int64))
    return buffer.observation(("weave",) * size)


@contextmanager
def relay(jail: Callable[[socket.socket], None], timeout_s: float = 5.0) -> Iterator[RelayPolicy]:
    """A relay to what `jail` says on the other end, in a thread."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        with theirs, contextlib.suppress(OSError):
            jail(theirs)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        with ours:
            yield RelayPolicy(ours, (LOOM,), timeout_s, timeout_s)
    finally:
        thread.join(10)
        assert not thread.is_alive()


def honest(link: socket.socket) -> None:
    answer_link(link, jail_answerer(Steady(), {"loom": LOOM}), WEIGHTS)


def saying(*frames: bytes) -> Callable[[socket.socket], None]:
    """A jail that greets as it should, and answers each request with the next frame, whatever is in it."""

    def jail(link: socket.socket) -> None:
        send_frame(link, pack(HELLO))
        for frame in frames:
            if receive_frame(link) is None:
                return
            send_frame(link, frame)
        while receive_frame(link) is not None:
            pass

    return jail


def silent(link: socket.socket) -> None:
    send_frame(link, pack(HELLO))
    while receive_frame(link) is not None:
        pass


def dripping(link: socket.socket) -> None:
    """Every byte is in time, the frame never is."""
    send_frame(link, pack(HELLO))
    receive_frame(link)
    link.sendall(struct.pack(">I", 60))
    pause = threading.Event()
    while not pause.wait(0.02):
        link.sendall(b"x")


def test_actions_come_out_and_the_jail_goes_on_after_a_failed_request() -> None:
    with relay(honest) as policy:
        assert policy.checkpoint_id == WEIGHTS and policy.embodiments == {"loom": LOOM}
        chunk = policy.act(observation(size=3))
        np.testing.assert_array_equal(chunk.actions_NHA, np.stack([GOOD] * 3))
        assert chunk.checkpoint_id == WEIGHTS and chunk.start_ns.tolist() == [7, 7, 7]
        with pytest.raises(WireError, match="failed on this request") as e:
            policy.act(observation(200.0))
        assert SECRET not in str(e.value)
        assert not policy.failed and policy.act(observation()).actions_NHA.shape == (1, 4, 2)


LIES: dict[str, bytes] = {
    "nan": pack({"actions": with_value(np.nan)}),
    "infinite": pack({"actions": with_value(np.inf)}),
    "above the limit": pack({"actions": with_value(0.101)}),
    "below the limit": pack({"actions": with_value(-0.101)}),
    "another shape": pack({"actions": GOOD[:3]}),
    "a batch": pack({"actions": GOOD[None]}),
    "other columns": pack({"actions": np.zeros((4, 3), np.float32)}),
    "doubles": pack({"actions": GOOD.astype(np.float64)}),
    "big endian": pack({"actions": GOOD.astype(">f4")}),
    "whole numbers": pack({"actions": np.zeros((4, 2), np.int32)}),
    "a list": pack({"actions": GOOD.tolist()}),
    "a text beside": pack({"actions": GOOD, "note": "steel"}),
    "a field beside": pack({"actions": GOOD, "t": 1}),
    "actions twice": b"\x82" + 2 * pack({"actions": GOOD})[1:],
    "failed with a reason": pack({"failed": SECRET[:16]}),
    "failed in other words": pack({"failed": 2}),
    "failed in an array": pack({"failed": GOOD}),
    "no map": pack(GOOD),
    "a text": pack(SECRET),
    "text alone": SECRET.encode(),
    "bytes after it": pack({"actions": GOOD}) + SECRET.encode(),
    "an empty map": pack({}),
    "a large frame": pack({"actions": np.zeros((64, 2), np.float32)}),
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_anything_else_is_the_end_and_carries_no_word_of_it(lie: str) -> None:
    ended: list[int] = []
    with relay(saying(LIES[lie], pack({"actions": GOOD}))) as policy:
        policy.ended = lambda: ended.append(1)
        for _ in range(2):
            with pytest.raises(WireError, match="not asked any more") as e:
                policy.act(observation())
            assert SECRET not in str(e.value) and "steel" not in str(e.value)
        assert policy.failed and ended == [1]


def test_the_same_frames_pass_when_they_are_right() -> None:
    edge = with_value(np.float32(0.1))
    with relay(saying(pack({"actions": edge}), pack({"failed": True}), pack({"actions": GOOD}))) as policy:
        np.testing.assert_array_equal(policy.act(observation()).actions_NHA[0], edge)
        with pytest.raises(WireError, match="failed on this request"):
            policy.act(observation())
        np.testing.assert_array_equal(policy.act(observation()).actions_NHA[0], GOOD)


def test_where_a_machine_states_no_limits_any_finite_action_passes() -> None:
    free = Embodiment("free", "robot", "member-arms", 10.0, 1, (Channel("q"),), (Channel("u"),))
    value = np.full((1, 1), 3e38, np.float32)
    np.testing.assert_array_equal(actions_of({"actions": value}, free), value)


@pytest.mark.parametrize(
    "hello",
    [
        {**HELLO, "checkpoint_id": SECRET},
        {**HELLO, "checkpoint_id": "AB" * 32},
        {**HELLO, "machines": []},
        {**HELLO, "machines": ["loom"]},
        {**HELLO, "machines": [digest_value(OTHER)]},
        {**HELLO, "machines": {digest_value(LOOM): 1}},
        {**HELLO, "note": "x"},
        {"checkpoint_id": WEIGHTS},
        [WEIGHTS],
        "hello",
    ],
)
def test_weights_that_are_not_what_is_known_out_here_are_not_served(hello: object) -> None:
    def jail(link: socket.socket) -> None:
        send_frame(link, pack(hello))
        receive_frame(link)

    with pytest.raises(WireError) as e, relay(jail):
        pass
    assert SECRET not in str(e.value)


def test_a_jail_that_says_nothing_at_the_start_is_given_up() -> None:
    with pytest.raises(WireError, match=r"no answer within 0\.2 s"), relay(lambda link: link.recv(1) and None, 0.2):
        pass


@pytest.mark.parametrize("jail", [silent, dripping])
def test_a_jail_that_hangs_is_given_up_in_time(jail: Callable[[socket.socket], None]) -> None:
    with relay(jail, timeout_s=0.3) as policy:
        begin = time.monotonic()
        with pytest.raises(WireError, match=r"no answer within 0\.3 s"):
            policy.act(observation())
        # the bound is a second even on a busy machine; without it this would never end
        assert time.monotonic() - begin < 10


def test_a_jail_that_died_is_noticed() -> None:
    with relay(lambda link: send_frame(link, pack(HELLO))) as policy, pytest.raises(WireError, match=r"ended|lost"):
        policy.act(observation())


def test_clients_of_a_hanging_jail_get_an_error_and_health_is_answered() -> None:
    with (
        relay(silent, timeout_s=0.5) as policy,
        ServerThread(policy, policy.embodiments, checkpoint_id=policy.checkpoint_id) as server,
        RemotePolicy(server.url, timeout_s=20.0) as client,
    ):
        client.reset(LOOM, "")
        parts, seen = urlsplit(server.url), []

        def look() -> None:
            asked = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
            asked.request("GET", "/healthz")
            seen.append(asked.getresponse().status)

        looking = threading.Thread(target=look)
        looking.start()
        with pytest.raises(WireError, match=r"not asked any more: no answer within 0\.5 s"):
            client.act(observation())
        looking.join(10)
        assert seen == [200]
