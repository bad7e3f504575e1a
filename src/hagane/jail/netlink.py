"""Netlink: the few requests about devices, addresses, routes, neighbours and rules that `veth` makes; no tool is run.

A request names a device by its index inside the network namespace that the socket was opened in, whoever uses it
later. Numbers: Linux include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,neighbour,fib_rules,veth}.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from fcntl import ioctl
from ipaddress import IPv4Address
from typing import TypeVar

from hagane.jail.namespaces import FLAGS, enter
from hagane.jail.syscalls import call

T = TypeVar("T")
_SOL_NETLINK, _CAP_ACK = 270, 10
_REQUEST, _ACK, _EXCL, _CREATE, _ERROR = 1, 4, 0x200, 0x400, 2
_NEWLINK, _DELLINK, _NEWADDR, _NEWROUTE, _NEWNEIGH, _NEWRULE = 16, 17, 20, 24, 28, 32
_LINK_ADDRESS, _LINK_NAME, _LINK_MTU, _LINK_BELOW, _LINK_INFO, _LINK_NAMESPACE = 1, 3, 4, 5, 18, 28
_INFO_KIND, _INFO_DATA, _VETH_PEER, _MACVLAN_MODE, _MACVLAN_PRIVATE = 1, 2, 1, 1, 1
_UP, _NO_ARP, _PERMANENT = 0x1, 0x80, 0x80
_STATIC, _LINK_SCOPE, _UNICAST, _BLACKHOLE, _TO_TABLE = 4, 253, 1, 6, 1
_RULE_DEVICE, _RULE_PRIORITY, _RULE_TABLE, _RULE_PROTOCOL = 3, 6, 15, 22
_GET_MTU, _GET_INDEX = 0x8921, 0x8933
MAIN = 254
"""The table of routes that is asked when no rule of ours matched."""


def inside(namespace: int, act: Callable[[], T]) -> T:
    """Do something in another network namespace; only a thread that ends with it goes there.

    Args:
        namespace: descriptor of the network namespace; -1 for a new one.
        act: what is done; its result or error is handed on.

    Raises:
        OSError: no right to enter.
    """

    def go() -> T:
        if namespace < 0:
            enter("netns")
        else:
            call("setns", namespace, FLAGS["netns"])
        return act()

    from concurrent.futures import ThreadPoolExecutor  # 10 ms of import that most jails do not need

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(go).result()


def new_namespace() -> int:
    """A new network namespace; it lasts as long as its descriptor, or what the caller moves into it.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN.
    """
    return inside(-1, lambda: os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))


def open_route() -> socket.socket:
    """A socket for the requests below, about the network namespace of the calling thread."""
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    s.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)  # an answer does not repeat what was asked
    s.settimeout(10)
    return s


def add_macvlan(s: socket.socket, below: str, name: str, mac: bytes, namespace: int) -> None:
    """Make a device with an address of its own on top of a network card, directly in another namespace.

    It cannot talk to the host that has the card, nor to others on the same card (mode "private").

    Raises:
        OSError: ENODEV for no such card, EADDRINUSE for a hardware address that is taken on it.
    """
    mode = _attribute(_MACVLAN_MODE, struct.pack("=I", _MACVLAN_PRIVATE))
    lower = _attribute(_LINK_BELOW, struct.pack("=I", index_of(s, below)))
    place = _attribute(_LINK_NAMESPACE, struct.pack("=i", namespace))
    _new(s, _NEWLINK, _link(), lower + _named(name, mac) + place + _kind("macvlan", mode))


def add_veth(s: socket.socket, name: str, mac: bytes, far: str, far_mac: bytes, namespace: int, mtu: int) -> None:
    """Make a pair of devices: one end here, the far end directly in another namespace.

    Args:
        s: socket of the near end's namespace.
        name: the near end.
        mac: its hardware address [6].
        far: the far end.
        far_mac: its hardware address [6].
        namespace: descriptor of the far end's namespace.
        mtu: bytes of the largest packet, for both.

    Raises:
        OSError: EEXIST, EPERM.
    """
    size = _attribute(_LINK_MTU, struct.pack("=I", mtu))
    place = _attribute(_LINK_NAMESPACE, struct.pack("=i", namespace))
    peer = _attribute(_VETH_PEER, _link() + _named(far, far_mac) + size + place)
    _new(s, _NEWLINK, _link(), _named(name, mac) + size + _kind("veth", peer))


def bring_up(s: socket.socket, name: str) -> None:
    """Bring a device up that never asks or answers who has an address (no ARP)."""
    _ask(s, _NEWLINK, 0, _link(index_of(s, name), _UP | _NO_ARP), b"")


def remove(s: socket.socket, name: str) -> None:
    """Remove a device, and its other end; it is gone when this returns, as it is not when its namespace ends."""
    _ask(s, _DELLINK, 0, _link(index_of(s, name)), b"")


def add_address(s: socket.socket, name: str, address: IPv4Address) -> None:
    """Give a device one address with nobody beside it (/32, no broadcast)."""
    _new(s, _NEWADDR, struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, index_of(s, name)), _attribute(2, address.packed))


def add_route(s: socket.socket, address: IPv4Address, name: str, table: int) -> None:
    """Lead to one address through a device."""
    head = struct.pack("=8BI", socket.AF_INET, 32, 0, 0, table, _STATIC, _LINK_SCOPE, _UNICAST, 0)
    _new(s, _NEWROUTE, head, _attribute(1, address.packed) + _attribute(4, struct.pack("=I", index_of(s, name))))


def add_blackhole(s: socket.socket) -> None:
    """Drop without a word what no other route leads on."""
    _new(s, _NEWROUTE, struct.pack("=8BI", socket.AF_INET, 0, 0, 0, MAIN, _STATIC, 0, _BLACKHOLE, 0), b"")


def add_neighbour(s: socket.socket, address: IPv4Address, name: str, mac: bytes) -> None:
    """Say for ever which hardware address [6] has an address."""
    head = struct.pack("=BxxxiHBB", socket.AF_INET, index_of(s, name), _PERMANENT, 0, 0)
    _new(s, _NEWNEIGH, head, _attribute(1, address.packed) + _attribute(2, mac))


def add_rule(s: socket.socket, name: str, protocol: int, table: int) -> None:
    """Ask a table of routes about packets of one IP protocol that come in by a device.

    Raises:
        OSError: EOPNOTSUPP or EAFNOSUPPORT for a kernel without CONFIG_IP_MULTIPLE_TABLES.
    """
    head = struct.pack("=8BI", socket.AF_INET, 0, 0, 0, table, 0, 0, _TO_TABLE, 0)
    words = _attribute(_RULE_PRIORITY, struct.pack("=I", table)) + _attribute(_RULE_TABLE, struct.pack("=I", table))
    device = _attribute(_RULE_DEVICE, name.encode() + b"\0")
    _new(s, _NEWRULE, head, words + device + _attribute(_RULE_PROTOCOL, bytes([protocol])))


def index_of(s: socket.socket, name: str) -> int:
    """Number of a device in the socket's namespace.

    Raises:
        OSError: ENODEV.
    """
    return _interface(s, name, _GET_INDEX)


def mtu_of(s: socket.socket, name: str) -> int:
    """Bytes of the largest packet of a device.

    Raises:
        OSError: ENODEV.
    """
    return _interface(s, name, _GET_MTU)


def _interface(s: socket.socket, name: str, request: int) -> int:
    try:
        answer = ioctl(s.fileno(), request, struct.pack("16s24x", name.encode()))
    except OSError as e:
        raise OSError(e.errno, e.strerror, name) from None
    return int(struct.unpack_from("=i", answer, 16)[0])


def _new(s: socket.socket, kind: int, head: bytes, attributes: bytes) -> None:
    _ask(s, kind, _CREATE | _EXCL, head, attributes)


def _ask(s: socket.socket, kind: int, flags: int, head: bytes, attributes: bytes) -> None:
    """Send one request and read its answer; the kernel answers before it returns."""
    body = head + attributes
    s.sendto(struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | _ACK | flags, 1, 0) + body, (0, 0))
    data, sender = s.recvfrom(4096)
    if error := read_ack(data, sender[0], kind):
        raise OSError(error, os.strerror(error))


def read_ack(data: bytes, sender: int, asked: int) -> int:
    """The errno in the kernel's answer to one request; 0 when it was done.

    Args:
        data: what came: one header and one `struct nlmsgerr` without the request's body.
        sender: netlink port that it came from.
        asked: kind of the request.

    Raises:
        OSError: EBADMSG for anything else than the kernel's answer to that request.
    """
    if len(data) == 36 and sender == 0:
        size, kind, _, sequence, _, error, _, echo, _, echo_sequence, _ = struct.unpack("=IHHIIiIHHII", data)
        if (size, kind, sequence, echo, echo_sequence) == (36, _ERROR, 1, asked, 1) and -4096 < error <= 0:
            return -int(error)
    raise OSError(74, f"netlink: {len(data)} bytes that are no answer to request {asked}")


def _link(index: int = 0, flags: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, flags)  # struct ifinfomsg


def _named(name: str, mac: bytes) -> bytes:
    return _attribute(_LINK_NAME, name.encode() + b"\0") + _attribute(_LINK_ADDRESS, mac)


def _kind(kind: str, data: bytes) -> bytes:
    return _attribute(_LINK_INFO, _attribute(_INFO_KIND, kind.encode()) + _attribute(_INFO_DATA, data))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
