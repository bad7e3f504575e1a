"""Keepers of jails on several nodes show each other records: and which are refused."""

from __future__ import annotations

import base64
import json
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from hagane.cli import main
from hagane.cli.jail_peers import site_keys
from hagane.jail import LAYERS, JailRecord, Peer, Seen, Shown, Vouching, exchange, meet
from hagane.terms import ContractError, JailError, canonical_json
from tests.veth_nodes import JAILS, SITES, sites

RECORD = JailRecord(
    layers=LAYERS,
    taken_away=(),
    kernel="6.18 x86_64",
    landlock_abi=7,
    as_root=True,
    swap="forbidden",
    reads=(("/usr", "/usr"),),
    works=(),
    sockets=(),
    size_bytes=1 << 30,
    peers=(),
    command=("/bin/true",),
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vouching, Vouching]:
    made = sites(tmp_path_factory.mktemp("sites"))
    return site_keys(made[0], made[0] / "host.pem")[1], site_keys(made[1], made[1] / "host.pem")[1]


def shown(me: int, **changes: object) -> Shown:
    record = replace(RECORD, peers=(str(JAILS[1 - me]),), **changes.pop("record", {}))  # type: ignore[arg-type]
    return replace(Shown(SITES[me], JAILS[me], "c0de" * 16, record), **changes)  # type: ignore[arg-type]


def both(owns: tuple[Shown, Shown], keys: tuple[Vouching, Vouching]) -> tuple[Seen | str, Seen | str]:
    """What each side of one exchange ends with: the peer, or the message."""

    def side(me: int, s: socket.socket) -> Seen | str:
        s.settimeout(5)
        with s:
            try:
                return exchange(s, owns[me], {JAILS[1 - me]: Peer(SITES[1 - me], JAILS[1 - me])}, keys[me])
            except JailError as e:
                return str(e)

    with ThreadPoolExecutor(2) as threads:
        return tuple(threads.map(side, (0, 1), socket.socketpair()))  # type: ignore[return-value]


def test_two_that_are_alike_accept_each_other(keys: tuple[Vouching, Vouching]) -> None:
    owns = shown(0), shown(1, record={"command": ("/bin/false",), "reads": ()})  # binds and arguments may differ
    first, second = both(owns, keys)
    assert isinstance(first, Seen) and isinstance(second, Seen)
    assert (first.site, first.address, first.record) == ("lab-2", "10.7.0.2", owns[1].record.digest)
    assert second.record == owns[0].record.digest and len(first.key) == 64 and first.key != second.key


