"""Peers: before jails on several nodes talk, their keepers show each other signed jail records.

Keepers speak over the nodes' own network, one connection for two of them; the one whose jail has the lower address
listens. Each sends two frames (4 bytes of length, big endian, at most 256 KiB, and canonical JSON), then its verdict:

    {"address", "nonce", "version"}                                    fresh random bytes, in hex
    {"credential", "evidence", "signature", "statement"}               base64; the statement is signed
        {"answers", "code", "from", "nonce", "record", "site", "to"}   JSON; "answers" is the other's nonce
    {"accepted", "reason"}

A signature covers both nonces and both addresses, so what was shown once, or to another, is refused. Signing, verifying
and hardware evidence are callables: which keys count is not this room's business. A record is the word of the site
that signed it. `Vouching.prove` and `Vouching.check` are where a site adds hardware attestation; none ships.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from typing import Any

from hagane.jail.record import JailRecord
from hagane.terms import HaganeError, JailError, canonical_json, digest_bytes

VERSION = 1
"""Of this exchange."""
LIMIT = 1 << 18
"""Bytes of a frame without its length."""
_DOMAIN = b"hagane jail record 1\0"
_STATEMENT = {"answers": str, "code": str, "from": str, "nonce": str, "record": dict, "site": str, "to": str}
_PROOF = {"credential": str, "evidence": str, "signature": str, "statement": str}


@dataclass(frozen=True)
class Vouching:
    """How what keepers say is signed and verified; given by the caller."""

    credential: bytes
    """What others need to verify us: for sites, the signed record and the public key."""
    sign: Callable[[bytes], bytes]
    """Signature over bytes."""
    verify: Callable[[str, bytes, bytes, bytes], str]
    """(site, credential, signature, message) -> id of the key; raises HaganeError unless that site signed it."""
    prove: Callable[[bytes], bytes] | None = None
    """Evidence of our hardware for a challenge [32]."""
    check: Callable[[str, bytes, bytes], None] | None = None
    """(site, challenge, evidence): raises HaganeError unless the hardware is what it should be."""


@dataclass(frozen=True)
class Peer:
    """A jail on another node, as the caller lists it."""

    site: str
    """Who must vouch for it."""
    address: IPv4Address
    """Of the jail."""


@dataclass(frozen=True)
class Shown:
    """What a keeper says of its own jail."""

    site: str
    """Who vouches."""
    address: IPv4Address
    """Of the jail."""
    code: str
    """Digest of the code that runs; peers with another are refused."""
    record: JailRecord
    """Its walls; peers with fewer are refused, and peers that reach others than we do."""


@dataclass(frozen=True)
class Seen:
    """A peer that was accepted, for the ledger."""

    site: str
    """Who vouched."""
    address: str
    """Of its jail."""
    key: str
    """Id of the key that signed."""
    record: str
    """Digest of its jail's record."""


def exchange(connection: socket.socket, own: Shown, among: Mapping[IPv4Address, Peer], keys: Vouching) -> Seen:
    """Show our record and demand the other's; returns when both sides accepted.

    Args:
        connection: to the other keeper, with a timeout, which is that of the whole exchange.
        own: what we say.
        among: the peers that it may be, by the address of their jail.
        keys: how it is signed and verified.

    Raises:
        NotListed: what is there said no address of `among`.
        JailError: the peer is refused, refused us, or said nothing in time; one message.
    """
    line = _Timed(connection)
    nonce = os.urandom(32).hex()
    where = "a connection from nobody known"
    try:
        line.send({"address": str(own.address), "nonce": nonce, "version": VERSION})
        peer, theirs = _hello(line.receive(), among)
        where = f"peer {peer.site} ({peer.address})"
        line.send(_proof(own, peer, keys, nonce, theirs))
        proof, refusal, seen = line.receive(), "", None
        try:
            seen = _judge(proof, own, peer, keys, nonce, theirs)
        except _Bad as e:
            refusal = str(e)
        verdict = _verdicts(line, refusal)
    except OSError as e:
        why = "said nothing in time" if isinstance(e, TimeoutError) else f"went away ({e.strerror or e})"
        raise JailError(f"the peer {why}", where=where, next_step="see what its keeper says") from None
    except _Bad as e:
        raise (JailError if where.startswith("peer") else NotListed)(
            str(e), where=where, next_step="nothing was run; see that both nodes run the same version and settings"
        ) from None
    if not verdict["accepted"] or seen is None:
        said = "".join(c for c in verdict["reason"][:300] if c.isprintable())
        raise JailError(f"the peer refused us: {said}", where=where, next_step="settle it there, and start both again")
    return seen


class NotListed(JailError):
    """Somebody connected who is none of the peers that are awaited."""


class _Bad(Exception):
    """Why the other side is refused, in words."""


def _verdicts(line: _Timed, refusal: str) -> dict[str, Any]:
    """Tell ours and read the other's, in any case: who closed without reading could destroy what it had said."""
    try:
        line.send({"accepted": not refusal, "reason": refusal})
    except ConnectionError:
        pass  # it has refused us, and its verdict lies here
    try:
        verdict: dict[str, Any] = _table(line.receive(), {"accepted": bool, "reason": str})
    except (OSError, _Bad):
        if not refusal:
            raise
    if refusal:
        raise _Bad(refusal)
    return verdict


