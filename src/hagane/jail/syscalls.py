"""System calls by number, for those that Python's standard library does not offer, on x86-64 and 64-bit ARM.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux 6.18; from 424 on both
are equal. This file and all that the stage imports need ctypes alone: every import costs the start of a jail.
"""

from __future__ import annotations

import ctypes
import os

# name: (x86-64, aarch64); None where the machine never had it
_TABLE: dict[str, tuple[int | None, int | None]] = {
    "_sysctl": (156, None),
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "close_range": (436, 436),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_kernel_syms": (177, None),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "landlock_add_rule": (445, 445),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
    "listmount": (458, 458),
    "lookup_dcookie": (212, 18),
    "lsm_set_self_attr": (460, 460),
    "migrate_pages": (256, 238),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "seccomp": (317, 277),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "setrlimit": (160, 164),
    "settimeofday": (164, 170),
    "socket": (41, 198),
    "statmount": (457, 457),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
}
MACHINES = ("x86_64", "aarch64")
"""Machines whose numbers are known."""
LAST_KNOWN = 469
"""file_setattr, the newest call of Linux 6.18: the filter answers ENOSYS to later ones, which nobody has looked at."""

_LIBC = ctypes.CDLL(None, use_errno=True)


def machine() -> str:
    """The machine of the running kernel, as in `uname -m`."""
    return os.uname().machine


def number(name: str, arch: str) -> int | None:
    """Number of a system call on a machine of `MACHINES`; None where it has none."""
    return _TABLE[name][MACHINES.index(arch)]


def call(name: str, *args: int | bytes | ctypes.Structure | ctypes.Array[ctypes.c_char] | None) -> int:
    """Make a system call. Structures and buffers are passed by address.

    Raises:
        OSError: with the kernel's errno; ENOSYS (38) on a machine without numbers here.
    """
    arch = machine()
    nr = number(name, arch) if arch in MACHINES else None
    if nr is None:
        raise OSError(38, os.strerror(38), name)
    return _checked(_LIBC.syscall(ctypes.c_long(nr), *(_word(a) for a in args)), name)


def prctl(option: int, *args: int) -> int:
    """prctl(2) with up to four numbers.

    Raises:
        OSError: with the kernel's errno.
    """
    words = [ctypes.c_ulong(a) for a in (*args, 0, 0, 0, 0)[:4]]
    return _checked(_LIBC.prctl(ctypes.c_int(option), *words), f"prctl {option}")


def libc(name: str, *args: int | bytes | ctypes.Structure | ctypes.Array[ctypes.c_char] | None) -> int:
    """Call a function of the C library that returns -1 and sets errno.

    Raises:
        OSError: with its errno.
    """
    return _checked(getattr(_LIBC, name)(*(_word(a) for a in args)), name)


def _word(value: int | bytes | ctypes.Structure | ctypes.Array[ctypes.c_char] | None) -> object:
    if isinstance(value, ctypes.Structure | ctypes.Array):
        return ctypes.byref(value)
    return ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value)


def _checked(result: int, name: str) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return result
