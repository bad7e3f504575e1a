"""Landlock: an allowlist of where files may be written, kept by the kernel even against a mistake in the mounts.

Source: Linux Documentation/userspace-api/landlock.rst. Reading is the mounts' business and connecting the network
namespace's: Landlock knows TCP ports but not addresses, so its network rules could not let loopback through alone.
"""

from __future__ import annotations

import ctypes
import os
import stat

from hagane.jail.syscalls import call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1
_WRITE_FILE, _MAKE_CHAR, _MAKE_BLOCK, _REFER, _TRUNCATE, _IOCTL = 1 << 1, 1 << 6, 1 << 11, 1 << 13, 1 << 14, 1 << 15
_WRITES_1 = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))  # remove and make anything
_OF_FILES = _WRITE_FILE | _TRUNCATE | _IOCTL
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1, 2


class _Rules(ctypes.Structure):
    """struct landlock_ruleset_attr."""

    _fields_ = [(n, ctypes.c_uint64) for n in ("handled_access_fs", "handled_access_net", "scoped")]


class _Beneath(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def abi() -> int:
    """Version of Landlock in the running kernel; 0 where there is none."""
    try:
        return call("landlock_create_ruleset", None, 0, _VERSION)
    except OSError:
        return 0


def write_rights(version: int) -> int:
    """Every right of a Landlock version that changes files: bits of LANDLOCK_ACCESS_FS_*."""
    return _WRITES_1 | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0) | _ioctl(version)


def restrict(writable: Iterable[str], files: bool, scope: bool) -> None:
    """Take from this process and its children, for ever, all writing but beneath some paths.

    Args:
        writable: folders and devices that may be written; device files can be made nowhere.
        files: hold the allowlist.
        scope: let abstract sockets and signals reach no process outside (Landlock 6).

    Raises:
        OSError: no Landlock (ENOSYS, EOPNOTSUPP), or older than what is asked (EINVAL); a path is missing.
    """
    version = abi()
    rights = write_rights(version) if files else 0
    rules = _Rules(rights, 0, _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL if scope else 0)
    size = 24 if scope else 8
    ruleset = call("landlock_create_ruleset", rules, size, 0)
    try:
        for path in writable if files else ():
            _allow(ruleset, path, rights)
        call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        given = rights & ~(_MAKE_CHAR | _MAKE_BLOCK) if folder else rights & _OF_FILES
        call("landlock_add_rule", ruleset, _PATH_BENEATH, _Beneath(given, fd), 0)
    finally:
        os.close(fd)


def _ioctl(version: int) -> int:
    return _IOCTL if version >= 5 else 0
