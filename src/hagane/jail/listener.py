"""The judge of a trial: it listens outside, where a jail cannot reach by design, and says what arrived.

It takes nobody's word: a token counts as leaked when its bytes came out of a socket, a file, a descriptor, a terminal
or an object of the kernel that the judge itself holds. Tokens are random and never used twice, so what arrives late is
still known for whose it is.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hagane.jail import listener_shared as shared
from hagane.jail.listener_places import SEEN_MODE, Places
from hagane.jail.listener_sockets import Ears, Source, open_inherited, open_relays, open_sockets

TAIL_BYTES = 65_536
LAST_S = 0.05
"""How long the judge still listens after an attempt has ended: what the kernel has then not delivered, it drops."""
TOKEN_BYTES = 16
DEADLY = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGALRM)
QUEUED = signal.SIGRTMIN + 7
VSOCK_BASE = 700_000


class Listener:
    """Everything that the judge listens on, for the length of a trial.

    Attributes:
        at: what every attempt is told, beside its own prefix.
        inherit: descriptors that every attempt's process is started with.
        missing: channels that this host could not open, with the reason.
        places: the folders that are watched.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._ears = Ears(stack)
        self._tails: dict[str, bytes] = {}
        self._seen: dict[bytes, set[str]] = {}
        self._domain = b""
        name = f"hagane-trial-{secrets.token_hex(4)}"
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{name}-", dir="/var/tmp")))
        home = Path.home()
        if not os.access(home, os.W_OK):
            home = root / "home"
            home.mkdir()
        self.places = Places(root, home)
        self.places.fresh()
        shared.own_session()
        open_sockets(self._ears)
        open_relays(self._ears, name)
        open_inherited(self._ears, self.places.held)
        self._memory, self._decoy = _decoy(self._ears)
        self.at, self.inherit, self.missing = self._ears.at, tuple(self._ears.inherit), self._ears.missing
        self.at |= self._constants()

    def _constants(self) -> dict[str, Any]:
        return {
            "deadly": [int(s) for s in DEADLY],
            "signal": int(QUEUED),
            "key": secrets.randbelow(2**30) + 1,
            "vsock": VSOCK_BASE + secrets.randbelow(2**20) * 512,
            "tmp": "/tmp",
            "var_tmp": "/var/tmp",
            "home": str(self.places.home),
            "data": str(self.places.data),
            "runs": str(self.places.runs),
            "cgroup": _cgroup(),
        }

    def token(self) -> bytes:
        """A fresh token in hexadecimal that no untouched file, exit code or time looks like; its channels are new."""
        while True:
            text = secrets.token_hex(TOKEN_BYTES)
            if int(text[:2], 16) > 1 and int(text[:3], 16) & 0o777 != SEEN_MODE:
                break
        self.places.fresh()
        self._memory[:64] = bytes(64)
        with contextlib.suppress(OSError):
            self._domain = shared.domain_name().strip()
        self._seen[text.encode()] = set()
        return text.encode()

    def seen(self, token: bytes) -> list[str]:
        """Where a token arrived so far."""
        return sorted(self._seen[token])

    @contextlib.contextmanager
    def terminal(self) -> Iterator[int]:
        """A new terminal whose output the judge reads; yields the end that a program has."""
        ours, theirs = os.openpty()
        with self._hearing("terminal", ours):
            try:
                yield theirs
                self._flush(theirs)
            finally:
                os.close(theirs)

    @contextlib.contextmanager
    def output(self) -> Iterator[int]:
        """A pipe that the judge reads; yields the end to write to."""
        ours, theirs = os.pipe()
        with self._hearing("output", ours):
            try:
                yield theirs
            finally:
                os.close(theirs)

    def hear(self, wait_s: float, also: int | None = None) -> bool:
        """Take all that has arrived, waiting a while for the first; True when descriptor `also` became readable."""
        poll = select.poll()
        by_fd = {source.fd: source for source in self._ears.sources}
        for fd in (*by_fd, *(() if also is None else (also,))):
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(wait_s * 1000)]
        for fd in ready:
            if fd in by_fd:
                self._take(by_fd[fd])
        return also in ready

    def drain(self) -> None:
        """Take everything that is there or on its way, and have the decoy tell what it still holds."""
        assert self._decoy.stdin and self._decoy.stdout
        with contextlib.suppress(BrokenPipeError):
            self._decoy.stdin.write(b"?")
            self._decoy.stdin.flush()
            self._decoy.stdout.readline()
        until = time.monotonic() + LAST_S
        while (left := until - time.monotonic()) > 0:
            self.hear(left)

    def _flush(self, terminal: int) -> None:
        """Wait until what was written to a terminal has come out: a mark of ours comes out behind it."""
        mark = secrets.token_hex(8).encode()
        until = time.monotonic() + 1.0
        with contextlib.suppress(OSError):  # hung up: nothing comes any more
            os.write(terminal, mark)
            while mark not in self._tails.get("terminal", b"") and time.monotonic() < until:
                self.hear(0.05)

    @contextlib.contextmanager
    def _hearing(self, channel: str, fd: int) -> Iterator[None]:
        os.set_blocking(fd, False)
        source = Source(channel, fd, lambda: os.read(fd, TAIL_BYTES))
        self._ears.sources.append(source)
        try:
            yield
            while self._take(source):
                pass
        finally:
            if source in self._ears.sources:
                self._ears.sources.remove(source)
            os.close(fd)

    def look_live(self, token: bytes, prefix: str) -> None:
        """Look at what is there only while the attempt runs."""
        raw = bytes.fromhex(token.decode())
        self._note(token, "locks on a file", self.places.locked(token))
        self._note(token, "ports of vsock", shared.vsock_ports(self.at["vsock"], TOKEN_BYTES) == raw)
        self._note(token, "a bpf map", token in shared.bpf_map(prefix))
        self._note(token, "a process's name", shared.titles("~" + token.decode()[:14]))

    def look(self, token: bytes, prefix: str, ended: bool) -> None:
        """Look at everything that an attempt may have left; when it has ended also at what outlived it."""
        self._note(token, self.places.found(prefix, token), True)
        self._note(token, "memory of the decoy", token in self._memory[:64])
        self._note(token, "System V objects", token in shared.system_v(self.at["key"], len(token)))
        self._note(token, "a POSIX queue", token in shared.posix_queue(f"{prefix}queue"))
        self._note(token, "a keyring", token in shared.keys(f"{prefix}key"))
        self._note(token, "a process that outlived it", ended and shared.arguments(token))
        group = Path(self.at["cgroup"] or "/nowhere") / token.decode()
        self._note(token, "a control group", group.exists())
        with contextlib.suppress(OSError):
            self._note(token, "the domain name", token in shared.domain_name())

    def note(self, token: bytes, channel: str) -> None:
        """Write down that a token arrived on a channel that the trial itself holds, as an exit code."""
        self._note(token, channel, True)

    def clear(self, token: bytes, prefix: str) -> None:
        """Remove what one attempt left on the host."""
        self.places.clear(prefix, token)
        shared.clear(self.at["key"], prefix)
        with contextlib.suppress(OSError):
            if token in shared.domain_name():
                shared.libc.setdomainname(self._domain, len(self._domain))
        with contextlib.suppress(OSError):
            (Path(self.at["cgroup"]) / token.decode()).rmdir()

    def _note(self, token: bytes, channel: str, found: bool) -> None:
        if found and channel:
            self._seen[token].add(channel)

    def _take(self, source: Source) -> bool:
        """Read one source; True when something came."""
        if source.accepts is not None:
            with contextlib.suppress(OSError):
                connection, _ = source.accepts.accept()
                self._ears.hear_socket(source.channel, connection)
                return True
            return False
        try:
            data = source.read()
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._ears.sources.remove(source)  # the other side is gone; the descriptor closes with the trial
            return False
        tail = self._tails.get(source.channel, b"") + data
        self._tails[source.channel] = tail[-TAIL_BYTES:]
        for token, channels in self._seen.items():
            if token in tail:
                channels.add(source.channel)
        return True


