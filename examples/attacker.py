"""Hostile code inside a jail: it tries every door it can think of, and prints which were shut.

    hagane jail run --read . -- python examples/attacker.py

It imports nothing of hagane and asks no leave: what stops it is the kernel. Run it without the jail to see the doors
open. It is harmless either way: it sends nothing (it asks for a route to addresses of nobody, RFC 5737 and 3849), and
removes what it wrote. What really leaves is not its to say: `hagane jail test` has a listener outside that judges.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

WORDS = b"two words"
libc = ctypes.CDLL(None, use_errno=True)


def is_open(fd: int) -> bool:
    """Whether a descriptor is open."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


INHERITED = [fd for fd in range(3, 1024) if is_open(fd)]


def call(result: int) -> int:
    """The result of a C call, or its errno as an exception."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def find_route() -> None:
    """Find a way for a datagram out of this machine."""
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("198.51.100.1", 9))


def find_route6() -> None:
    """Find a way for a datagram out of this machine over IPv6."""
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).connect(("2001:db8::1", 9))


def name_a_device() -> None:
    """Find a network device other than lo."""
    if not [name for _, name in socket.if_nameindex() if name != "lo"]:
        raise OSError(19, "there is only lo")


def open_vsock() -> None:
    """Open a socket to the machine's hypervisor."""
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)


def open_packet() -> None:
    """Open a socket below IP."""
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW)


def open_crypto() -> None:
    """Open a socket to the kernel's ciphers."""
    socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)


def open_ring() -> None:
    """Set up io_uring, which makes calls that no filter sees."""
    call(libc.syscall(425, 4, ctypes.create_string_buffer(120)))


def write_everywhere() -> None:
    """Write a file that stays: in the home folder, /var/tmp, /etc, or beside any package."""
    for folder in (Path.home(), Path("/var/tmp"), Path("/etc"), *map(Path, sys.path)):
        if not str(folder).startswith("/tmp"):
            try:
                with tempfile.TemporaryFile(dir=folder) as f:
                    f.write(WORDS)
                return
            except OSError:
                continue
    raise OSError(30, "nowhere but in private memory")


def find_descriptors() -> None:
    """Find a descriptor that somebody forgot to close."""
    if not INHERITED:
        raise OSError(9, "none was open but 0, 1 and 2")


def see_others() -> None:
    """See a process that is not ours."""
    mine = {os.getpid(), os.getppid(), 1}
    others = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    if not set(others) - mine:
        raise OSError(3, "there is nobody else")


def reach_others() -> None:
    """Take a descriptor of our parent's."""
    call(libc.syscall(438, call(libc.syscall(434, os.getppid(), 0)), 0, 0))


def trace_others() -> None:
    """Let ourselves be traced, as a debugger starts."""
    call(libc.ptrace(0, 0, 0, 0))


def be_root() -> None:
    """Become root of a user namespace of our own."""
    call(libc.unshare(0x10000000))


def mount_disk() -> None:
    """Mount a file system, in a mount namespace of our own so that nobody else sees it."""
    call(libc.unshare(0x20000))
    call(libc.mount(None, b"/", None, 0x44000, None))  # private, with all below
    call(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))


def load_program() -> None:
    """Give the kernel a program of bpf."""
    made = ctypes.create_string_buffer(b"\2\0\0\0\4\0\0\0\10\0\0\0\1\0\0\0", 120)
    call(libc.syscall(321 if os.uname().machine == "x86_64" else 280, 0, made, 120))


def keep_key() -> None:
    """Leave a key in the kernel's keyring."""
    number = 248 if os.uname().machine == "x86_64" else 217
    call(libc.syscall(number, b"user", b"attacker", WORDS, len(WORDS), -3))


def type_in_terminal() -> None:
    """Type a command into the terminal that started us."""
    fcntl.ioctl(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY), 0x5412, b"\0")  # TIOCSTI


def dump_core() -> None:
    """Allow core files again, through which memory reaches the disk."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if most <= 1:
        raise OSError(1, "the limit cannot be raised")


def use_sudo() -> None:
    """Run a program that has more rights than we do."""
    done = subprocess.run(["sudo", "-n", "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise OSError(1, "it has none here")


def read_secrets() -> None:
    """Read what other programs of this machine keep: keys of the shell, passwords."""
    for path in (Path.home() / ".ssh", Path("/etc/shadow"), Path("/var/log"), Path("/home")):
        if path.exists() and os.access(path, os.R_OK):
            return
    raise OSError(2, "nothing of it is here")


DOORS: tuple[Callable[[], None], ...] = (
    *(find_route, find_route6, name_a_device, open_vsock, open_packet, open_crypto, open_ring),
    *(write_everywhere, find_descriptors, read_secrets, see_others, reach_others, trace_others, be_root, mount_disk),
    *(load_program, keep_key, type_in_terminal, dump_core, use_sudo),
)


def main() -> int:
    """Try each door; the exit code is 1 when one was open."""
    opened = 0
    for door in DOORS:
        says = (door.__doc__ or "").rstrip(".")
        # each in a child: some doors change the process that goes through
        told, tells = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(5)  # a door that keeps us waiting is shut
            try:
                door()
                os.write(tells, b"OPEN")
            except Exception as e:
                os.write(tells, f"shut: {getattr(e, 'strerror', None) or e}".encode())
            os._exit(0)
        os.close(tells)
        os.waitpid(child, 0)
        answer = os.read(told, 500).decode() or "shut: no answer"
        os.close(told)
        opened += answer == "OPEN"
        print(f"{says:<82} {answer}")
    print(f"{len(DOORS)} doors, {opened} open")
    return int(opened > 0)


if __name__ == "__main__":
    sys.exit(main())
