"""The jail's side of the broker: asks, gets keys, notes and tells over one unix socket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from hagane.seal.broker_wire import (
    Answer,
    Ask,
    Fault,
    Given,
    Key,
    Note,
    Noted,
    Refusal,
    Request,
    Tell,
    Told,
    decode_reply,
    encode,
    receive_frame,
    send_frame,
)
from hagane.terms import Decision, Refused, StoreError, WireError

T = TypeVar("T")


class Broker:
    """Speaks to the broker. Each thread and process has a connection of its own; a broken one is never made again.

    Args:
        path: the broker's socket.
        timeout_s: seconds to wait for an answer.
    """

    def __init__(self, path: Path, timeout_s: float = 120.0) -> None:
        self.path, self.timeout_s = Path(path), timeout_s
        self._own = threading.local()

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.timeout_s)

    def ask(self, dataset: str, purpose: str) -> Decision:
        """What `permit` says, judged outside and written to the ledger.

        Raises:
            StoreError: the broker is not there, or failed.
        """
        answer = self._call(Ask(dataset, purpose), Answer)
        return Decision(answer.allowed, answer.reason)

    def require(self, dataset: str, purpose: str) -> None:
        """Go on only if the contract permits it.

        Raises:
            Refused: it does not.
            StoreError: the broker is not there, or failed.
        """
        decision = self.ask(dataset, purpose)
        if not decision.allowed:
            raise Refused(decision.reason, where=dataset)

    def key(self, dataset: str, shard: str) -> bytes:
        """The 32 bytes of a sealed file's key.

        Raises:
            Refused: this jail may not have it.
            StoreError: the broker is not there, or failed.
        """
        return self._call(Key(dataset, shard), Given).key

    def note(self, kind: str, body: Mapping[str, Any]) -> int:
        """Have an entry written to the ledger; returns its index.

        Raises:
            Refused: not of a kind or form that is taken from a jail.
            StoreError: the broker is not there, or failed; the body is no JSON.
        """
        return self._call(Note(kind, dict(body)), Noted).index

    def tell(self, event: str, fields: Mapping[str, Any]) -> None:
        """Have something shown outside.

        Raises:
            Refused: not of a kind or form that leaves the jail.
            StoreError: the broker is not there, or failed; the fields are no JSON.
        """
        self._call(Tell(event, dict(fields)), Told)

    def close(self) -> None:
        """End this thread's connection."""
        link, pid = getattr(self._own, "link", None), getattr(self._own, "pid", 0)
        if link is not None and pid == os.getpid():
            link.close()
            self._own.link = None

    def _call(self, request: Request, kind: type[T]) -> T:
        try:
            data = encode(request)
        except WireError as e:
            raise StoreError(e.what, where=str(self.path)) from None
        try:
            link = self._link()
            send_frame(link, data)
            answer = receive_frame(link)
            reply = decode_reply(answer) if answer else None
        except (WireError, OSError) as e:
            self._end()
            raise self._gone(e.what if isinstance(e, WireError) else e.strerror or str(e)) from None
        if reply is None:
            self._end()
            raise self._gone("it ended the connection")
        if isinstance(reply, Refusal):
            raise Refused(reply.refused, where=str(self.path))
        if isinstance(reply, kind):
            return reply
        self._end()
        what = reply.error if isinstance(reply, Fault) else "an answer to something else"
        raise StoreError(f"the broker says: {what}", where=str(self.path))

    def _link(self) -> socket.socket:
        if getattr(self._own, "pid", 0) != os.getpid():  # a fork shares nothing with its parent
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            link.settimeout(self.timeout_s)
            try:
                link.connect(str(self.path))
            except OSError:
                link.close()
                raise
            self._own.link, self._own.pid = link, os.getpid()
        if self._own.link is None:
            raise self._gone("the connection was ended before")
        own: socket.socket = self._own.link
        return own

    def _end(self) -> None:
        """After a failure nothing more is said on this connection: answers could be taken for those of others."""
        if getattr(self._own, "link", None) is not None:
            self._own.link.close()
            self._own.link = None

    def _gone(self, why: str) -> StoreError:
        return StoreError(
            f"the key broker does not answer: {why}",
            where=str(self.path),
            next_step="start the verb again; it starts the broker",
        )
