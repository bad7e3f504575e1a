"""Veth: a jail on one of several nodes reaches the listed jails on the others by TCP, and nothing else. As root only.

    jail                    router (a namespace of its own, of nobody's reach)           node
    net0 10.7.0.1/32 <----> in          routes: rules, /32 each          up <-macvlan-> its card, its own addresses

- The jail's end has one address and a /32 route to each listed peer; there is no default route.
- The router is a network namespace that lives as long as the keeper holds it. It has no address, so there is nothing in
  it to reach; it forwards TCP from the jail to listed peers and from listed peers to the jail, each by a rule for the
  device that it came in by. All else meets a blackhole; strict reverse-path filtering (RFC 3704) drops every source
  address that would not be answered through the same device. The jail cannot change it, whatever it becomes inside.
- The macvlan leads past the node's own addresses: a card's host and its macvlans do not hear each other.
- Nobody asks who has an address: hardware addresses follow from the listed ones (02:68 and the four bytes), and ARP is
  off at every device. IPv6 is off. So no broadcast or multicast leaves.

The nodes must share one layer-2 segment whose switches let these hardware addresses pass. A machine on that segment
that takes a listed peer's address is believed by the router: that the segment holds no others is the site's signed
word (`fabric` in site.toml), and the records that keepers exchange (`peers`) say who stands behind each address. What
goes over it is not encrypted. Not covered: GPU nodes and RDMA (InfiniBand, RoCE, NVLink between nodes), whose traffic
this router does not see and which were not run; and more than one segment.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from hagane.jail import netlink
from hagane.terms import JailError

_JAIL, _IN, _UP = "net0", "in", "up"
_TO_PEERS, _TO_JAIL = 100, 101  # tables of routes, and priorities of the rules that ask them
_CONF = Path("/proc/sys/net")
_OFF = (
    *("accept_local", "accept_redirects", "accept_source_route", "bootp_relay", "proxy_arp", "proxy_arp_pvlan"),
    *("route_localnet", "send_redirects", "src_valid_mark"),
)


@dataclass(frozen=True)
class Link:
    """How one jail reaches its peers.

    Raises:
        JailError: an address that is none of a machine, twice the same, or no peers.
    """

    card: str
    """The node's network device towards the other nodes."""
    address: IPv4Address
    """The jail's own."""
    peers: tuple[IPv4Address, ...]
    """The jails it may reach."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,14}", self.card):
            raise JailError("no name of a network device", where=repr(self.card), next_step="`ip link` shows them")
        if not self.peers:
            raise JailError("a device without a peer leads nowhere", next_step="list one peer at least")
        for address in (self.address, *self.peers):
            if address.is_loopback or address.is_multicast or address.is_reserved or address.is_unspecified:
                raise JailError("no address of one machine", where=str(address))
        if len({self.address, *self.peers}) <= len(self.peers):
            raise JailError("an address occurs twice", where=", ".join(map(str, (self.address, *self.peers))))


@contextmanager
def wiring(link: Link) -> Iterator[Callable[[int], None]]:
    """What `start` takes as `wire`; devices and router end with the `with` block, or with this process.

    Raises:
        JailError: from the wire, when a device, a route or a setting cannot be made; nothing of it stays.
    """
    with ExitStack() as held:

        def wire(pid: int) -> None:
            try:
                _build(link, pid, held)
            except OSError as e:
                about = f" ({e.filename})" if e.filename else ""
                raise JailError(
                    f"no way to the peers was made, and nothing ran: {e.strerror}{about}",
                    where=f"device {link.card}, address {link.address}",
                    next_step="run it as root, on a card that `ip link` shows, with an address that no other jail "
                    "on it has; the kernel needs CONFIG_VETH, CONFIG_MACVLAN and CONFIG_IP_MULTIPLE_TABLES",
                ) from None

        yield wire


def hardware_address(side: int, address: IPv4Address) -> bytes:
    """The hardware address [6] that follows from a jail's: locally administered, unicast (IEEE 802).

    Args:
        side: 0 on the segment, 1 and 2 at the router's and the jail's end of the pair.
        address: the jail's.
    """
    return bytes((0x02, 0x68 + side)) + address.packed


def _build(link: Link, pid: int, held: ExitStack) -> None:
    with ExitStack() as here:
        jail = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        here.callback(os.close, jail)
        router = netlink.new_namespace()
        held.callback(os.close, router)
        outside = here.enter_context(netlink.open_route())
        middle = held.enter_context(netlink.inside(router, netlink.open_route))
        within = here.enter_context(netlink.inside(jail, netlink.open_route))
        _set(router, {"ipv4/ip_forward": 1, **_quiet(), "ipv6/conf/all/disable_ipv6": 1})
        _set(jail, {"ipv6/conf/default/disable_ipv6": 1, "ipv4/conf/default/accept_redirects": 0})
        netlink.add_macvlan(outside, link.card, _UP, hardware_address(0, link.address), router)
        held.callback(netlink.remove, middle, _UP)  # at once: its hardware address may be wanted again
        ends = (hardware_address(1, link.address), hardware_address(2, link.address))
        netlink.add_veth(middle, _IN, ends[0], _JAIL, ends[1], jail, netlink.mtu_of(outside, link.card))
        netlink.add_address(within, _JAIL, link.address)
        # rules before devices are up: there is no moment in which more would pass
        netlink.add_blackhole(middle)
        netlink.add_rule(middle, _IN, socket.IPPROTO_TCP, _TO_PEERS)
        netlink.add_rule(middle, _UP, socket.IPPROTO_TCP, _TO_JAIL)
        for s, name in ((within, _JAIL), (middle, _IN), (middle, _UP)):
            netlink.bring_up(s, name)
        netlink.add_neighbour(middle, link.address, _IN, ends[1])
        netlink.add_route(middle, link.address, _IN, _TO_JAIL)
        for peer in link.peers:
            netlink.add_neighbour(within, peer, _JAIL, ends[0])
            netlink.add_neighbour(middle, peer, _UP, hardware_address(0, peer))
            netlink.add_route(within, peer, _JAIL, netlink.MAIN)
            netlink.add_route(middle, peer, _UP, _TO_PEERS)


def _quiet() -> dict[str, int]:
    """The settings of a router that answers nothing; devices made later start with "default"."""
    quiet = {f"ipv4/conf/{which}/{name}": 0 for which in ("all", "default") for name in _OFF}
    return {**quiet, "ipv4/conf/all/rp_filter": 1, "ipv4/conf/default/rp_filter": 1}


def _set(namespace: int, values: Mapping[str, int]) -> None:
    """Write settings of a network namespace, and read each again."""

    def write() -> None:
        for name, value in values.items():
            path = _CONF / name
            if name.startswith("ipv6") and not (_CONF / "ipv6").exists():
                continue  # a kernel without IPv6
            path.write_text(str(value), "ascii")
            if path.read_text("ascii").strip() != str(value):
                raise OSError(5, "the kernel did not keep a setting", str(path))

    netlink.inside(namespace, write)
