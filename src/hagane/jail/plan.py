"""Plan: what a jail is to hold. Everything that is not named here is not there."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from hagane.terms import JailError

Layer = Literal[
    "userns",
    "mountns",
    "pidns",
    "netns",
    "ipcns",
    "utsns",
    "cgroupns",
    "timens",
    "private_tmpfs",
    "read_only",
    "proc_masked",
    "landlock",
    "landlock_scope",
    "seccomp_families",
    "seccomp_vsock",
    "seccomp_io_uring",
    "seccomp_ptrace",
    "seccomp_namespaces",
    "seccomp_mounts",
    "seccomp_kernel",
    "seccomp_keys",
    "seccomp_tty",
    "fds",
    "env",
    "session",
    "keyring",
    "caps",
    "no_new_privs",
    "core",
    "exit_code",
]
"""One wall of a jail, that can be taken away alone in a trial of what it stops."""
LAYERS: tuple[Layer, ...] = get_args(Layer)
"""All of them."""


@dataclass(frozen=True)
class Layers:
    """Which walls stand. All, outside of tests and trials."""

    on: frozenset[Layer] = frozenset(LAYERS)
    """Names of those that stand."""

    def without(self, *names: Layer) -> Layers:
        """The same without some.

        Raises:
            JailError: no such layer.
        """
        unknown = set(names) - set(LAYERS)
        if unknown:
            raise JailError(f"no layers {sorted(unknown)}", next_step=f"one of {', '.join(LAYERS)}")
        return Layers(self.on - set(names))


@dataclass(frozen=True)
class Bind:
    """A file or folder of the host that the jail holds."""

    source: Path
    """Where it lies on the host; when it is itself a link, the link is copied and not followed."""
    target: Path
    """Where it lies inside."""

    @classmethod
    def at(cls, path: Path | str) -> Bind:
        """At the same place inside and outside."""
        absolute = Path(os.path.abspath(path))
        return cls(absolute, absolute)


@dataclass(frozen=True)
class Plan:
    """One jail: what runs in it, what it can read, and where it can write."""

    command: tuple[str, ...]
    """Program (an absolute path inside) and arguments."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The whole environment; nothing is inherited."""
    reads: tuple[Bind, ...] = ()
    """Read-only, with all that is mounted below them."""
    works: tuple[Path, ...] = ()
    """Folders that can be written, in a private tmpfs that nobody else sees and that ends with the jail."""
    sockets: tuple[Bind, ...] = ()
    """Unix sockets of the host that the jail may connect to: the broker's."""
    cwd: Path = Path("/")
    """Working folder inside."""
    size_bytes: int = 1 << 30
    """Limit of works, /tmp and /dev/shm together; it is memory."""
    layers: Layers = Layers()
    """Fewer than all only in tests and trials."""

    def __post_init__(self) -> None:
        if not self.command or not os.path.isabs(self.command[0]):
            raise JailError("the command's program is no absolute path", where=" ".join(self.command))
        for path in (*(b.target for b in (*self.reads, *self.sockets)), *self.works, self.cwd):
            _check_place(path, root_too=path is self.cwd)
        if self.size_bytes < 1 << 20:
            raise JailError(f"a work area of {self.size_bytes} bytes", next_step="give it 1 MiB at least")
        for words in (self.command, self.env.keys(), self.env.values()):
            if any("\0" in w for w in words):
                raise JailError("a zero byte in the command or environment", where=self.command[0])


def system_reads() -> tuple[Bind, ...]:
    """What programs of this host need to start: shared libraries, and the tools of /usr."""
    names = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
    return tuple(Bind.at(n) for n in names if os.path.lexists(n))


def python_reads() -> tuple[Bind, ...]:
    """What the running interpreter needs: its own folders, its packages, and this package's source."""
    ours = Path(__file__).resolve().parents[2]
    folders = [Path(p) for p in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)]
    chosen: list[Path] = []
    for folder in sorted({*folders, ours}):
        if not any(folder.is_relative_to(c) for c in (*chosen, Path("/usr"))):
            chosen.append(folder)
    return (*system_reads(), *(Bind.at(c) for c in chosen))


def python_env() -> dict[str, str]:
    """An environment in which the running interpreter finds its packages, and nothing of ours is inherited."""
    return {
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), "/usr/bin", "/bin")),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "TMPDIR": "/tmp",
        "USER": "hagane",
    }


def _check_place(path: Path, root_too: bool) -> None:
    parts = path.parts
    if not path.is_absolute() or ".." in parts or any(c in str(path) for c in "\0\n"):
        raise JailError("a place inside must be an absolute path without ..", where=repr(str(path)))
    if not root_too and (len(parts) == 1 or parts[1] in ("proc", "dev", "sys")):
        raise JailError("the jail makes /, /proc, /dev and /sys itself", where=str(path))
