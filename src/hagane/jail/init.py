"""The init: process 1 of the jail. It finishes the walls, starts the command, reaps, and keeps the work area for the
parent to read until it is released. It ends, and with it every process inside, when the parent's end of a pipe closes.
"""

from __future__ import annotations

import ctypes
import os
import select

from hagane.jail import mounts, namespaces, privileges
from hagane.jail.command import become
from hagane.jail.order import Order
from hagane.jail.report import AWAITS, ENDED, GO, STARTED, TERMINATE, follow, tell
from hagane.jail.syscalls import libc

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost 10 ms of the start
    from collections.abc import Callable
    from typing import NoReturn

    from hagane.jail.report import Step

_SIGKILL, _SIGTERM, _SIGCHLD = 9, 15, 17
_SIG_BLOCK, _SFD_CLOEXEC = 0, 0o2000000


def main(order: Order, area: int, status: int, life: int) -> NoReturn:
    """Run the jail; never returns.

    Args:
        order: what is wanted.
        area: the detached work area when the stage could make it, else -1.
        status: where lines are told.
        life: words of the parent, and its end.
    """
    follow(_walls(order, area, status, life), status)
    signals = _signals()
    child = _start(order, status)
    tell(status, STARTED)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (1, 2):
        os.dup2(null, fd)  # the parent sees the end of the output when the last process inside has ended
    ended = _serve(child, signals, life)
    _end_all(child)
    code = 0 if ended == 0 else 1
    tell(status, ENDED, code if "exit_code" in order.layers else os.waitstatus_to_exitcode(ended))
    while os.read(life, 1) == TERMINATE:
        pass  # nothing is left to terminate; anything else, or the end, releases
    os._exit(code)


def _walls(order: Order, area: int, status: int, life: int) -> list[Step]:
    layers = order.layers
    steps: list[Step] = [("dying with the stage", privileges.die_with_parent)]
    if "pidns" not in layers:
        steps.append(("adopting orphans", privileges.adopt_orphans))
    for layer in ("mountns", "netns", "ipcns", "utsns", "cgroupns", "timens"):
        if layer in layers:
            steps.append((f"namespace {layer}", _entering(layer)))
    if "utsns" in layers:
        steps.append(("host name", lambda: libc("sethostname", order.host_name.encode(), len(order.host_name))))
    if "netns" in layers:
        steps.append(("loopback", namespaces.loopback_up))
    if order.wired:
        steps.append(("network device", lambda: _await("network", status, life)))
    if "mountns" in layers:
        proc: list[int] = []
        steps.append(("/proc", lambda: proc.append(mounts.mount_proc(order))))
        steps.append(("mounts", lambda: _mount_all(order, area, proc[0])))
    steps.append(("waiting for the parent", lambda: _await("command", status, life)))
    return steps


def _entering(layer: str) -> Callable[[], None]:
    return lambda: namespaces.enter(layer)


def _mount_all(order: Order, area: int, proc: int) -> None:
    if area < 0:
        area = mounts.work_area(order.size_bytes, noswap=False)
    mounts.build_root(order, area, proc)
    if "proc_masked" in order.layers:
        mounts.mask_proc()
    mounts.finish_root(order)


def _await(what: str, status: int, life: int) -> None:
    """Tell the parent that we wait, and wait for its word; its end is ours."""
    tell(status, AWAITS, what)
    if os.read(life, 1) != GO:
        os._exit(1)


def _signals() -> int:
    """SIGCHLD and SIGTERM as something to read."""
    bits = (1 << (_SIGCHLD - 1)) | (1 << (_SIGTERM - 1))
    mask = ctypes.create_string_buffer(bits.to_bytes(8, "little"), 128)  # sigset_t
    libc("sigprocmask", _SIG_BLOCK, mask, None)
    return libc("signalfd", -1, mask, _SFD_CLOEXEC)


def _start(order: Order, status: int) -> int:
    """Fork the command; returns when it runs, or ends the jail with the step that failed."""
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        become(order, tells)
    os.close(tells)
    failure = b""
    while part := os.read(told, 4096):
        failure += part
    os.close(told)
    if failure:
        os.write(status, failure)
        os._exit(1)
    return child


def _serve(child: int, signals: int, life: int) -> int:
    """Reap until the command has ended; returns its wait status. The parent's end is ours."""
    watch = select.poll()
    watch.register(signals, select.POLLIN)
    watch.register(life, select.POLLIN)
    while True:
        for fd, _ in watch.poll():
            word = b""
            if fd == life:
                word = os.read(life, 1)
                if not word:
                    _end_all(child)
                    os._exit(1)
            elif os.read(signals, 128)[:4] == _SIGTERM.to_bytes(4, "little"):
                word = TERMINATE
            if word == TERMINATE:
                os.kill(child, _SIGTERM)
        while (reaped := _reap()) is not None:
            if reaped[0] == child:
                return reaped[1]


def _reap() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def _end_all(child: int) -> None:
    """Kill and reap whatever still runs inside: nothing writes any more while the parent reads."""
    try:
        if os.getpid() == 1:
            os.kill(-1, _SIGKILL)
        else:
            os.killpg(child, _SIGKILL)  # a trial without a process namespace
    except ProcessLookupError:
        pass
    while os.getpid() == 1:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