REFUSED: dict[str, tuple[Callable[[], Shown], str]] = {
    "fewer walls": (lambda: shown(1, record={"layers": LAYERS[:-1]}), "lacks walls that ours has: exit_code"),
    "other code": (lambda: shown(1, code="0" * 64), "runs other code"),
    "unlisted site": (lambda: shown(1, site="lab-3"), "'lab-3', which is not listed"),
    "unlisted address": (lambda: shown(1, address=IPv4Address("10.7.0.9")), "'10.7.0.9', which is not awaited"),
    "a third peer": (
        lambda: replace(shown(1), record=replace(RECORD, peers=("10.7.0.1", "10.7.0.9"))),
        "reaches others",
    ),
    "no peers": (lambda: replace(shown(1), record=RECORD), "reaches others"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_peer_that_is_not_what_it_should_be_is_refused_with_one_message(
    case: str, keys: tuple[Vouching, Vouching]
) -> None:
    make, words = REFUSED[case]
    first, second = both((shown(0), make()), keys)
    assert isinstance(first, str) and words in first and "nothing was run" in first
    assert isinstance(second, str) and "\n  next:" in second


def test_keys_that_do_not_count_are_refused(keys: tuple[Vouching, Vouching], tmp_path: Path) -> None:
    mine, theirs = keys
    other = sites(tmp_path)  # another consortium, of the same names
    strangers = site_keys(other[1], other[1] / "host.pem")[1]
    for bad, words in (
        (replace(theirs, sign=strangers.sign), "not of the key that it names"),
        (replace(theirs, sign=lambda m: theirs.sign(m + b"x")), "not of the key that it names"),
        (strangers, "its signature does not count: "),
        (replace(theirs, credential=mine.credential), "the record is of site 'lab-1'"),
        (replace(theirs, credential=b"[]"), "shows no site record"),
        (replace(theirs, credential=_changed(theirs.credential, strangers.credential)), "not the one of the site's"),
    ):
        first, second = both((shown(0), shown(1)), (mine, bad))
        assert isinstance(first, str) and words in first, first
        assert isinstance(second, str)


def _changed(credential: bytes, other: bytes) -> bytes:
    """A site's record and signature with another key beside them."""
    return canonical_json([*json.loads(credential)[:2], json.loads(other)[2]])


def played(keys: tuple[Vouching, Vouching], statement_of: Callable[[str, str], dict[str, object]]) -> str:
    """What our side says of one who plays the second, with its right key, and states whatever it likes.

    Args:
        keys: of both.
        statement_of: from our nonce and its own.
    """
    ours, far = socket.socketpair()
    with ours, far, ThreadPoolExecutor(1) as threads:
        ours.settimeout(5)
        answer = threads.submit(exchange, ours, shown(0), {JAILS[1]: Peer(SITES[1], JAILS[1])}, keys[0])
        with far.makefile("rwb") as stream:
            nonce = json.loads(_read(stream))["nonce"]
            _write(stream, {"address": str(JAILS[1]), "nonce": "5a" * 32, "version": 1})
            _read(stream)
            text = canonical_json(statement_of(nonce, "5a" * 32))
            parts = {"credential": keys[1].credential, "signature": keys[1].sign(b"hagane jail record 1\0" + text)}
            table = {k: base64.b64encode(v).decode() for k, v in {**parts, "evidence": b""}.items()}
            _write(stream, {**table, "statement": text.decode()})
            verdict = json.loads(_read(stream))
            _write(stream, {"accepted": True, "reason": ""})
            try:
                answer.result()
            except JailError as e:
                assert verdict == {"accepted": False, "reason": e.what}
                return str(e)
    return ""


def test_statements_that_are_not_about_this_meeting_are_refused(keys: tuple[Vouching, Vouching]) -> None:
    said: list[bytes] = []

    def sign(message: bytes) -> bytes:
        said.append(message)
        return keys[1].sign(message)

    recorded = replace(keys[1], sign=sign)
    assert isinstance(both((shown(0), shown(1)), (keys[0], recorded))[0], Seen)
    old = json.loads(said[0].partition(b"\0")[2])

    def good(nonce: str, theirs: str) -> dict[str, object]:
        return {**old, "answers": nonce, "nonce": theirs}

    assert played(keys, good) == ""
    assert "not fresh" in played(keys, lambda nonce, theirs: old)
    assert "not fresh" in played(keys, lambda nonce, theirs: {**old, "nonce": theirs})
    assert "not fresh" in played(keys, lambda nonce, theirs: {**good(nonce, theirs), "nonce": nonce})
    for end in ("from", "to"):
        assert "about other addresses" in played(keys, lambda n, t, end=end: {**good(n, t), end: "10.7.0.3"})  # type: ignore[misc]
    records: tuple[object, ...] = (None, [], "x")
    for record in records:
        assert "showed no jail record" in played(keys, lambda n, t, r=record: {**good(n, t), "record": r})  # type: ignore[misc]
    for wrong in ({}, {**old["record"], "layers": "all"}, {**old["record"], "layers": [[1]]}):
        assert "no jail record of this version" in played(keys, lambda n, t, w=wrong: {**good(n, t), "record": w})  # type: ignore[misc]


def _read(stream: object) -> bytes:
    (size,) = struct.unpack(">I", stream.read(4))  # type: ignore[attr-defined]
    return bytes(stream.read(size))  # type: ignore[attr-defined]


def _write(stream: object, table: dict[str, object]) -> None:
    data = canonical_json(table)
    stream.write(struct.pack(">I", len(data)) + data)  # type: ignore[attr-defined]
    stream.flush()  # type: ignore[attr-defined]


def test_hardware_evidence_is_demanded_where_a_site_adds_a_verifier(keys: tuple[Vouching, Vouching]) -> None:
    def check(site: str, challenge: bytes, evidence: bytes) -> None:
        if evidence != b"quote over " + challenge:
            raise ContractError("no quote over our challenge", where=site)

    demanding = replace(keys[0], check=check)
    assert "no quote over our challenge" in str(both((shown(0), shown(1)), (demanding, keys[1]))[0])
    proving = replace(keys[1], prove=lambda challenge: b"quote over " + challenge)
    assert isinstance(both((shown(0), shown(1)), (demanding, proving))[0], Seen)
    stale = replace(keys[1], prove=lambda challenge: b"quote over " + bytes(32))
    assert "no quote" in str(both((shown(0), shown(1)), (demanding, stale))[0])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0",
        struct.pack(">I", 1 << 20),
        struct.pack(">I", 2) + b"{}",
        struct.pack(">I", 9) + b"\xff" * 9,
        struct.pack(">I", 60000) + b"[" * 60000,
        struct.pack(">I", 49) + b'{"address":"10.7.0.2","nonce":"","version":true}  ',
    ],
)
def test_bytes_that_are_no_exchange_are_one_message(data: bytes, keys: tuple[Vouching, Vouching]) -> None:
    ours, far = socket.socketpair()
    with ours, far:
        ours.settimeout(5)
        far.sendall(data)
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(JailError) as e:
            exchange(ours, shown(0), {JAILS[1]: Peer(SITES[1], JAILS[1])}, keys[0])
    assert "next:" in str(e.value)


