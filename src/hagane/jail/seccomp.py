"""Seccomp: which system calls are refused, as a classic BPF program put together here.

Everything that a namespace does not bound (AF_VSOCK ignores network namespaces; io_uring opens sockets past any check
of socket(2)), that reaches into other processes, or that only an administrator of the host needs. A program of another
architecture, or of the x32 kind, is killed. Calls newer than the table of `syscalls` get ENOSYS.
"""

from __future__ import annotations

import ctypes
import struct

from hagane.jail.namespaces import FLAGS
from hagane.jail.syscalls import LAST_KNOWN, call, machine, number

EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_VSOCK = 1, 2, 10, 16, 40
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH of include/uapi/linux/audit.h."""
_X32 = 0x40000000
KILL, ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_LD, _JEQ, _JGE, _JGT, _JSET, _RET = 0x20, 0x15, 0x35, 0x25, 0x45, 0x06
_SET_FILTER = 1
_RLIMIT_CORE = 4
_TTY_REQUESTS = (0x5412, 0x541C, 0x541D, 0x540E)  # TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSCTTY

Condition = tuple[str, int, tuple[int, ...]]
"""("in" or "not in" or "any bit" or "not null", argument, values): what must hold of a system call's argument."""
Rule = tuple[str, tuple[Condition, ...], int]
"""A call, the conditions that must all hold, and the errno it then gets."""


def _all(names: str, errno: int = EPERM) -> tuple[Rule, ...]:
    return tuple((name, (), errno) for name in names.split())


_NEW_NAMESPACES = sum(FLAGS.values()) & ~FLAGS["timens"]  # clone(2) reads that bit as part of a signal
RULES: dict[str, tuple[Rule, ...]] = {
    "seccomp_families": (
        ("socket", (("not in", 0, (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_VSOCK)),), EAFNOSUPPORT),
        # gloo does not start without getifaddrs, which asks NETLINK_ROUTE (protocol 0), here only to read
        ("socket", (("in", 0, (AF_NETLINK,)), ("not in", 2, (0,))), EAFNOSUPPORT),
    ),
    "seccomp_vsock": (("socket", (("in", 0, (AF_VSOCK,)),), EAFNOSUPPORT),),
    "seccomp_io_uring": _all("io_uring_setup io_uring_enter io_uring_register", ENOSYS),
    "seccomp_ptrace": _all("ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp"),
    "seccomp_namespaces": (
        *_all("setns unshare"),
        ("clone", (("any bit", 0, (_NEW_NAMESPACES,)),), EPERM),
        # its flags lie in memory, where no filter can look; the C library falls back to clone
        *_all("clone3", ENOSYS),
    ),
    "seccomp_mounts": _all(
        "mount umount2 pivot_root chroot move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick"
        " mount_setattr statmount listmount swapon swapoff quotactl quotactl_fd name_to_handle_at open_by_handle_at"
    ),
    "seccomp_kernel": _all(
        "bpf perf_event_open kexec_load kexec_file_load init_module finit_module delete_module create_module"
        " query_module get_kernel_syms userfaultfd reboot acct iopl ioperm syslog lookup_dcookie nfsservctl vhangup"
        " settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname fanotify_init move_pages"
        " migrate_pages uselib ustat sysfs _sysctl lsm_set_self_attr"
    ),
    "seccomp_keys": _all("keyctl add_key request_key"),
    "seccomp_tty": (("ioctl", (("in", 1, _TTY_REQUESTS),), EPERM),),
    # a core goes to the host's handler unless the limit is 1 (see `privileges`): nobody may set it to 0
    "core": (
        ("setrlimit", (("in", 0, (_RLIMIT_CORE,)),), EPERM),
        ("prlimit64", (("in", 1, (_RLIMIT_CORE,)), ("not null", 2, ())), EPERM),
    ),
}
"""What each layer refuses."""

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, constant: struct sock_filter."""


def program(layers: frozenset[str], arch: str) -> list[Instruction]:
    """The filter of some layers for a machine of `syscalls.MACHINES`.

    Raises:
        KeyError: an architecture without numbers here.
    """
    out: list[Instruction] = [(_LD, 0, 0, 4), (_JEQ, 1, 0, ARCH[arch]), (_RET, 0, 0, KILL), (_LD, 0, 0, 0)]
    if arch == "x86_64":
        out += [(_JGE, 0, 1, _X32), (_RET, 0, 0, KILL)]
    out += [(_JGT, 0, 1, LAST_KNOWN), (_RET, 0, 0, _ERRNO | ENOSYS)]
    rules: dict[int, list[tuple[tuple[Condition, ...], int]]] = {}
    for layer in RULES:
        for name, conditions, errno in RULES[layer] if layer in layers else ():
            nr = number(name, arch)
            if nr is not None:
                rules.setdefault(nr, []).append((conditions, errno))
    for nr, checks in sorted(rules.items()):
        block = [i for conditions, errno in checks for i in _check(conditions, errno)]
        if checks[-1][0]:
            block.append((_RET, 0, 0, ALLOW))
        out += [(_JEQ, 0, len(block), nr), *block]
    return [*out, (_RET, 0, 0, ALLOW)]


def install(layers: frozenset[str]) -> None:
    """Put the filter on this process and, for ever, on its children.

    Raises:
        OSError: no seccomp filters in this kernel (EINVAL, ENOSYS), or neither no_new_privs nor CAP_SYS_ADMIN (EACCES).
    """
    arch = machine()
    if arch not in ARCH:
        raise OSError(ENOSYS, f"no table of system calls for {arch}", "seccomp")
    lines = program(layers, arch)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    # struct sock_fprog: a count and, aligned, an address
    call("seccomp", _SET_FILTER, 0, ctypes.create_string_buffer(struct.pack("HP", len(lines), ctypes.addressof(code))))


def _check(conditions: tuple[Condition, ...], errno: int) -> list[Instruction]:
    """Return errno when all conditions hold; else run on into what follows."""
    parts = [_condition(*c) for c in conditions]
    out: list[Instruction] = []
    for at, part in enumerate(parts):
        left = sum(len(p) for p in parts[at + 1 :]) + 1  # the rest, and the return
        for line, (code, yes, no, k) in enumerate(part):
            beyond = len(part) - line - 1
            out.append((code, _jump(yes, beyond, left), _jump(no, beyond, left), k))
    return [*out, (_RET, 0, 0, _ERRNO | errno)]


_HOLDS, _FAILS = 254, 255


def _jump(to: int, beyond: int, left: int) -> int:
    return {_HOLDS: beyond, _FAILS: beyond + left}.get(to, to)


def _condition(kind: str, arg: int, values: tuple[int, ...]) -> list[Instruction]:
    """Lines that jump to `_HOLDS` or `_FAILS`; what the kernel takes as an int is compared in its low half."""
    low = (_LD, 0, 0, 16 + 8 * arg)
    if kind == "any bit":
        return [low, (_JSET, _HOLDS, _FAILS, values[0])]
    if kind == "not null":
        return [low, (_JEQ, 0, _HOLDS, 0), (_LD, 0, 0, 20 + 8 * arg), (_JEQ, _FAILS, _HOLDS, 0)]
    found, missed = (_HOLDS, _FAILS) if kind == "in" else (_FAILS, _HOLDS)
    *first, last = values
    return [low, *((_JEQ, found, 0, v) for v in first), (_JEQ, found, missed, last)]