def _hello(data: bytes, among: Mapping[IPv4Address, Peer]) -> tuple[Peer, str]:
    table = _table(data, {"address": str, "nonce": str, "version": int})
    if table["version"] != VERSION:
        raise _Bad(f"it speaks version {table['version']} of the exchange, not {VERSION}")
    for address, peer in among.items():
        if table["address"] == str(address) and len(table["nonce"]) == 64:
            return peer, str(table["nonce"])
    raise _Bad(f"it keeps the jail at {table['address'][:40]!a}, which is not awaited")


def _proof(own: Shown, peer: Peer, keys: Vouching, nonce: str, theirs: str) -> dict[str, str]:
    statement = canonical_json(
        {
            "answers": theirs,
            "code": own.code,
            "from": str(own.address),
            "nonce": nonce,
            "record": own.record,
            "site": own.site,
            "to": str(peer.address),
        }
    )
    message = _DOMAIN + statement
    evidence = keys.prove(_challenge(message)) if keys.prove else b""
    signature = keys.sign(message)
    parts = {"credential": keys.credential, "evidence": evidence, "signature": signature}
    return {"statement": statement.decode()} | {k: base64.b64encode(v).decode() for k, v in parts.items()}


def _judge(data: bytes, own: Shown, peer: Peer, keys: Vouching, nonce: str, theirs: str) -> Seen:
    proof = _table(data, _PROOF)
    statement = proof["statement"].encode()
    said = _table(statement, _STATEMENT, "it showed no jail record")
    if said["site"] != peer.site:
        raise _Bad(f"it speaks for site {said['site'][:80]!a}, which is not listed with this address")
    message = _DOMAIN + statement
    credential, signature, evidence = (_plain(proof[k]) for k in ("credential", "signature", "evidence"))
    try:
        key = keys.verify(peer.site, credential, signature, message)
    except HaganeError as e:
        raise _Bad(f"its signature does not count: {e.what}") from None
    if (said["answers"], said["nonce"]) != (nonce, theirs):
        raise _Bad("its record is not fresh: it answers another question than ours (a replay?)")
    if (said["from"], said["to"]) != (str(peer.address), str(own.address)):
        raise _Bad("its record is about other addresses")
    if said["code"] != own.code:
        raise _Bad(f"it runs other code ({said['code'][:12]!a}, here {own.code[:12]})")
    _judge_record(said["record"], own, peer)
    if keys.check:
        try:
            keys.check(peer.site, _challenge(message), evidence)
        except HaganeError as e:
            raise _Bad(f"its hardware's evidence does not count: {e.what}") from None
    return Seen(peer.site, str(peer.address), key, digest_bytes(canonical_json(said["record"])))


def _judge_record(theirs: dict[str, Any], own: Shown, peer: Peer) -> None:
    ours = json.loads(canonical_json(asdict(own.record)))
    if theirs.keys() != ours.keys() or not all(_alike(theirs[k], ours[k]) for k in ours):
        raise _Bad("what it showed is no jail record of this version")
    missing = sorted(set(ours["layers"]) - set(theirs["layers"]))
    if missing:
        raise _Bad(f"its jail lacks walls that ours has: {', '.join(missing)}")
    group = {str(own.address), *ours["peers"]}
    if {str(peer.address), *theirs["peers"]} != group:
        raise _Bad(f"its jail reaches others than ours: {', '.join(theirs['peers'])[:200]!a}")


def _alike(value: object, like: object) -> bool:
    """Whether a value has the JSON form of ours: the same type, and in lists texts or lists of texts."""
    if isinstance(value, list) and isinstance(like, list):
        return all(isinstance(v, str) or (isinstance(v, list) and all(isinstance(w, str) for w in v)) for v in value)
    return type(value) is type(like)


def _challenge(message: bytes) -> bytes:
    return bytes.fromhex(digest_bytes(message))


def _table(data: bytes, form: Mapping[str, type], what: str = "what it sent is not of the exchange's form") -> Any:
    """A JSON map with exactly these keys and types, byte for byte as we would write it."""
    try:
        value = json.loads(data)
        good = isinstance(value, dict) and {k: type(v) for k, v in value.items()} == form
        if good and canonical_json(value) == data:
            return value
    except (ValueError, RecursionError):
        pass
    raise _Bad(what)


def _plain(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise _Bad("what it sent is no base64") from None


class _Timed:
    """Frames over a connection until a time is up, however slowly the other side speaks."""

    def __init__(self, connection: socket.socket) -> None:
        self._s, self._end = connection, time.monotonic() + (connection.gettimeout() or 0.0)

    def send(self, table: dict[str, Any]) -> None:
        data = canonical_json(table)
        self._s.settimeout(self._left())
        self._s.sendall(struct.pack(">I", len(data)) + data)

    def receive(self) -> bytes:
        (size,) = struct.unpack(">I", self._exactly(4))
        if size > LIMIT:
            raise _Bad(f"it announced {size} bytes; at most {LIMIT} are read")
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._s.settimeout(self._left())
            part = self._s.recv(size - len(data))
            if not part:
                raise ConnectionResetError(104, "it closed the connection before it showed a record")
            data += part
        return bytes(data)

    def _left(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left
