"""Export: under the owner's terms, verified on the way, complete or absent."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import hagane.catalog.export as export_module
from hagane.catalog.export import Format, export_set, verify_export
from hagane.intake.lerobot import read
from hagane.seal import Ledger, load_contract
from hagane.terms import CorruptError, Embodiment, Refused, StoreError, load_toml
from tests.catalog_fixture import ARM, MILL, ROAD, Home, episodes, make_home

FORMATS: tuple[Format, ...] = ("lerobot", "parquet")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = make_home(tmp_path / "site")
    catalog = made.catalog()
    for machine, purposes in ((ARM, ("view", "export")), (ROAD, ("view", "export")), (MILL, ("view", "anchor"))):
        catalog.add(f"{machine.name}-demo", machine, made.contract(machine, purposes=purposes), episodes(machine, 4))
    return made


def left(out: Path) -> list[str]:
    """What lies in the folder where an export was to go."""
    return sorted(p.name for p in out.parent.iterdir()) if out.parent.exists() else []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def stored(home: Home, name: str, pattern: str) -> Path:
    return next((home.folder / "catalog" / "sets" / name).glob(pattern))


def test_lerobot_is_the_canonical_set_byte_for_byte(home: Home, tmp_path: Path) -> None:
    done = export_set(home.catalog(), "arm-demo", "lerobot", tmp_path / "out" / "arm")
    source = home.folder / "catalog" / "sets" / "arm-demo"
    canonical = [p.relative_to(source) for d in ("meta", "data") for p in (source / d).rglob("*") if p.is_file()]
    assert canonical and all((done.folder / p).read_bytes() == (source / p).read_bytes() for p in canonical)
    assert not (done.folder / "hagane").exists(), "our own files stay here"
    back = list(read(done.folder, ARM))
    kept = list(home.catalog().episodes("arm-demo", "view"))
    for a, b in zip(back, kept, strict=True):
        np.testing.assert_array_equal(a.streams["joints"].values, b.streams["joints"].values)


@pytest.mark.parametrize("to", FORMATS)
def test_terms_machine_and_manifest_go_with_it(home: Home, tmp_path: Path, to: Format) -> None:
    catalog = home.catalog()
    done = export_set(catalog, "road-demo", to, tmp_path / "out")
    assert load_contract(done.folder / "contract.toml", home.trust) == catalog.contract("road-demo")
    assert load_toml(done.folder / "embodiment.toml", Embodiment) == ROAD
    assert verify_export(done.folder) == done.files and left(done.folder) == ["out", "site"]
    told = json.loads((done.folder / "manifest.json").read_bytes())
    assert set(told["files"]) == {
        p.relative_to(done.folder).as_posix() for p in done.folder.rglob("*") if p.is_file()
    } - {"manifest.json"}
    entry = [e for e in home.ledger.entries() if e.kind == "export"][-1]
    assert entry.body["manifest"] == done.digest and entry.body["dataset"] == "road-demo" and entry.body["to"] == to


@pytest.mark.parametrize("to", FORMATS)
def test_without_the_purpose_nothing_is_written(home: Home, tmp_path: Path, to: Format) -> None:
    out = tmp_path / "out" / "mill"
    with pytest.raises(Refused, match="purpose 'export' is not granted"):
        export_set(home.catalog(), "mill-demo", to, out)
    assert left(out) == [] and not out.parent.exists()
    assert [e.kind for e in home.ledger.entries()][-1] == "refusal"


@pytest.mark.parametrize(
    ("to", "pattern"),
    [
        ("lerobot", "data/*/*.parquet"),
        ("lerobot", "meta/info.json"),
        ("lerobot", "meta/episodes/*/*.parquet"),
        ("parquet", "hagane/streams/*.parquet"),
        ("parquet", "hagane/episodes.json"),
        ("parquet", "hagane/stats.npz"),
        ("lerobot", "hagane/manifest.json"),
    ],
)
@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_damage_is_named_and_nothing_is_left(
    home: Home, tmp_path: Path, to: Format, pattern: str, damage: Callable[[Path], None]
) -> None:
    catalog, path = home.catalog(), stored(home, "road-demo", pattern)
    damage(path)
    with pytest.raises(CorruptError, match=path.name):
        export_set(catalog, "road-demo", to, tmp_path / "out" / "road")
    assert left(tmp_path / "out" / "road") == []


def test_a_symlink_in_the_set_is_not_followed(home: Home, tmp_path: Path) -> None:
    path = stored(home, "arm-demo", "meta/info.json")
    catalog, elsewhere = home.catalog(), tmp_path / "elsewhere.json"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(CorruptError, match=r"info\.json"):
        export_set(catalog, "arm-demo", "lerobot", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("there", ["folder", "file", "dangling link"])
def test_what_exists_is_not_touched(home: Home, tmp_path: Path, there: str) -> None:
    out = tmp_path / "out"
    {"folder": out.mkdir, "file": out.touch, "dangling link": lambda: out.symlink_to(tmp_path / "nowhere")}[there]()
    with pytest.raises(StoreError, match="the folder exists"):
        export_set(home.catalog(), "arm-demo", "lerobot", out)
    assert left(out) == ["out", "site"] and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_is_one_message(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Format) -> None:
    catalog, out = home.catalog(), tmp_path / "out" / "arm"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    # the last thing that is written: all the rest is there already
    monkeypatch.setattr(export_module, "_write_manifest", full)
    with pytest.raises(StoreError, match="No space left on device") as e:
        export_set(catalog, "arm-demo", to, out)
    assert str(out) in str(e.value) and "free some disk" in str(e.value) and left(out) == []
    monkeypatch.undo()
    assert verify_export(export_set(catalog, "arm-demo", to, out).folder)


def test_a_really_full_disk(home: Home, tmp_path: Path) -> None:
    """Files limited in size by the system itself, in a process of its own."""
    import subprocess
    import sys

    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from hagane.cli import main; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000));"
        "sys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / "out" / "arm"
    verb = ["catalog", "export", "arm-demo", "--to", "lerobot", "--out", str(out), "--home", str(home.folder)]
    done = subprocess.run([sys.executable, "-c", code, *verb], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "cannot be written" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert left(out) == []


def test_leftovers_of_a_killed_export_do_not_matter(home: Home, tmp_path: Path) -> None:
    leftover = tmp_path / ".out.making"
    (leftover / "data").mkdir(parents=True)
    (leftover / "data" / "stray.parquet").touch()
    done = export_set(home.catalog(), "arm-demo", "lerobot", tmp_path / "out")
    assert verify_export(done.folder) == done.files and left(done.folder) == ["out", "site"]


@pytest.mark.parametrize("harm", ["flip", "missing", "stray", "manifest"])
def test_the_receiver_can_check_every_byte(home: Home, tmp_path: Path, harm: str) -> None:
    folder = export_set(home.catalog(), "arm-demo", "parquet", tmp_path / "out").folder
    path = folder / {"flip": "contract.toml", "missing": "episodes.parquet", "stray": "x.txt"}.get(
        harm, "manifest.json"
    )
    if harm == "stray":
        path.touch()
    elif harm == "missing":
        path.unlink()
    else:
        flip(path)
    with pytest.raises(CorruptError, match=path.name):
        verify_export(folder)


def test_unknown_sets_and_names_that_are_paths(home: Home, tmp_path: Path) -> None:
    for name in ("nope", "../arm-demo", "", "arm-demo/../arm-demo", "/etc"):
        with pytest.raises(StoreError, match="no data set"):
            export_set(home.catalog(), name, "lerobot", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_exported_lerobot_set_can_be_read_by_plain_tools(home: Home, tmp_path: Path) -> None:
    folder = export_set(home.catalog(), "road-demo", "lerobot", tmp_path / "out").folder
    info = json.loads((folder / "meta" / "info.json").read_bytes())
    table = pq.read_table(folder / "data" / "chunk-000" / "file-000.parquet")
    assert info["codebase_version"] == "v3.0" and table.num_rows == info["total_frames"]


def test_nothing_leaves_that_the_ledger_cannot_note(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, append = home.catalog(), Ledger.append

    def refuses(ledger: Ledger, kind: str, body: Any) -> int:
        if kind == "export":
            raise StoreError("the disk refused")
        return append(ledger, kind, body)

    monkeypatch.setattr(Ledger, "append", refuses)
    with pytest.raises(StoreError):
        export_set(catalog, "arm-demo", "lerobot", tmp_path / "out")
    assert left(tmp_path / "out") == ["site"]
