"""SIGKILL while adding: the catalog is unchanged or complete, and a second run completes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hagane.terms import StoreError
from tests.catalog_fixture import ROAD, episodes, filled, make_home

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
    catalog.Catalog._publish = die
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

    object.__setattr__(catalog._gate, "ledger", None)
    monkeypatch.setattr(os, call, full)
    with pytest.raises(StoreError, match=r"No space left on device(.|\n)*free some disk"):
        catalog.add("road-demo", ROAD, signed, episodes(ROAD, 3))
    monkeypatch.undo()
    assert home.catalog().ls() == ()
    assert home.catalog().add("road-demo", ROAD, signed, episodes(ROAD, 3)).episodes == 3
