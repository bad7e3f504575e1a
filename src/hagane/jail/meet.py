"""Meet: a keeper finds the keepers of all listed peers, and goes on when each pair has accepted each other."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from ipaddress import IPv4Address

from hagane.jail.peers import NotListed, Peer, Seen, Shown, Vouching, exchange
from hagane.terms import JailError

Place = tuple[str, int]
"""Host and port of a keeper."""
_PATIENCE_S = 5.0  # for one connection that came in; a stranger may not hold up the others longer
_PAUSE_S = 0.05


def meet(
    own: Shown, peers: Mapping[Peer, Place], listen: Place, keys: Vouching, timeout_s: float = 60.0
) -> tuple[Seen, ...]:
    """Exchange records with every peer; each of them must do the same within the time.

    Who keeps the lower address listens, so that a pair has one connection. Keepers call in the order of addresses and
    then answer calls: the lowest has nobody to call, so no circle waits for itself.

    Args:
        own: what we say of our jail.
        peers: every peer, and where its keeper listens.
        listen: where we do.
        keys: how it is signed and verified.
        timeout_s: until all must have met, seconds.

    Raises:
        JailError: a peer is refused, refused us, or did not come in time.
    """
    end = time.monotonic() + timeout_s
    seen: list[Seen] = []
    with ExitStack() as held:
        server = held.enter_context(_server(listen)) if any(own.address < p.address for p in peers) else None
        for peer in sorted((p for p in peers if p.address < own.address), key=lambda p: p.address):
            with _call(peer, peers[peer], end) as connection:
                seen.append(exchange(connection, own, {peer.address: peer}, keys))
        awaited = {p.address: p for p in peers if own.address < p.address}
        while server and awaited:
            seen.append(_answer(server, own, awaited, keys, end))
            del awaited[IPv4Address(seen[-1].address)]
    return tuple(seen)


def _server(listen: Place) -> socket.socket:
    try:
        return socket.create_server(listen, backlog=64)
    except OSError as e:
        raise JailError(
            f"cannot listen for the peers' keepers: {e.strerror}", where=_name(listen), next_step="choose another port"
        ) from None


def _call(peer: Peer, place: Place, end: float) -> socket.socket:
    while True:
        try:
            connection = socket.create_connection(place, max(end - time.monotonic(), _PAUSE_S))
            connection.settimeout(max(end - time.monotonic(), _PAUSE_S))
            return connection
        except OSError as e:
            if time.monotonic() + _PAUSE_S > end:
                raise JailError(
                    f"the peer's keeper cannot be reached: {e.strerror or e}",
                    where=f"peer {peer.site} ({peer.address}), keeper at {_name(place)}",
                    next_step="start it there too, and see that the nodes reach each other at that port",
                ) from None
        time.sleep(_PAUSE_S)


def _answer(server: socket.socket, own: Shown, awaited: Mapping[IPv4Address, Peer], keys: Vouching, end: float) -> Seen:
    stranger = ""
    while (left := end - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            connection, _ = server.accept()
        except TimeoutError:
            break
        with connection:
            connection.settimeout(min(left, _PATIENCE_S))
            try:
                return exchange(connection, own, awaited, keys)
            except NotListed as e:  # scanners knock too: whoever says nothing of us does not end the meeting
                stranger = f"; somebody else came: {e.what}"
    names = ", ".join(f"{p.site} ({p.address})" for p in awaited.values())
    raise JailError(
        f"not every peer came in time{stranger}",
        where=names,
        next_step="start them at the same time; see their messages",
    )


def _name(place: Place) -> str:
    return f"{place[0]}:{place[1]}"
