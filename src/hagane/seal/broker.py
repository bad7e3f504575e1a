"""The key broker: the process outside a jail that judges its requests, keeps the ledger and hands out keys.

It believes nothing that comes from the jail. A key goes out only for a shard on a list that the holder of the wrapping
key wrote, of a data set that this jail asked for and was allowed, and is still allowed now. What the jail can make it
write is bounded: a refusal once each and at most `REFUSALS` of them, at most `NOTES` notes of known kinds in the form
that the keeper's own code gives them.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hagane.seal.broker_wire import (
    Answer,
    Ask,
    Fault,
    Given,
    Key,
    Note,
    Noted,
    Refusal,
    Reply,
    Request,
    Tell,
    Told,
    decode_request,
    encode,
    receive_frame,
    send_frame,
)
from hagane.seal.folder import OwnKeys, SealedFolder, open_folder
from hagane.seal.keyring import Keyring
from hagane.seal.names import is_name
from hagane.terms import PURPOSES, ConfigError, Decision, HaganeError, Refused, StoreError, WireError

REFUSALS = 100
"""Refusals that one jail can write to the ledger; the last one says that there are more."""
NOTES = 20_000
"""Notes that one jail can write to the ledger."""
CONNECTIONS = 256
"""Open connections of one jail."""


class Writes(Protocol):
    """Where entries go: a `Ledger`."""

    def append(self, kind: str, body: Mapping[str, Any]) -> int:
        """Add an entry; returns its index."""
        ...


@dataclass(frozen=True)
class Rules:
    """What the keeper decides; every callable may be called from several threads, one at a time."""

    decide: Callable[[str, str], Decision]
    """`permit` for (data set, purpose) of this site now, jailed; writes nothing."""
    folders: Callable[[str], Sequence[Path]]
    """Sealed folders of a data set; none for a name that no data set here has."""
    notes: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = field(default_factory=dict)
    """By kind: checks what the jail wants noted and returns what is; raises a `HaganeError` to refuse."""
    tell: Callable[[str, Mapping[str, Any]], None] = lambda event, fields: None
    """Gets what the jail wants to show; raises a `HaganeError` to refuse."""


class Broker:
    """The broker's part of one jail: what was allowed to it, and the answers."""

    def __init__(self, rules: Rules, keyring: Keyring, ledger: Writes, granted: Iterable[tuple[str, str]] = ()) -> None:
        self.rules, self.keyring, self.ledger = rules, keyring, ledger
        self._one = threading.Lock()
        self._allowed: set[tuple[str, str]] = set(granted)
        self._refused: set[tuple[str, str]] = set()
        self._notes = 0
        self._opened: dict[Path, tuple[tuple[int, int, int], OwnKeys]] = {}

    def reply(self, data: bytes) -> tuple[Reply, bool]:
        """The reply to a frame, and whether the connection goes on."""
        try:
            request = decode_request(data)
        except WireError as e:
            return Fault(e.what), False
        with self._one:
            try:
                return self._answer(request), True
            except HaganeError as e:
                return Refusal(e.what), True
            except OSError as e:
                return Refusal(f"the broker cannot do it: {e.strerror}"), True

    def _answer(self, request: Request) -> Reply:
        match request:
            case Ask():
                decision = self._ask(request.dataset, request.purpose)
                return Answer(decision.allowed, decision.reason)
            case Key():
                return Given(self._key(request.dataset, request.shard))
            case Note():
                if request.kind not in self.rules.notes:
                    raise Refused(f"no notes of kind {request.kind[:64]!a} are taken from a jail")
                if self._notes >= NOTES:
                    raise Refused("too many notes from one jail")
                body = self.rules.notes[request.kind](request.body)
                self._notes += 1
                return Noted(self.ledger.append(request.kind, {**body, "from": "jail"}))
            case Tell():
                self.rules.tell(request.event, request.fields)
                return Told()

    def _ask(self, dataset: str, purpose: str) -> Decision:
        known = is_name(dataset) and bool(self.rules.folders(dataset))
        # words of the jail's own reach neither the ledger nor the keeper
        name, what = dataset if known else "(unknown)", purpose if purpose in PURPOSES else "(unknown)"
        if (name, what) != (dataset, purpose):
            decision = Decision(False, "there is no such data set, or no such purpose")
        else:
            decision = self.rules.decide(dataset, purpose)
        if not decision.allowed:
            self._allowed.discard((dataset, purpose))
            self._write_refusal(name, what, decision.reason)
        elif (dataset, purpose) not in self._allowed:
            self.ledger.append("ask", {"dataset": dataset, "purpose": purpose, "from": "jail"})
            self._allowed.add((dataset, purpose))
        return decision

    def _write_refusal(self, dataset: str, purpose: str, reason: str) -> None:
        if (dataset, purpose) in self._refused or len(self._refused) >= REFUSALS:
            return
        self._refused.add((dataset, purpose))
        more = {"more": "not listed from here"} if len(self._refused) == REFUSALS else {}
        self.ledger.append(
            "refusal", {"dataset": dataset, "purpose": purpose, "reason": reason, "from": "jail", **more}
        )

    def _granted(self, dataset: str) -> bool:
        """True while some purpose that this jail was allowed is allowed now."""
        return any(self.rules.decide(d, p).allowed for d, p in self._allowed if d == dataset)

    def _key(self, dataset: str, shard: str) -> bytes:
        if not is_name(dataset) or not self._granted(dataset):
            raise Refused("no keys: this jail was not allowed to use the data set, or is not any more")
        for path in self.rules.folders(dataset):
            keys = self._keys(path)
            if keys.folder.name == dataset and shard in keys.folder.shards:
                return keys.key(dataset, shard)
        raise Refused("no sealed file of this data set has that shard id")

    def _keys(self, path: Path) -> OwnKeys:
        """The folder's keys; its list is read and checked again when it changed."""
        try:
            now = (path / "sealed.json").stat()
        except OSError as e:
            raise StoreError(f"no sealed folder: {e.strerror}", where=str(path)) from None
        mark = (now.st_ino, now.st_mtime_ns, now.st_size)
        if path not in self._opened or self._opened[path][0] != mark:
            folder: SealedFolder = open_folder(path)
            self._opened[path] = mark, OwnKeys(folder, self.keyring)
        return self._opened[path][1]


