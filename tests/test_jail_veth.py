"""Jails on two nodes: what passes between them, judged by the frames on the cable and by who is connected to."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest

from hagane.jail import Jailed, netlink, start
from hagane.jail.veth import Link, hardware_address, wiring
from hagane.terms import JailError
from tests.jail_fixture import Said, python_plan, read_all
from tests.veth_nodes import CARD, HOSTS, JAILS, Nodes, carried, frame, mac_of, nodes, why_no_nodes

WHY_NOT = why_no_nodes()
needs_nodes = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
SERVER = """
import socket, sys
s = socket.create_server(("0.0.0.0", 5000))
print("up", flush=True)
while True:
    c, where = s.accept()
    word = c.recv(9).decode()
    print(where[0], word, flush=True)
    if word == "end":
        break
"""
# every door of the network stack that a program without privileges has; each must raise or be heard by nobody
ATTACKS = """
import json, socket, struct, sys
seen = {}
def attempt(name, act):
    try:
        act(); seen[name] = 0
    except OSError as e:
        seen[name] = e.errno or -1
def tcp(address):
    with socket.create_connection((address, 5000), 0.3) as c:
        c.send(b"leak")
def udp(address, port=5000, family=socket.AF_INET, bound=True, kind=socket.SOCK_DGRAM, protocol=0):
    s = socket.socket(family, kind, protocol)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    if bound:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"net0")
    if address.startswith("224."):
        s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", b"", b"", 2))
    s.sendto(b"\\x08\\x00\\x00\\x00leakleak", (address, port, 0, 2) if family == socket.AF_INET6 else (address, port))
for address in HOSTS:
    attempt(f"tcp {address}", lambda: tcp(address))
    attempt(f"udp {address}", lambda: udp(address, bound=False))
    attempt(f"udp bound {address}", lambda: udp(address))
attempt("udp to the peer", lambda: udp(PEER))
attempt("ping of the peer", lambda: udp(PEER, protocol=socket.IPPROTO_ICMP))
attempt("dhcp", lambda: udp("255.255.255.255", 67))
attempt("broadcast", lambda: udp("10.7.0.255"))
attempt("multicast", lambda: udp("224.0.0.251", 5353))
attempt("ipv6 multicast", lambda: udp("ff02::1", family=socket.AF_INET6))
attempt("ipv6 link-local", lambda: udp("fe80::1", family=socket.AF_INET6))
def raw():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
attempt("raw frames", raw)
def route():
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    s.send(struct.pack("=IHHII8BI", 28, 24, 0x605, 1, 0, 2, 0, 0, 0, 254, 4, 253, 1, 0))
    error = struct.unpack_from("=i", s.recv(999), 16)[0]
    if error: raise OSError(-error, "")
attempt("default route", route)
with socket.create_connection((PEER, 5000), 5) as c:
    c.send(b"end")
with open("/proc/net/if_inet6") as f:
    seen["ipv6 addresses"] = [line.split()[-1] for line in f]
print(json.dumps(seen))
""".replace("HOSTS", repr([str(h) for h in HOSTS])).replace("PEER", repr(str(JAILS[1])))


@contextmanager
def jail(net: Nodes, node: int, code: str, wire: Callable[[int], None] | None = None) -> Iterator[tuple[Jailed, int]]:
    """A jail on a node, linked to the other node's; yields it and where its output is read."""
    link = Link(CARD, JAILS[node], (JAILS[1 - node],))
    out, null = os.pipe(), os.open(os.devnull, os.O_WRONLY)
    with wiring(link) as usual:
        try:
            jailed = netlink.inside(
                net.spaces[node], lambda: start(python_plan(code), out[1], null, wire=wire or usual)
            )
        finally:
            os.close(out[1])
            os.close(null)
        with jailed:
            yield jailed, out[0]
    os.close(out[0])


def end(jailed: Jailed, out: int) -> Said:
    return Said(jailed.wait(), read_all(out), "")


@pytest.fixture
def net() -> Iterator[Nodes]:
    with nodes() as made:
        yield made


