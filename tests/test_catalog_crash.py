"""SIGKILL while adding: the catalog is unchanged or complete, and a second run completes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hagane.terms import CorruptError, Episode, StoreError
from tests.catalog_fixture import ARM, MILL, ROAD, episode, episodes, filled, make_home

KILLED = """
import os, signal, sys
from pathlib import Path
import hagane.catalog.catalog as catalog
from tests.catalog_fixture import ROAD, episodes, make_home
folder, what, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def die(*a, **k):
    os.kill(os.getpid(), signal.SIGKILL)
def progress(now, n):
    if (now, n) == (what, count):
        die()
if what == "publish":
    catalog.publish = die
if what == "cache":
    catalog.Caches.put = die
home = make_home(folder)
home.catalog().add("road-demo", ROAD, home.contract(ROAD), episodes(ROAD, 6), progress=progress)
"""


@pytest.mark.parametrize(
    ("what", "count"), [("read", 1), ("read", 5), ("store", 4), ("statistics", 6), ("publish", 0), ("cache", 0)]
)
def test_killed_while_adding(tmp_path: Path, what: str, count: int) -> None:
    home = make_home(tmp_path / "killed")
    signed = home.contract(ROAD)
    args = [sys.executable, "-c", KILLED, str(home.folder), what, str(count)]
    done = subprocess.run(args, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    catalog = home.catalog()
    if what == "cache":  # the set was in place, and its cache is derived
        assert [r.name for r in catalog.ls()] == ["road-demo"]
    else:
        assert catalog.ls() == () and catalog.unfinished() == ("road-demo",)
    clean = filled(tmp_path / "clean", {"road": 6}).record("road-demo")
    record = catalog.add("road-demo", ROAD, signed, episodes(ROAD, 6))
    assert record.digest == clean.digest
    assert catalog.verify("road-demo") > 5 and catalog.unfinished() == ()
    assert len(list(catalog.episodes("road-demo", "view"))) == 6
    assert "add" in {e.kind for e in home.ledger.entries()}  # whenever it died: nothing is here unknown to the ledger


def test_other_episodes_after_a_crash_replace_what_the_journal_held(tmp_path: Path) -> None:
    home = make_home(tmp_path)

    def dies() -> object:
        yield from episodes(ROAD, 3)
        raise KeyboardInterrupt

    catalog = home.catalog()
    with pytest.raises(KeyboardInterrupt):
        catalog.add("road-demo", ROAD, home.contract(ROAD), dies())  # type: ignore[arg-type]
    assert catalog.unfinished() == ("road-demo",)
    record = catalog.add("road-demo", ROAD, home.contract(ROAD), episodes(ROAD, 2, first=1))
    assert record.episodes == 2
    assert [e.id for e in catalog.episodes("road-demo", "view")] == [e.id for e in episodes(ROAD, 2, first=1)]


FULL = """
import resource, sys
from pathlib import Path
from hagane.terms import StoreError
from tests.catalog_fixture import ROAD, episodes, make_home
home = make_home(Path(sys.argv[1]))
signed = home.contract(ROAD)
catalog = home.catalog()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    catalog.add("road-demo", ROAD, signed, episodes(ROAD, 6))
except StoreError as e:
    print(e)
"""


@pytest.mark.parametrize("room", [1000, 5000, 9000])
def test_a_disk_without_room_is_one_message_and_nothing_is_lost(tmp_path: Path, room: int) -> None:
    """A file size limit stands for the full disk: writes fail half way, with a real OSError."""
    home = make_home(tmp_path)
    args = [sys.executable, "-c", FULL, str(home.folder), str(room)]
    done = subprocess.run(args, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the disk refused" in done.stdout and "free some disk" in done.stdout
    assert home.catalog().ls() == ()
    assert home.catalog().add("road-demo", ROAD, home.contract(ROAD), episodes(ROAD, 6)).episodes == 6
    assert home.catalog().verify("road-demo") > 5


@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
def test_a_disk_that_fails_to_sync_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    home = make_home(tmp_path)
    signed, catalog = home.contract(ROAD), home.catalog()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    object.__setattr__(catalog.gate, "ledger", None)
    monkeypatch.setattr(os, call, full)
    with pytest.raises(StoreError, match=r"No space left on device(.|\n)*free some disk"):
        catalog.add("road-demo", ROAD, signed, episodes(ROAD, 3))
    monkeypatch.undo()
    assert home.catalog().ls() == ()
    assert home.catalog().add("road-demo", ROAD, signed, episodes(ROAD, 3)).episodes == 3


def test_what_is_refused_under_a_name_that_exists_leaves_nothing(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    catalog, signed = home.catalog(), home.contract(ROAD)
    catalog.add("road-demo", ROAD, signed, episodes(ROAD, 3))
    with pytest.raises(StoreError, match="other content"):
        catalog.add("road-demo", ROAD, signed, episodes(ROAD, 4))
    assert not list((tmp_path / "catalog" / "staging").iterdir())


def test_a_damaged_set_is_told_before_its_logs_are_read_again(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    home.catalog().add("road-demo", ROAD, home.contract(ROAD), episodes(ROAD, 3))
    (tmp_path / "catalog" / "sets" / "road-demo" / "hagane" / "record.json").write_bytes(b"{}")
    asked: list[str] = []

    def read() -> Iterator[Episode]:
        asked.append("read")
        yield from episodes(ROAD, 3)

    with pytest.raises(CorruptError, match=r"record\.json"):
        home.catalog().add("road-demo", ROAD, home.contract(ROAD), read())
    assert not asked


def test_a_lock_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    catalog, signed = home.catalog(), home.contract(ROAD)
    (tmp_path / "catalog" / ".locks").touch()
    with pytest.raises(StoreError, match=r"the disk refused(.|\n)*next: "):
        catalog.add("road-demo", ROAD, signed, episodes(ROAD, 3))


def test_a_long_intake_keeps_nobody_from_other_sets(tmp_path: Path) -> None:
    """While one set is brought in, another is brought in, renewed, and its cache is built."""
    home = make_home(tmp_path)
    home.catalog().add("arm-demo", ARM, home.contract(ARM), episodes(ARM, 3))
    reading, done = threading.Event(), threading.Event()

    def slow() -> Iterator[Episode]:
        yield from episodes(ROAD, 2)
        reading.set()
        assert done.wait(60)
        yield episode(ROAD, 2)

    signed = {m.name: home.contract(m) for m in (ROAD, MILL, ARM)}
    first = threading.Thread(target=home.catalog().add, args=("road-demo", ROAD, signed["road"], slow()), daemon=True)

    def others() -> None:
        catalog = home.catalog()
        catalog.add("mill-demo", MILL, signed["mill"], episodes(MILL, 2))
        catalog.renew("arm-demo", signed["arm"])
        catalog.columns("arm-demo", "anchor", "video")
        done.set()

    first.start()
    assert reading.wait(60)
    second = threading.Thread(target=others, daemon=True)
    second.start()
    assert done.wait(30), "the other set waited for the first"
    first.join(60)
    assert [r.name for r in home.catalog().ls()] == ["arm-demo", "mill-demo", "road-demo"]


def test_two_that_add_the_same_at_once_make_one_set(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    signed = home.contract(ROAD)
    with ThreadPoolExecutor(3) as pool:
        made = [pool.submit(home.catalog().add, "road-demo", ROAD, signed, episodes(ROAD, 4)) for _ in range(3)]
        records = [m.result() for m in made]
    assert len(set(records)) == 1 and home.catalog().verify("road-demo") > 5
    assert [e.kind for e in home.ledger.entries()].count("add") == 1
