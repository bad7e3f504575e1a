"""What a jail makes of hosts that are not as they should be: covered /proc, and what becomes of crashes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hagane.jail import Layers
from tests.jail_fixture import plan_of, running, said, why_not

WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no jail here: {WHY_NOT}")
SECRET = b"a-word-of-a-member"
ENDS_BADLY = "x=$(echo n-jbeq-bs-n-zrzore | tr a-z n-za-m); kill -SEGV $$"  # in memory, on no command line


@pytest.fixture
def cores(tmp_path: Path) -> Iterator[None]:
    """Core files as large as the hard limit allows, in the working folder."""
    if Path("/proc/sys/kernel/core_pattern").read_text("utf-8").strip() != "core":
        pytest.skip("cores of this host do not go to files in the working folder")
    before = resource.getrlimit(resource.RLIMIT_CORE)
    if before[1] == 0:
        pytest.skip("the hard limit of cores is 0")
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


def cores_in(folder: Path) -> list[bytes]:
    return [p.read_bytes() for p in folder.glob("core*")]


def test_a_crash_inside_leaves_no_core_unless_that_wall_is_taken_away(cores: None) -> None:
    for layers, left in ((Layers(), 0), (Layers().without("core"), 1)):
        plan = plan_of("/bin/sh", "-c", ENDS_BADLY, works=(Path("/w"),), cwd=Path("/w"), layers=layers)
        with running(plan) as (jailed, _, _):
            assert jailed.wait() == 1
            found = cores_in(jailed.root / "w")
            assert len(found) == left and all(SECRET in c for c in found)


def test_a_core_that_came_about_would_hold_no_memory(cores: None, tmp_path: Path) -> None:
    for mask, held in (("0", False), ("33", True)):
        (tmp_path / mask).mkdir()
        script = f"echo {mask} > /proc/self/coredump_filter; exec sh -c '{ENDS_BADLY}'"  # kept by exec and fork
        subprocess.run(["sh", "-c", script], cwd=tmp_path / mask, check=False)
        (core,) = cores_in(tmp_path / mask)
        assert (SECRET in core) == held


def test_nobody_inside_can_ask_for_more_in_a_core() -> None:
    got = said(plan_of("/bin/sh", "-c", "cat /proc/self/coredump_filter; echo 33 > /proc/self/coredump_filter"))
    assert got.out == "00000000\n" and got.code == 1


@pytest.mark.parametrize("covered", ["mount --bind /dev/null /proc/kallsyms", "mount -t tmpfs none /proc/irq"])
def test_a_host_whose_proc_is_partly_covered_is_told_so(covered: str) -> None:
    outer = ["unshare", "-rm", "sh", "-c", f'{covered} && exec "$@"', "sh"]
    if subprocess.run([*outer, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mounts of one's own here (unshare -rm), or no such file in /proc")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    command = [*outer, sys.executable, "-m", "hagane", "jail", "run", "--", "/bin/echo", "up"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    place = covered.split()[-1]
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert f"/proc is partly covered, so the kernel gives no new one: {place}" in done.stderr
    assert "next: run it on the host itself, or in a container whose /proc is whole" in done.stderr
