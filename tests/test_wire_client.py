"""The client against servers that are not what they should be: every fault is a WireError, in bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from hagane.terms import Channel, Embodiment, HistoryBuffer, Observation, Reading, RemoteError, WireError
from hagane.wire import RemotePolicy, metadata_of, pack, unpack

ARM = Embodiment("arm", "robot", "member-robots", 20.0, 6, (Channel("joints"),), (Channel("action"),))


def observation(time_ns: int = 5) -> Observation:
    buffer = HistoryBuffer(ARM, 1)
    buffer.push({"joints": Reading(np.ones((1, 1)), np.ones(1, bool), np.zeros(1, np.float32))}, np.array([time_ns]))
    return buffer.observation(("go",))


@contextmanager
def odd_server(talk: Callable[[ServerConnection], None]) -> Iterator[str]:
    """A server that does what `talk` says with every connection."""
    with serve(talk, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join(5)


def answering(reply: Callable[[Any], bytes | str]) -> Callable[[ServerConnection], None]:
    def talk(connection: ServerConnection) -> None:
        connection.send(pack(metadata_of({"arm": ARM}, "w", "0")))
        for message in connection:
            connection.send(reply(unpack(message)))  # type: ignore[arg-type]

    return talk


GOOD = np.zeros((6, 1), np.float32)
REPLIES: dict[str, tuple[Callable[[Any], bytes | str], str]] = {
    "nonsense": (lambda r: b"\xc1\xc1", "0xc1"),
    "a list": (lambda r: pack([1]), "no array"),
    "no actions": (lambda r: pack({"action": GOOD}), "no array"),
    "another horizon": (lambda r: pack({"actions": GOOD[:3]}), "shape"),
    "another request's": (lambda r: pack({"actions": GOOD, "time_ns": r["time_ns"] - 1}), "answers the request"),
    "object array": (
        lambda r: pack({"actions": {b"__ndarray__": True, b"data": bytes(8), b"dtype": "|O", b"shape": [1]}}),
        "dtype",
    ),
    "an error": (lambda r: "out of memory", "out of memory"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_that_is_wrong_is_a_wire_error(name: str) -> None:
    reply, words = REPLIES[name]
    with odd_server(answering(reply)) as url, RemotePolicy(url, timeout_s=3) as policy:
        policy.reset(ARM, "go")
        with pytest.raises(WireError, match=words):
            policy.act(observation())


def test_a_plain_openpi_reply_is_enough() -> None:
    with odd_server(answering(lambda r: pack({"actions": GOOD + 1}))) as url, RemotePolicy(url) as policy:
        policy.reset(ARM, "go")
        chunk = policy.act(observation(77))
    assert chunk.actions_NHA.shape == (1, 6, 1) and chunk.start_ns.tolist() == [77] and chunk.checkpoint_id == ""


def test_values_that_are_not_finite_reach_the_guard() -> None:
    with odd_server(answering(lambda r: pack({"actions": GOOD * np.nan}))) as url, RemotePolicy(url) as policy:
        policy.reset(ARM, "go")
        assert np.isnan(policy.act(observation()).actions_NHA).all()


def test_a_server_that_closes_or_says_nothing() -> None:
    with odd_server(lambda c: c.close()) as url, pytest.raises(WireError, match="lost"):
        RemotePolicy(url).reset(ARM, "go")
    done = threading.Event()
    with odd_server(lambda c: done.wait(10) and None) as url:
        begin = time.perf_counter()
        with pytest.raises(WireError, match="no reply within"):
            RemotePolicy(url, timeout_s=0.2).reset(ARM, "go")
        assert time.perf_counter() - begin < 3
        done.set()


def test_a_text_first_is_an_error_of_the_server() -> None:
    with odd_server(lambda c: c.send("not ready")) as url, pytest.raises(RemoteError, match="not ready"):
        RemotePolicy(url).reset(ARM, "go")
