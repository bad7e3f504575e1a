"""What a process gives up before it becomes the command: privileges, keys, terminal, core dumps, descriptors."""

from __future__ import annotations

import ctypes
import os
import resource

from hagane.jail.syscalls import call, libc, prctl

# include/uapi/linux/prctl.h, keyctl.h, close_range.h
_PDEATHSIG, _DUMPABLE, _CAPBSET_DROP, _NO_NEW_PRIVS, _AMBIENT, _SUBREAPER = 1, 4, 24, 38, 47, 36
_AMBIENT_CLEAR_ALL = 4
_JOIN_SESSION_KEYRING = 1
_CLOSE_ON_EXEC = 4
_CAPABILITY_VERSION_3 = 0x20080522
_SIGKILL, _SIG_SETMASK = 9, 2
_IGNORED_BY_PYTHON = (13, 25)  # SIGPIPE, SIGXFSZ
NO_CORE = 1
"""RLIMIT_CORE in bytes. 0 would not do: the kernel then still pipes a core into the host's handler, and refuses only
at 1 (fs/coredump.c, core(5)). Tests crash a process inside with cores going to files; the handler is one for the whole
machine, so a test may not set one: that a pipe gets nothing at 1 is the kernel's word."""


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends."""
    prctl(_PDEATHSIG, _SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants, as process 1 of a namespace is."""
    prctl(_SUBREAPER, 1)


def hide_memory(hidden: bool) -> None:
    """Whether others of the same user may look into this process (until it executes another program)."""
    prctl(_DUMPABLE, int(not hidden))


def no_new_privileges() -> None:
    """No program that is executed from now on gives rights that its caller lacks."""
    prctl(_NO_NEW_PRIVS, 1)


def no_core() -> None:
    """No core dump, neither as a file nor through the host's handler; and one that came about would hold no memory,
    only registers and the begin of the command line.

    The second does not rest on the first (a handler on a socket, core_pattern "@", is new and was not tried): children
    inherit the empty mask of what is dumped (core(5), coredump_filter), and inside nobody may write /proc.

    Raises:
        OSError: EPERM where the hard limit is already 0 and the host pipes cores to a handler.
    """
    limit = NO_CORE
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0 and os.geteuid() != 0:
        with open("/proc/sys/kernel/core_pattern", "rb") as f:
            if f.read(1) in b"|@":
                raise OSError(1, "the hard limit of cores is 0, and at 0 the kernel still pipes them to the host")
        limit = 0
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    with open("/proc/self/coredump_filter", "wb") as f:
        f.write(b"0")


def new_keyring() -> None:
    """A fresh session keyring, so that keys of who started us cannot be found."""
    call("keyctl", _JOIN_SESSION_KEYRING, None)


def close_descriptors() -> None:
    """Everything but 0, 1 and 2 closes when the command is executed, whatever the parent left open."""
    call("close_range", 3, 0x7FFFFFFF, _CLOSE_ON_EXEC)


def drop_capabilities() -> None:
    """Empty all five sets: bounding, ambient, permitted, effective, inheritable (capabilities(7)).

    Raises:
        OSError: EPERM when the bounding set is not ours to cut (no user namespace, and not root).
    """
    prctl(_AMBIENT, _AMBIENT_CLEAR_ALL)
    for capability in range(64):
        try:
            prctl(_CAPBSET_DROP, capability)
        except OSError as e:
            if e.errno != 22:  # EINVAL: past the last capability of this kernel
                raise
            break
    head = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    libc("capset", bytes(head), bytes(none))


def default_signals() -> None:
    """Undo what Python and the init did to signals, which an executed program would inherit."""
    empty = ctypes.create_string_buffer(128)  # sigset_t
    libc("sigprocmask", _SIG_SETMASK, empty, None)
    for signal in _IGNORED_BY_PYTHON:
        libc("signal", signal, None)


def plain_stdin() -> None:
    """Standard input that is always at its end."""
    fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(fd, 0)
    os.close(fd)