def strange(frames: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Frames that are no TCP between the two jails."""
    return [f for f in frames if f[0] != "tcp" or {f[1], f[2]} != {str(j) for j in JAILS}]


def attacked(
    net: Nodes, wire: Callable[[int], None] | None = None
) -> tuple[dict[str, object], list[tuple[str, str, str]]]:
    """Run the attempts in a jail on the first node; what it saw, and what the cable carried."""
    servers = [net.listener(n) for n in range(3)]
    with net.watched() as watch, jail(net, 1, SERVER) as (far, far_out):
        assert os.read(far_out, 9) == b"up\n"
        with jail(net, 0, ATTACKS, wire) as (near, out):
            said = end(near, out)
        assert said.code == 0
        assert end(far, far_out).out == f"{JAILS[0]} end\n"
        for s in servers:
            with s, pytest.raises(BlockingIOError):
                s.accept()
        return json.loads(said.out), carried(watch)


@needs_nodes
def test_a_jail_reaches_its_peer_by_tcp_and_the_cable_carries_nothing_else(net: Nodes) -> None:
    seen, frames = attacked(net)
    assert len(frames) >= 6 and strange(frames) == []
    assert seen.pop("ipv6 addresses") == ["lo"]
    assert seen["tcp 10.9.0.1"] == seen["tcp 10.9.0.2"] == seen["udp 10.9.0.3"] == 101  # ENETUNREACH
    assert seen["raw frames"] == 97 and seen["default route"] == 1  # EAFNOSUPPORT, EPERM
    # these the jail itself may send; the router drops them, as the cable shows
    assert {k for k, v in seen.items() if v == 0} <= {
        *(f"udp bound {h}" for h in HOSTS),
        *("udp to the peer", "ping of the peer", "dhcp", "broadcast", "multicast"),
    }
    assert seen["dhcp"] == seen["multicast"] == 0, "else the judge had nothing to judge"


@needs_nodes
def test_the_judge_sees_what_passes_without_the_router_or_its_rule(net: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    def bare(pid: int) -> None:
        """The card's own device, in the jail."""
        space = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        with netlink.open_route() as outside, netlink.inside(space, netlink.open_route) as within:
            netlink.add_macvlan(outside, CARD, "net0", hardware_address(0, JAILS[0]), space)
            netlink.add_address(within, "net0", JAILS[0])
            netlink.bring_up(within, "net0")
            netlink.add_neighbour(within, JAILS[1], "net0", hardware_address(0, JAILS[1]))
            netlink.add_route(within, JAILS[1], "net0", netlink.MAIN)
        os.close(space)

    _, frames = attacked(net, bare)
    assert {("ip 17", str(JAILS[0]), to) for to in ("255.255.255.255", "224.0.0.251")} <= set(strange(frames))
    real = netlink.add_rule
    monkeypatch.setattr(netlink, "add_rule", lambda s, name, protocol, table: real(s, name, 0, table))
    _, frames = attacked(net)
    assert {kind for kind, _, _ in strange(frames)} == {"ip 17", "ip 1"}


@needs_nodes
def test_whatever_a_jail_becomes_inside_its_router_forwards_tcp_to_the_peer_alone(net: Nodes) -> None:
    with net.watched() as watch, jail(net, 0, SERVER) as (near, out):
        assert os.read(out, 9) == b"up\n"
        space = os.open(f"/proc/{near.pid}/ns/net", os.O_RDONLY)
        raw = netlink.inside(space, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        os.close(space)
        with raw:  # as root in the jail's network namespace, with every frame one likes
            raw.bind(("net0", 0))
            router, own = hardware_address(1, JAILS[0]), hardware_address(2, JAILS[0])
            me, peer = (str(j) for j in JAILS)
            bad = [(me, str(h), kind) for h in HOSTS for kind in (6, 17)]
            bad += [(me, "255.255.255.255", 17), (me, "224.0.0.251", 17), (me, "10.7.0.3", 6), (me, peer, 17)]
            bad += [(source, peer, 6) for source in ("10.9.0.1", "10.7.0.3", "0.0.0.0", "127.0.0.1", peer)]
            for to in (router, b"\xff" * 6, hardware_address(0, JAILS[1]), mac_of(HOSTS[1])):
                for source, target, kind in bad:
                    raw.send(frame(source, target, kind, to, own))
                raw.send(to + own + b"\x08\x06" + bytes(46))  # ARP
                raw.send(to + own + b"\x86\xdd" + bytes(60))  # IPv6
            assert carried(watch) == []
            raw.send(frame(me, peer, 6, router, own))
            assert carried(watch)[:1] == [("tcp", me, peer)]


@needs_nodes
def test_from_outside_only_the_listed_address_reaches_a_jail(net: Nodes) -> None:
    with jail(net, 0, SERVER) as (_, out):
        assert os.read(out, 9) == b"up\n"
        for node in range(3):  # its own node, the peer's node, a stranger: each knows its hardware address
            with net.open(node, socket.AF_INET, socket.SOCK_STREAM) as s:
                s.settimeout(0.3)
                with pytest.raises(OSError, match=r"timed out|unreachable"):
                    s.connect((str(JAILS[0]), 5000))
        # the way is there: who takes a listed address is let in, which a site's fabric must prevent
        with netlink.inside(net.spaces[2], netlink.open_route) as route:
            netlink.add_address(route, CARD, JAILS[1])
        with net.open(2, socket.AF_PACKET, socket.SOCK_RAW, 0) as s, net.watched() as watch:
            s.bind((CARD, 0))
            to = hardware_address(0, JAILS[0])
            s.send(frame("10.9.0.3", str(JAILS[0]), 6, to, mac_of(HOSTS[2])))
            s.send(frame(str(JAILS[1]), str(JAILS[0]), 17, to, mac_of(HOSTS[2])))
            s.send(frame(str(JAILS[1]), "10.9.0.2", 6, to, mac_of(HOSTS[2])))
            assert ("tcp", str(JAILS[0]), "10.9.0.3") not in carried(watch)
            s.send(frame(str(JAILS[1]), str(JAILS[0]), 6, to, mac_of(HOSTS[2])))
            assert ("tcp", str(JAILS[0]), str(JAILS[1])) in carried(watch)


@needs_nodes
def test_devices_and_router_end_with_the_wiring_and_what_cannot_be_made_is_told(net: Nodes) -> None:
    code = "print('ran')"
    before = netlink.inside(net.spaces[0], socket.if_nameindex)
    with jail(net, 0, code) as (jailed, out):
        assert end(jailed, out).out == "ran\n"
        assert netlink.inside(net.spaces[0], socket.if_nameindex) == before
        with pytest.raises(JailError, match="nothing ran: Address already in use"), jail(net, 0, code):
            pass
    with jail(net, 0, code) as (jailed, out):  # free again
        assert end(jailed, out).code == 0
    with (
        wiring(Link("absent0", JAILS[0], JAILS[1:])) as wire,
        pytest.raises(JailError, match=r"No such device.*absent0"),
    ):
        start(python_plan(code), *(os.open(os.devnull, os.O_WRONLY),) * 2, wire=wire)


def test_links_that_make_no_sense_are_refused() -> None:
    ten = IPv4Address("10.0.0.1")
    for card, address, peers in (
        ("a/b", ten, (IPv4Address("10.0.0.2"),)),
        ("eth0", ten, ()),
        ("eth0", ten, (ten,)),
        ("eth0", ten, (IPv4Address("10.0.0.2"),) * 2),
        ("eth0", IPv4Address("127.0.0.1"), (ten,)),
        ("eth0", ten, (IPv4Address("224.0.0.1"),)),
        ("eth0", ten, (IPv4Address("255.255.255.255"),)),
    ):
        with pytest.raises(JailError):
            Link(card, address, peers)


def test_only_the_kernels_own_answer_counts() -> None:
    def ack(*changes: tuple[int, int]) -> bytes:
        words = [36, 2, 0, 1, 99, -17, 20, 16, 0, 1, 99]
        for at, value in changes:
            words[at] = value
        return struct.pack("=IHHIIiIHHII", *words)

    assert netlink.read_ack(ack(), 0, 16) == 17
    assert netlink.read_ack(ack((5, 0)), 0, 16) == 0
    for data, sender in (
        (ack(), 4242),
        (ack()[:-1], 0),
        (ack() + b"x", 0),
        (b"", 0),
        *((ack(change), 0) for change in ((0, 35), (1, 3), (3, 2), (7, 20), (9, 2), (5, 1), (5, -5000))),
    ):
        with pytest.raises(OSError, match="no answer"):
            netlink.read_ack(data, sender, 16)
