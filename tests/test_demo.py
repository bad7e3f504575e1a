"""The demo: its voice, and (slow) the whole story in a network namespace that holds only loopback."""

from __future__ import annotations

import io
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from hagane.cli import VERBS
from hagane.demo.teller import Teller
from hagane.terms import HaganeError


def teller(code: int, says: str = "") -> Teller:
    def run(args: Sequence[str]) -> int:
        print(says or " ".join(args))
        return code

    return Teller(run, io.StringIO())


def test_a_step_is_printed_run_timed_and_kept() -> None:
    t = teller(0)
    assert t.verb("Count", ["plan", "size", "1m"]) == "plan size 1m\n"
    (step,) = t.steps
    assert (step.name, step.command, step.lines) == ("Count", "hagane plan size 1m", ("plan size 1m",))
    shown = t.out.getvalue()  # type: ignore[attr-defined]
    assert "[1] Count" in shown and "$ hagane plan size 1m" in shown


def test_long_output_is_shortened_for_the_page_only() -> None:
    t = teller(0, "\n".join(f"line {i}" for i in range(100)))
    assert t.verb("Talk", ["x"]).count("\n") == 100
    assert len(t.steps[0].lines) == 15 and "86 more lines" in t.steps[0].lines[7]


def test_a_failed_step_ends_the_story_and_a_refusal_must_be_one() -> None:
    with pytest.raises(HaganeError, match="failed with exit code 1"):
        teller(1).verb("Fail", ["x"])
    with pytest.raises(HaganeError, match="had to be refused and was not"):
        teller(0).verb("Refuse", ["x"], refused=True)
    assert teller(1, "no").verb("Refuse", ["x"], refused=True) == "no\n"


def test_a_silent_step_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    import hagane.demo.teller as module

    monkeypatch.setattr(module, "BEAT_S", 0.01)
    t = teller(0)
    deadline = time.monotonic() + 10
    with t.step("Think", "hagane think") as heard:
        while "working" not in heard.getvalue() and time.monotonic() < deadline:
            time.sleep(0.005)
    assert "working, 0 s" in heard.getvalue()


@pytest.mark.slow
def test_the_whole_story_without_a_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hagane", "demo", "--quick", "--out", str(tmp_path / "out")]
    tools = shutil.which("unshare") and shutil.which("ip")
    alone = tools and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    if alone:
        command = ["unshare", "-rn", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "sh", *command]
    else:
        print("no network namespace of one's own here: run with the network as it is")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines, gaps, last = [], [], time.monotonic()
    for line in process.stdout:
        now = time.monotonic()
        lines.append(line)
        gaps.append(now - last)
        last = now
    said = "".join(lines)
    assert process.wait() == 0, said[-3000:]
    assert (tmp_path / "out" / "runs" / "demo" / "report.html").is_file()
    assert "may not be read in 'JP' (allowed: DE)" in said
    verbs = re.findall(r"\$ hagane (\S+)", said)
    assert len(verbs) >= 15 and set(verbs) <= set(VERBS)
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    # the wait for the first line counts too; a busy machine may be given longer
    allowed_s = float(os.environ.get("HAGANE_SILENCE_S", "5"))
    assert gaps[worst] <= allowed_s, f"silent for {gaps[worst]:.1f} s before line {worst + 1}: {lines[worst]!r}"
    # the largest single process of the tree, in KiB
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20
