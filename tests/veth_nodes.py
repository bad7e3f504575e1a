"""Nodes for tests: network namespaces joined by a cable, a machine on it that nobody lists, and what the cable carries.

All of it lies in namespaces of the test's own, which end with it; the machine's own network is not touched.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from ipaddress import IPv4Address
from pathlib import Path

from hagane.jail import netlink
from hagane.jail.veth import hardware_address
from hagane.seal import Site, TrustStore, generate_key, key_id_of, public_of, sign_site
from hagane.terms import dump_toml
from tests.jail_fixture import why_not

CARD = "fab0"
HOSTS = tuple(IPv4Address(f"10.9.0.{n}") for n in (1, 2, 3))
"""The nodes' own addresses; the third is a machine that nobody lists."""
JAILS = tuple(IPv4Address(f"10.7.0.{n}") for n in (1, 2))
"""Of the jail on each of the first two."""
SITES = ("lab-1", "lab-2")
"""Who runs the first two nodes."""
ALL_KINDS = 3  # ETH_P_ALL


def mac_of(host: IPv4Address) -> bytes:
    """Hardware address [6] of a node's own card."""
    return b"\x02\x01" + host.packed


@dataclass(frozen=True)
class Nodes:
    """Descriptors of three network namespaces: two nodes on a cable, and a stranger on the same segment."""

    spaces: tuple[int, int, int]

    def open(self, node: int, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of a node."""
        return netlink.inside(self.spaces[node], lambda: socket.socket(family, kind, protocol))

    def listener(self, node: int) -> socket.socket:
        """A TCP server of a node at all its addresses, port 5000; what reaches it waits for `accept`."""
        s = self.open(node, socket.AF_INET, socket.SOCK_STREAM)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("0.0.0.0", 5000))
        s.listen()
        s.setblocking(False)
        return s

    @contextmanager
    def watched(self) -> Iterator[socket.socket]:
        """A socket that gets every frame on the cable from now on, seen from the second node."""
        with self.open(1, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_KINDS)) as s:
            s.bind((CARD, ALL_KINDS))
            s.setblocking(False)
            yield s


@contextmanager
def nodes() -> Iterator[Nodes]:
    """Make them; each node knows the others' addresses as it would by ARP."""
    with ExitStack() as held:
        spaces = []
        for _ in range(3):
            spaces.append(netlink.new_namespace())
            held.callback(os.close, spaces[-1])
            netlink.inside(spaces[-1], _without_ipv6)
        routes = [held.enter_context(netlink.inside(n, netlink.open_route)) for n in spaces]
        macs = [mac_of(h) for h in HOSTS]
        netlink.add_veth(routes[0], CARD, macs[0], CARD, macs[1], spaces[1], 1500)
        netlink.add_macvlan(routes[1], CARD, CARD, macs[2], spaces[2])
        for me, s in enumerate(routes):
            netlink.add_address(s, CARD, HOSTS[me])
            netlink.bring_up(s, "lo")
            netlink.bring_up(s, CARD)
            for there in {0, 1, 2} - {me}:
                netlink.add_neighbour(s, HOSTS[there], CARD, macs[there])
                netlink.add_route(s, HOSTS[there], CARD, netlink.MAIN)
            for jail in JAILS:
                netlink.add_neighbour(s, jail, CARD, hardware_address(0, jail))
                netlink.add_route(s, jail, CARD, netlink.MAIN)
        yield Nodes((spaces[0], spaces[1], spaces[2]))


def _without_ipv6() -> None:
    """A node's card would say what it pleases in IPv6 when it comes up, and the judge counts every frame."""
    for which in ("all", "default"):
        path = Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6")
        if path.exists():
            path.write_text("1")


def frame(source: str, target: str, protocol: int, to: bytes, of: bytes) -> bytes:
    """An Ethernet frame with an IPv4 packet: a TCP SYN to port 5000, or a UDP datagram there.

    Args:
        source: IPv4 address.
        target: IPv4 address.
        protocol: 6 or 17.
        to: hardware address [6] that it goes to.
        of: hardware address [6] that it says to come from.
    """
    ends = IPv4Address(source).packed + IPv4Address(target).packed
    if protocol == socket.IPPROTO_TCP:
        body = struct.pack("!HHIIBBHHH", 4000, 5000, 1, 0, 5 << 4, 2, 64000, 0, 0)
        pseudo = ends + struct.pack("!HH", protocol, len(body))
        body = body[:16] + _checksum(pseudo + body) + body[18:]
    else:
        body = struct.pack("!HHHH", 4000, 5000, 12, 0) + b"leak"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0) + ends
    head = head[:10] + _checksum(head) + head[12:]
    return to + of + b"\x08\x00" + head + body


def _checksum(data: bytes) -> bytes:
    """The Internet's (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", total ^ 0xFFFF)


def carried(watch: socket.socket) -> list[tuple[str, str, str]]:
    """(kind, source, target) of every frame since the last call: "tcp", "ip 17", or "type 0806" with hardware ends."""
    seen: list[tuple[str, str, str]] = []
    while True:
        try:
            data = watch.recv(65536)
        except BlockingIOError:
            return seen
        if data[12:14] != b"\x08\x00":
            seen.append((f"type {data[12:14].hex()}", data[6:12].hex(), data[:6].hex()))
            continue
        kind = "tcp" if data[23] == socket.IPPROTO_TCP else f"ip {data[23]}"
        seen.append((kind, str(IPv4Address(data[26:30])), str(IPv4Address(data[30:34]))))


def why_no_nodes() -> str:
    """Why nodes and jails on them cannot be made here; "" where they can."""
    if os.geteuid() != 0:
        return "only root makes devices"
    try:
        with nodes():
            return why_not()
    except OSError as e:
        return f"no devices: {e}"


def sites(folder: Path) -> tuple[Path, ...]:
    """Folders of two sites of one consortium, each with its host key as host.pem."""
    root = generate_key(folder / "root.pem")
    made = []
    for name in SITES:
        site = folder / name
        TrustStore(site / "trust").add("consortium-root", public_of(root))
        host = key_id_of(public_of(generate_key(site / "host.pem")))
        record = Site(name=name, country="JP", operator="consortium", host_key=host, until=date(2999, 1, 1))
        (site / "site.toml").write_text(dump_toml(record), "utf-8")
        sign_site(site / "site.toml", root)
        made.append(site)
    return tuple(made)
