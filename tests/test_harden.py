"""What `harden` says holds, holds."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOOK = """
import ctypes, resource, sys
from hagane.seal import harden
done = harden(lock=sys.argv[1] == "lock")
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0) and done.no_core
assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0 and done.not_dumpable  # PR_GET_DUMPABLE
locked = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmLck"))
assert done.locked == (locked > 0), (done, locked)
bytearray(64 << 20)  # and memory can still be had
"""


@pytest.mark.parametrize("how", ["lock", "no lock"])
def test_what_it_says_holds(how: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOOK, how], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
