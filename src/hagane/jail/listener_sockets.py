"""What the judge listens on: sockets of every family, named pipes, descriptors to inherit, logs.

A `Source` is a descriptor that becomes readable when something arrives; each yields the bytes that arrived.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ETHER_TYPE = 0x88B5  # IEEE 802: for local experiments
UDP_LITE = 136
ICMP, EXPERIMENT = 1, 253  # RFC 3692
MOST_BYTES = 65_536


@dataclass(frozen=True)
class Source:
    """A descriptor that the judge reads."""

    channel: str
    """Its name, that of the attempt which uses it."""
    fd: int
    """Readable when something arrived; not blocking."""
    read: Callable[[], bytes]
    """Takes what arrived; empty when that was nothing."""
    accepts: socket.socket | None = None
    """What arrives are connections, which become sources of their own."""


@dataclass
class Ears:
    """Open sources, what attempts are told about them, and what this host could not open."""

    stack: ExitStack
    """Closes all of it."""
    sources: list[Source] = field(default_factory=list)
    """What is listened on."""
    at: dict[str, Any] = field(default_factory=dict)
    """Ports, paths and descriptors by channel."""
    missing: dict[str, str] = field(default_factory=dict)
    """Channels that could not be opened, with the reason."""
    inherit: list[int] = field(default_factory=list)
    """Descriptors that attempts are started with."""

    def hear_socket(self, channel: str, s: socket.socket, *, accepts: bool = False) -> None:
        """Listen on a socket that is bound already."""
        s.setblocking(False)
        self.stack.callback(s.close)
        self.sources.append(Source(channel, s.fileno(), lambda: s.recv(MOST_BYTES), s if accepts else None))

    def hear_fd(self, channel: str, fd: int) -> None:
        """Listen on a descriptor, which is closed at the end."""
        os.set_blocking(fd, False)
        self.stack.callback(os.close, fd)
        self.sources.append(Source(channel, fd, lambda: os.read(fd, MOST_BYTES)))

    def pass_on(self, channel: str, fd: int) -> None:
        """A descriptor that every attempt's process is started with."""
        self.stack.callback(os.close, fd)
        self.at[channel] = fd
        self.inherit.append(fd)

    @contextlib.contextmanager
    def may_lack(self, channel: str) -> Any:
        """What this kernel or user may not open is written down, not raised."""
        try:
            yield
        except OSError as e:
            self.missing[channel] = f"the listener cannot be opened here: {e.strerror or e}"


def open_sockets(ears: Ears) -> None:
    """Open every internet socket, each on a port of its own."""
    inet, inet6, dgram, stream = socket.AF_INET, socket.AF_INET6, socket.SOCK_DGRAM, socket.SOCK_STREAM
    for channel in ("tcp", "fast_open", "mptcp", "ring_connect"):
        _bound(ears, channel, inet, stream, 0, "127.0.0.1")
    for channel in ("udp", "by_ctypes"):
        _bound(ears, channel, inet, dgram, 0, "127.0.0.1")
    _bound(ears, "udp_lite", inet, dgram, UDP_LITE, "127.0.0.1")
    _bound(ears, "sctp", inet, stream, socket.IPPROTO_SCTP, "127.0.0.1")
    _bound(ears, "tcp6", inet6, stream, 0, "::1")
    _bound(ears, "udp6", inet6, dgram, 0, "::1")
    with contextlib.suppress(OSError):
        _bound(ears, "dns", inet, dgram, 0, "127.0.0.1", 53)
    if "dns" not in ears.at:  # no right to port 53, or it is in use
        _bound(ears, "dns", inet, dgram, 0, "127.0.0.1")
    ears.at["host"] = host_address()
    _bound(ears, "host_address", inet, dgram, 0, ears.at["host"])
    _raw(ears)


def _raw(ears: Ears) -> None:
    for channel, protocol in (("raw_ip", EXPERIMENT), ("ping", ICMP)):
        with ears.may_lack(channel):
            ears.hear_socket(channel, socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol))
    ears.at["ether_type"] = ETHER_TYPE
    with ears.may_lack("packet"):
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHER_TYPE))
        s.bind(("lo", ETHER_TYPE))
        ears.hear_socket("packet", s)
    with ears.may_lack("netlink"):
        s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_USERSOCK)
        s.bind((0, 0))
        ears.at["netlink"] = s.getsockname()[0]
        ears.hear_socket("netlink", s)
    with ears.may_lack("kernel_log"):
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(log, 0, os.SEEK_END)
        ears.hear_fd("kernel_log", log)


def open_relays(ears: Ears, name: str) -> None:
    """Open unix sockets and a named pipe where services of a host have them; `name` is theirs alone."""
    folder = Path(ears.stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{name}-", dir="/tmp")))
    _unix(ears, "unix_path", str(folder / "relay"), socket.SOCK_STREAM)
    _unix(ears, "unix_datagram", str(folder / "log"), socket.SOCK_DGRAM)
    _unix(ears, "unix_abstract", f"\0{name}", socket.SOCK_STREAM)
    run = os.environ.get("XDG_RUNTIME_DIR") or "/run"
    _unix(ears, "unix_run", f"{run}/{name}.sock", socket.SOCK_STREAM)
    ears.at["fifo"] = str(folder / "pipe")
    os.mkfifo(folder / "pipe", 0o600)
    ears.hear_fd("fifo", os.open(folder / "pipe", os.O_RDWR | os.O_NONBLOCK))


def open_inherited(ears: Ears, folder: Path) -> None:
    """Descriptors that a careless parent leaves open: a pipe, a socket, a file, a folder, which must exist."""
    read_end, write_end = os.pipe()
    ears.hear_fd("inherited_pipe", read_end)
    ears.pass_on("inherited_pipe", write_end)
    ours, theirs = socket.socketpair()
    ears.hear_socket("inherited_socket", ours)
    ears.pass_on("inherited_socket", theirs.detach())
    ears.pass_on("inherited_file", os.open(folder / "inherited.txt", os.O_CREAT | os.O_RDWR, 0o600))
    ears.pass_on("inherited_folder", os.open(folder, os.O_RDONLY | os.O_DIRECTORY))


def host_address() -> str:
    """An address of this host beside loopback, by asking for a route; nothing is sent. Else 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("198.51.100.1", 9))  # RFC 5737: an address of nobody
            return str(s.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _bound(ears: Ears, channel: str, family: int, kind: int, protocol: int, host: str, port: int = 0) -> None:
    with ears.may_lack(channel):
        s = socket.socket(family, kind, protocol)
        try:
            s.bind((host, port))
            if kind == socket.SOCK_STREAM:
                s.listen(16)
        except OSError:
            s.close()
            raise
        ears.at[channel] = s.getsockname()[1]
        ears.missing.pop(channel, None)
        ears.hear_socket(channel, s, accepts=kind == socket.SOCK_STREAM)


def _unix(ears: Ears, channel: str, address: str, kind: int) -> None:
    with ears.may_lack(channel):
        s = socket.socket(socket.AF_UNIX, kind)
        s.bind(address)
        if not address.startswith("\0"):
            ears.stack.callback(Path(address).unlink, missing_ok=True)
        if kind == socket.SOCK_STREAM:
            s.listen(16)
        ears.at[channel] = address.lstrip("\0")
        ears.hear_socket(channel, s, accepts=kind == socket.SOCK_STREAM)
