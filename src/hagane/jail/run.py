"""Start a jail, and be told how it ends.

A small single-threaded process is executed for it (`stage`): the caller may have threads, which a user namespace does
not allow. The caller's end of one pipe is the jail's lifeline: however the caller dies, the jail dies.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from stat import S_ISCHR, S_ISFIFO

from hagane.jail.namespaces import INSIDE_ID
from hagane.jail.order import Order
from hagane.jail.plan import Plan
from hagane.jail.report import AWAITS, ENDED, FAILED, GO, INIT, STARTED, TERMINATE
from hagane.terms import JailError

_STAGE = Path(__file__).with_name("stage.py")
_HOST_NAME = "hagane"
_CPUS = "/sys/devices/system/cpu"


class Jailed:
    """A jail whose command runs or has ended. Leaving the `with` block kills what is left of it."""

    def __init__(self, stage: subprocess.Popen[bytes], status: int, life: int) -> None:
        self._stage, self._life = stage, life
        self._status = os.fdopen(status, "rb")
        self._code: int | None = None
        self.pid = 0
        """The init, as the host numbers it."""

    @property
    def root(self) -> Path:
        """The jail's root as seen from here, until `release`. Read works by `collect`: links lead to the host."""
        return Path(f"/proc/{self.pid}/root")

    def wait(self) -> int:
        """Wait until the command has ended and nothing runs inside; 0 when it ended with 0, else 1 (also by a kill)."""
        if self._code is None:
            kind, words = self._hear()
            self._code = int(words[0]) if kind == ENDED else 1
        return self._code

    def terminate(self) -> None:
        """Pass SIGTERM to the command."""
        self._say(TERMINATE)

    def release(self) -> None:
        """Let the jail and its work area go; call it when what is wanted of `root` was read."""
        self._say(GO)
        self._close()

    def kill(self) -> None:
        """End everything inside at once."""
        self._close()

    def __enter__(self) -> Jailed:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _say(self, word: bytes) -> None:
        try:
            os.write(self._life, word)
        except OSError:
            pass  # it has ended

    def _hear(self) -> tuple[str, list[str]]:
        line = self._status.readline().decode().rstrip("\n")
        kind, *words = line.split("\t")
        return kind, words

    def _until(self, kind: str, *words: str) -> None:
        """Listen until a line comes, and the init's number; any other line means that there is no jail."""
        wanted = (kind, [*words])
        heard: tuple[str, list[str]] = ("", [])
        while heard != wanted or not self.pid:
            line = self._hear()
            if line[0] == INIT:
                self.pid = int(line[1][0])
            elif line == wanted:
                heard = line
            else:
                self._close()
                raise _failure(*line)

    def _close(self) -> None:
        if self._life >= 0:
            os.close(self._life)
            self._life = -1
            self._stage.wait()
            self._status.close()
            self._code = 1 if self._code is None else self._code


def start(
    plan: Plan,
    stdout: int,
    stderr: int,
    fill: Callable[[Path], None] | None = None,
    wire: Callable[[int], None] | None = None,
) -> Jailed:
    """Make the jail and run its command.

    Args:
        plan: what it holds.
        stdout: descriptor of a pipe, or of /dev/null: nothing else is let in.
        stderr: as `stdout`.
        fill: called with the jail's root, as seen from here, before the command runs: puts files into its works.
        wire: called with the init's number when its network namespace is there: puts a device into it.

    Raises:
        JailError: a layer of the plan cannot be made here; it names the step, and nothing was run.
    """
    if "fds" in plan.layers.on:
        _check_output(stdout, "stdout")
        _check_output(stderr, "stderr")
    jailed = _stage(plan, stdout, stderr, wired=wire is not None)
    try:
        if wire:
            jailed._until(AWAITS, "network")
            wire(jailed.pid)
            jailed._say(GO)
        jailed._until(AWAITS, "command")
        if fill:
            fill(jailed.root)
        jailed._say(GO)
        jailed._until(STARTED)
    except BaseException:
        jailed.kill()
        raise
    return jailed