def _decoy(ears: Ears) -> tuple[mmap.mmap, subprocess.Popen[bytes]]:
    """Start the decoy, tell attempts where it is, and return the memory that it shares with us."""
    memory_fd = os.memfd_create("decoy")
    ears.stack.callback(os.close, memory_fd)
    os.ftruncate(memory_fd, mmap.PAGESIZE)
    read_end, write_end = os.pipe()
    ears.hear_fd("decoy", read_end)
    program = str(Path(__file__).with_name("decoy.py"))
    command = [sys.executable, "-I", program, str(memory_fd), str(write_end), str(int(QUEUED))]
    pipe = subprocess.PIPE
    decoy = subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=(memory_fd, write_end))
    os.close(write_end)
    ears.stack.callback(_end, decoy)
    assert decoy.stdout
    ears.at |= {"decoy": decoy.pid, "judge": decoy.pid, "decoy_fd": write_end, "memory": int(decoy.stdout.readline())}
    return mmap.mmap(memory_fd, mmap.PAGESIZE), decoy


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for end in (process.stdin, process.stdout):
        if end:
            end.close()


def _cgroup() -> str:
    """A folder of the control group file system in which a group can be made; empty when there is none."""
    for folder in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        if Path(folder, "cgroup.procs").exists() and os.access(folder, os.W_OK):
            return folder
    return ""
