"""RemotePolicy: a policy server at the other end of a wire, with a bound on every wait."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from hagane.terms import ActionChunk, ConfigError, Embodiment, Observation, RemoteError, WireError
from hagane.wire.codec import Limits, pack, unpack
from hagane.wire.messages import chunk_of, interface_of, request_of


class RemotePolicy:
    """A Policy whose decisions are made by an openpi-compatible server.

    No single wait (to connect, to send, for a reply) takes longer than `timeout_s`. After any failure the
    connection is closed, so that a late answer can never be taken for the answer to a later question; the next
    `act` connects anew.

    Args:
        url: like "ws://127.0.0.1:8000".
        api_key: sent as "Authorization: Api-Key ...".
        timeout_s: the longest wait for a connection or for a reply.
        limits: the largest reply that is read.
    """

    def __init__(self, url: str, api_key: str = "", timeout_s: float = 5.0, limits: Limits | None = None) -> None:
        self.url, self.timeout_s = url, timeout_s
        self._api_key, self._limits = api_key, limits or Limits()
        self._connection: ClientConnection | None = None
        self._embodiment: Embodiment | None = None
        self.metadata: dict[str, Any] = {}
        self.latencies_ms: list[float] = []
        """Round trip of every request since the last `reset`."""
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ConfigError(f"{url!r} is no address of a policy server", next_step="write ws://HOST:PORT")

    @property
    def checkpoint_id(self) -> str:
        """Digest of the weights that the server said it serves; "" before the first connection."""
        found = self.metadata.get("checkpoint_id", "")
        return found if isinstance(found, str) else ""

    def reset(self, embodiment: Embodiment, task: str) -> None:
        """Connect if needed, and check that the server means the same machine.

        Raises:
            ConfigError: the server does not know this embodiment, or knows it otherwise.
            WireError: no connection, or a server that is no policy server.
        """
        self._embodiment = embodiment
        self.latencies_ms = []
        if self._connection is None:
            self._open()
        machines = self.metadata.get("embodiments")
        if isinstance(machines, dict):
            _check_interface(embodiment, machines, self.url)

    def act(self, observation: Observation) -> ActionChunk:
        """Ask for a chunk for each of the N machines, one after the other.

        Raises:
            WireError: no connection, no reply in time, or a reply that cannot be read.
            RemoteError: the server answered with an error.
        """
        embodiment = self._embodiment
        if embodiment is None or embodiment.name != observation.embodiment:
            raise ConfigError(f"call reset with embodiment {observation.embodiment!r} first", where="RemotePolicy")
        chunks = []
        for i in range(len(observation)):
            begin = time.perf_counter()
            try:
                reply = self._ask(pack(request_of(observation, i)))
                chunks.append(chunk_of(reply, embodiment, int(observation.time_ns[i])))
            except WireError:
                self.close()
                raise
            self.latencies_ms.append(1e3 * (time.perf_counter() - begin))
        return ActionChunk(
            np.concatenate([c.actions_NHA for c in chunks]),
            np.concatenate([c.start_ns for c in chunks]),
            embodiment.step_ns,
            chunks[0].checkpoint_id,
        )

    def close(self) -> None:
        """Drop the connection, without waiting for the other side."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close_timeout = 0.2
            connection.close()

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open(self) -> None:
        headers = {"Authorization": f"Api-Key {self._api_key}"} if self._api_key else None
        try:
            connection = connect(
                self.url,
                additional_headers=headers,
                compression=None,
                max_size=self._limits.frame_bytes,
                open_timeout=self.timeout_s,
                close_timeout=1.0,
                # the reply has its own bound; pings would only add traffic beside it
                ping_interval=None,
                proxy=None,
            )
            # entered by hand: it outlives this call, and `close` leaves it
            self._connection = connection.__enter__()
        except InvalidStatus as e:
            status = e.response.status_code
            step = "give the right key" if status == 401 else "check the address and the server's own log"
            raise RemoteError(
                f"the server refused the connection (HTTP {status})", where=self.url, next_step=step
            ) from e
        except (OSError, WebSocketException, TimeoutError) as e:
            step = "start one with `hagane serve CHECKPOINT`, or check the address"
            raise WireError(f"no policy server answers: {e}", where=self.url, next_step=step) from e
        # a peer that stops reading must not hold `send` for ever
        seconds, rest = divmod(self.timeout_s, 1)
        bound = struct.pack("ll", int(seconds), int(rest * 1e6))
        try:
            # a server that closed at once leaves a socket that can no longer be set: `_receive` says so
            with contextlib.suppress(OSError):
                self._connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bound)
            metadata = self._receive()
        except WireError:
            self.close()
            raise
        self.metadata = metadata if isinstance(metadata, dict) else {}

    def _ask(self, request: bytes) -> Any:
        if self._connection is None:
            self._open()
        assert self._connection is not None
        try:
            self._connection.send(request)
        except (OSError, WebSocketException) as e:
            raise WireError(f"the connection was lost: {e}", where=self.url, next_step="is the server alive?") from e
        return self._receive()

    def _receive(self) -> Any:
        assert self._connection is not None
        try:
            message = self._connection.recv(timeout=self.timeout_s)
        except TimeoutError as e:
            step = "look at the server's load, or allow more time"
            raise WireError(f"no reply within {self.timeout_s:g} s", where=self.url, next_step=step) from e
        except (OSError, WebSocketException) as e:
            raise WireError(f"the connection was lost: {e}", where=self.url, next_step="is the server alive?") from e
        if isinstance(message, str):
            raise RemoteError(f"the server answered with an error: {message[:2000]}", where=self.url)
        return unpack(message, self._limits)


def _check_interface(embodiment: Embodiment, machines: dict[str, Any], url: str) -> None:
    theirs, ours = machines.get(embodiment.name), interface_of(embodiment)
    if theirs is None:
        known = ", ".join(sorted(map(str, machines)))
        raise ConfigError(f"the server has no embodiment {embodiment.name!r}", where=url, next_step=f"it has: {known}")
    if theirs == ours:
        return
    differing = [key for key in ours if not isinstance(theirs, dict) or theirs.get(key) != ours[key]]
    raise ConfigError(
        f"the server knows embodiment {embodiment.name!r} with another {' and '.join(differing) or 'shape'}",
        where=url,
        next_step="use the embodiment file that the checkpoint was trained with",
    )