class Serving:
    """A broker that answers on a socket, in threads of its own."""

    def __init__(self, listener: socket.socket, broker: Broker) -> None:
        self._listener, self._broker = listener, broker
        self._links: dict[socket.socket, threading.Thread] = {}
        self._mutex, self._closed = threading.Lock(), False
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Answer no more; returns once every thread has ended."""
        with self._mutex:
            self._closed = True
            links = dict(self._links)
        for link in (self._listener, *links):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept or recv
        self._accepting.join()
        for thread in links.values():
            thread.join()
        self._listener.close()

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            with self._mutex:
                if self._closed or len(self._links) >= CONNECTIONS:
                    link.close()
                    continue
                thread = threading.Thread(target=self._talk, args=(link,), daemon=True)
                self._links[link] = thread
                thread.start()

    def _talk(self, link: socket.socket) -> None:
        try:
            going = True
            while going and (data := receive_frame(link)) is not None:
                reply, going = self._broker.reply(data)
                send_frame(link, encode(reply))
        except WireError as e:
            with contextlib.suppress(OSError):
                send_frame(link, encode(Fault(e.what)))
        except OSError:
            pass  # the jail is gone: nobody to tell
        finally:
            with self._mutex:
                self._links.pop(link, None)
            link.close()


def serve(
    listener: socket.socket,
    rules: Rules,
    keyring: Keyring,
    ledger: Writes,
    granted: Iterable[tuple[str, str]] = (),
) -> Serving:
    """Answer one jail's requests until `close`.

    Args:
        listener: a listening unix stream socket; whoever can connect is inside the jail.
        rules: what the keeper decides.
        keyring: wrapping keys of the data sets.
        ledger: gets asks, refusals and notes.
        granted: (data set, purpose) that the keeper asked for itself before it started the jail.

    Raises:
        ConfigError: the socket is no unix stream socket.
    """
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM:
        raise ConfigError("the broker answers on a unix stream socket only")
    return Serving(listener, Broker(rules, keyring, ledger, granted))