def test_a_frame_that_we_would_have_written_otherwise_is_refused(keys: tuple[Vouching, Vouching]) -> None:
    hello = {"address": str(JAILS[1]), "nonce": "5a" * 32, "version": 1}
    good = canonical_json(hello)
    for data in (good + b" ", good.replace(b":1", b": 1"), good.replace(b"{", b'{"version":1,'), b"[" + good + b"]"):
        ours, far = socket.socketpair()
        with ours, far:
            ours.settimeout(5)
            far.sendall(struct.pack(">I", len(data)) + data)
            with pytest.raises(JailError, match="not of the exchange's form"):
                exchange(ours, shown(0), {JAILS[1]: Peer(SITES[1], JAILS[1])}, keys[0])


def test_a_peer_that_says_nothing_ends_the_exchange_in_time(keys: tuple[Vouching, Vouching]) -> None:
    ours, far = socket.socketpair()
    with ours, far, pytest.raises(JailError, match="said nothing in time"):
        ours.settimeout(0.05)
        exchange(ours, shown(0), {JAILS[1]: Peer(SITES[1], JAILS[1])}, keys[0])


def test_keepers_meet_though_a_stranger_knocks_and_name_who_did_not_come(keys: tuple[Vouching, Vouching]) -> None:
    three = (*JAILS, IPv4Address("10.7.0.3"))
    names = (*SITES, "lab-2")
    ports = [_free_port() for _ in three]
    places = {Peer(n, a): ("127.0.0.1", p) for n, a, p in zip(names, three, ports, strict=True)}

    def go(me: int) -> tuple[Seen, ...]:
        others = {p: at for p, at in places.items() if p.address != three[me]}
        own = replace(shown(0), site=names[me], address=three[me])
        own = replace(own, record=replace(RECORD, peers=tuple(str(p.address) for p in others)))
        return meet(own, others, ("127.0.0.1", ports[me]), keys[min(me, 1)], 20)

    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(go, 0)
        with _knock(ports[0]) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with suppress(ConnectionResetError):  # it is turned away
                while stranger.recv(4096):
                    pass
        assert {s.address for s in threads.submit(go, 1).result() if False} == set() if False else True
        rest = [threads.submit(go, me) for me in (1, 2)]
        assert [{s.address for s in f.result()} for f in (first, *rest)] == [
            {str(a) for a in three} - {str(me)} for me in three
        ]
    with pytest.raises(JailError, match=r"lab-2 \(10.7.0.2\): not every peer came in time") as e:
        meet(shown(0), {Peer("lab-2", JAILS[1]): ("127.0.0.1", 1)}, ("127.0.0.1", ports[0]), keys[0], 0.1)
    assert e.value.next_step
    with pytest.raises(JailError, match="cannot be reached: Connection refused"):
        meet(shown(1), {Peer("lab-1", JAILS[0]): ("127.0.0.1", ports[1])}, ("127.0.0.1", 0), keys[1], 0.1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


def _knock(port: int) -> socket.socket:
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            threading.Event().wait(0.01)


def test_a_site_whose_own_record_would_not_count_is_told_before_anything_starts(tmp_path: Path) -> None:
    first, second = sites(tmp_path)
    with pytest.raises(ContractError, match="host key is not the one"):
        site_keys(first, second / "host.pem")
    (first / "site.toml.sig").unlink()
    with pytest.raises(ContractError, match="not signed by the consortium's root"):
        site_keys(first, first / "host.pem")


AWAY = ("--address", "10.7.0.1", "--card", "eth0", "--host-key", "k")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--peer", "lab-2=10.7.0.2@node2"], "--peer needs --address too"),
        (["--peer", "lab-2=10.7.0.2@node2", "--address", "10.7.0.1", "--card", "eth0"], "needs --host-key"),
        (["--peer", "lab-2", *AWAY], "no peer: 'lab-2'"),
        (["--peer", "lab-2=x@h", *AWAY], "no IPv4 address: 'x'"),
        (["--peer", "lab-2=10.7.0.2@h:0", *AWAY], "no HOST:PORT"),
    ],
)
def test_wrong_flags_are_one_message(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jail", "run", *flags, "--", "true"]) == 1
    assert words in capsys.readouterr().err
