"""What a jail for a verb of hagane needs to see: the interpreter, its packages, and what the verb was granted."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/localtime", "/etc/os-release")
"""Programs and libraries; no other part of /etc, no home, no /sys."""
PASSED = ("PATH", "LANG", "LC_ALL", "TZ", "TERM", "COLUMNS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS")
"""Variables that go in; all others stay outside, where they may name secrets."""


def system_reads() -> tuple[Path, ...]:
    """Folders and files of the interpreter, its packages, hagane itself, and the system's libraries that exist here."""
    import hagane

    paths = [Path(p) for p in SYSTEM]
    paths += [Path(sys.prefix), Path(sys.base_prefix), Path(os.path.realpath(sys.executable)).parent.parent]
    paths += [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    # an editable install lies outside of the prefix
    paths.append(Path(hagane.__file__).resolve().parent)
    return outermost(tuple(p for p in dict.fromkeys(paths) if p.exists()))


def outermost(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Paths that do not lie below another of them, in the order given; links stay what they are."""
    return tuple(p for p in paths if not any(q != p and p.is_relative_to(q) for q in paths))


def environment() -> dict[str, str]:
    """Variables of a verb in the jail."""
    found = {name: os.environ[name] for name in PASSED if name in os.environ}
    return {**found, "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}  # noqa: S108 - private