def _stage(plan: Plan, stdout: int, stderr: int, wired: bool) -> Jailed:
    """Execute the stage and give it its order."""
    status, tells = os.pipe()
    hears, life = os.pipe()
    closing = "fds" in plan.layers.on
    for fd in (tells, hears):
        os.set_inheritable(fd, not closing)  # passed by name otherwise
    try:
        stage = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_STAGE), str(tells), str(hears)],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            close_fds=closing,
            pass_fds=(tells, hears) if closing else (),
            env={},
            start_new_session="session" in plan.layers.on,
        )
    except BaseException:
        os.close(status)
        os.close(life)
        raise
    finally:
        os.close(tells)
        os.close(hears)
    assert stage.stdin is not None
    try:
        with stage.stdin:
            stage.stdin.write(_order(plan, wired).dump())
    except BrokenPipeError:
        pass  # it ended early, and the status says why
    return Jailed(stage, status, life)


def _order(plan: Plan, wired: bool) -> Order:
    pairs = {k: tuple((str(b.source), str(b.target)) for b in getattr(plan, k)) for k in ("reads", "sockets")}
    env = dict(plan.env) if "env" in plan.layers.on else {**os.environ, **plan.env}
    # the kernel ties that signal to the thread that executed the stage: of no use where threads come and go
    lasting = threading.current_thread() is threading.main_thread()
    return Order(
        command=plan.command,
        cwd=str(plan.cwd),
        env=env,
        files=_files(),
        host_name=_HOST_NAME,
        layers=frozenset(plan.layers.on),
        parent=os.getpid() if lasting else 0,
        size_bytes=plan.size_bytes,
        wired=wired,
        works=tuple(str(w) for w in plan.works),
        **pairs,
    )


def _files() -> dict[str, bytes]:
    """The few files under /etc and /sys that libraries read: names, and how many processors there are."""
    user = f"hagane:x:{INSIDE_ID}:{INSIDE_ID}::/tmp:/bin/sh\n"
    files = {
        "/etc/passwd": user.encode(),
        "/etc/group": f"hagane:x:{INSIDE_ID}:\n".encode(),
        "/etc/hosts": f"127.0.0.1 localhost {_HOST_NAME}\n::1 localhost\n".encode(),
        "/etc/nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files\n",
    }
    for name in ("kernel_max", "online", "possible", "present"):
        path = Path(_CPUS, name)
        if path.exists():
            files[str(path)] = path.read_bytes()
    return files


def _check_output(fd: int, name: str) -> None:
    """Only a pipe or /dev/null: a file would be a way to disk, a terminal takes input by ioctl, a socket sends."""
    mode, device = os.fstat(fd).st_mode, os.fstat(fd).st_rdev
    if not S_ISFIFO(mode) and not (S_ISCHR(mode) and device == os.stat(os.devnull).st_rdev):
        raise JailError("the output of a jail must be a pipe or /dev/null", where=name, next_step="read a pipe")


_NEXT = {
    "user namespace": "run it as root, or allow user namespaces: sysctl kernel.unprivileged_userns_clone=1, "
    "kernel.apparmor_restrict_unprivileged_userns=0, user.max_user_namespaces above 0",
    "/proc": "run it on the host itself, or in a container whose /proc is whole (docker run --security-opt "
    "systempaths=unconfined, podman run --security-opt unmask=ALL, Kubernetes procMount: Unmasked)",
    "mounts": "see that the path is there and that this user may read it",
    "Landlock": "boot with landlock in lsm= (Linux 5.13 or later; 6.12 for scopes)",
    "seccomp filter": "a kernel with CONFIG_SECCOMP_FILTER on x86-64 or 64-bit ARM",
    "executing the command": "see that the program and its libraries are among the reads",
    "working folder": "see that it is among the reads or works",
}


def _failure(kind: str, words: list[str]) -> JailError:
    if kind != FAILED or len(words) != 3:
        return JailError("the jail ended while it was made", next_step="see whether memory ran out, and try again")
    step, errno, detail = words
    what = f"no jail was made, and nothing ran: {step}: {detail}" + (f" [errno {errno}]" if errno != "0" else "")
    return JailError(what, where="jail", next_step=_NEXT.get(step, "`hagane jail test` tells what this kernel gives"))
