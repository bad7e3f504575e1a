"""Writers that are killed, a disk that is full for real, several writers: what was acknowledged is there, once."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hagane.seal import Ledger
from hagane.terms import StoreError

WRITER = """
import sys
from pathlib import Path
from hagane.seal import Ledger
ledger = Ledger(Path(sys.argv[1]))
for i in range(100_000):
    index = ledger.append("x", {"who": sys.argv[2], "i": i})
    print(f"{index} {i}", flush=True)
"""


def acknowledged(out: bytes) -> list[tuple[int, int]]:
    """(index, number) of every whole line that a writer printed."""
    return [(int(a), int(b)) for a, b in (line.split() for line in out.split(b"\n")[:-1])]


def kill_while_writing(path: Path, rounds: int, writers: int) -> None:
    told: dict[int, tuple[str, int]] = {}
    for turn in range(rounds):
        names = [f"{turn}-{w}" for w in range(writers)]
        running = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE) for name in names
        ]
        heard = []
        for process in running:  # each is killed at work: after it said so, at no chosen moment
            assert process.stdout is not None
            heard.append(process.stdout.readline())
        for process in running:
            os.kill(process.pid, signal.SIGKILL)
        path.open("ab").write(b'{"entry":{"index":' * (turn % 2))  # a kill seldom hits the write itself
        for name, process, first in zip(names, running, heard, strict=True):
            assert process.stdout is not None
            with process.stdout as rest:  # what was read ahead of the first line is in its buffer
                told |= {index: (name, i) for index, i in acknowledged(first + rest.read())}
            process.wait()
    ledger = Ledger(path)
    ledger.append("last", {})
    there = {e.index: (e.body["who"], e.body["i"]) for e in ledger.entries() if e.kind == "x"}
    assert told.items() <= there.items() and told
    for name in {who for who, _ in there.values()}:
        numbers = [i for who, i in there.values() if who == name]
        assert numbers == list(range(len(numbers)))
    ledger.verify()


def test_killed_writers_lose_nothing(tmp_path: Path) -> None:
    kill_while_writing(tmp_path / "ledger.jsonl", 2, 2)


@pytest.mark.slow
def test_killed_writers_lose_nothing_in_a_loop(tmp_path: Path) -> None:
    kill_while_writing(tmp_path / "ledger.jsonl", 50, 3)


def test_a_file_that_may_not_grow_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", lambda: 10**18)
    for i in range(3):
        ledger.append("x", {"i": i})
    good = ledger.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for room in range(0, 180, 23):  # the kernel takes so many bytes of the line, then no more
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) + room, hard))
            with pytest.raises(StoreError, match="File too large"):
                ledger.append("x", {"long": "x" * 100})
            assert ledger.path.read_bytes() == good
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert ledger.append("x", {}) == 3
    assert Ledger(ledger.path).verify().size == 4


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)], check=True)
    try:
        ledger = Ledger(tmp_path / "ledger.jsonl")
        count = 0
        with pytest.raises(StoreError, match="No space left"):
            while count < 10_000:
                count = ledger.append("x", {"long": "x" * 100}) + 1
        assert Ledger(ledger.path).verify().size == count > 100
        with pytest.raises(StoreError):
            ledger.append("x", {"long": "x" * 100})
        assert Ledger(ledger.path).prove(5).size == count  # no room for hashes beside it: made anew elsewhere
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
