"""What code in a jail leaves behind is hostile: nothing that it chose stands open outside, nothing of ours gets in.

The collector reads below any folder, so these tests make the folder that a jail would have left. Every door has a
planted fault: without the wall that closes it, the same judge must find the token or the secret.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hagane.cli import collect, sealed_run
from hagane.cli.collect import Collector
from hagane.cli.house import House
from hagane.cli.opens import Opens
from hagane.cli.sealed_run import SealedRun, read_sealed_run
from hagane.seal import Keyring, Ledger, unseal_folder
from hagane.seal.key_life import erase
from hagane.terms import CorruptError, HaganeError, StoreError, files
from tests.keeper_fixture import Said, carriers

TOKEN = bytes.fromhex("9f3ac1e5027bd846115efd0c93a8b7e2")
HEX = TOKEN.hex()
NUMBER = b"314159265358"
SECRET = b"<the host's own secret file>"
EVERYTHING = re.compile(r"(?P<word>\A\Z)?.*", re.DOTALL)
STEPS = 400


class _House(House):
    """A site without data sets: this one has runs only."""

    def caches(self) -> dict[str, str]:
        return {}


class Scene:
    """A run on disk, and the root of a jail that has ended."""

    def __init__(self, path: Path, size_bytes: int = 64 << 20) -> None:
        self.disk, self.root, self.host = path / "disk", path / "root", path / "host"
        self.run = self.disk / "runs" / "first"
        self.inside = self.root / self.run.relative_to("/")
        self.keyring = Keyring(path / "keys")
        for folder in (self.disk, self.host / "step-000020", self.host / "checkpoints" / "step-000020"):
            folder.mkdir(parents=True)
            for name in ("manifest.json", "model.toml", "config.toml"):
                (folder / name).write_bytes(SECRET)
        shutil.rmtree(self.disk)
        self.write("config.toml", b"plan")
        self.write("checkpoints/step-000020/manifest.json", b"whole")
        self.write("checkpoints/step-000020/model.toml", b"40m")
        site = SimpleNamespace(operator="consortium", name="lab")
        catalog: Any = SimpleNamespace(site=site, root=self.disk / "catalog", problems={})
        opens = Opens(self.disk, "anchor", makes=(self.run,), steps=STEPS)
        ledger = Ledger(self.disk / "ledger.jsonl")
        self.disk.mkdir(parents=True)
        self.collector = Collector(_House(opens, catalog, ledger, self.keyring, {}, ()), size_bytes)

    def write(self, path: str, data: bytes) -> None:
        file = self.inside / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def collect(self) -> str:
        """What the keeper says of it."""
        try:
            with self.collector.alone():
                self.collector.collect(self.root, {"stdout.txt": TOKEN, "stderr.txt": b""}, 0)
        except HaganeError as e:
            return str(e)
        return ""

    def sealed(self) -> dict[str, bytes]:
        """Everything that was sealed, by path below the run's sealed folder."""
        out = {}
        for number, found in enumerate(sorted(self.run.glob("sealed/*/sealed.json"))):
            to = self.disk.parent / f"opened-{number}-{len(list(self.disk.parent.iterdir()))}"
            unseal_folder(found.parent, to, self.keyring)
            for path in (p for p in to.rglob("*") if p.is_file()):
                out[f"{found.parent.name}/{path.relative_to(to)}"] = path.read_bytes()
            shutil.rmtree(to)
        return out


def strange_name(scene: Scene) -> None:
    scene.write(HEX, b"")
    scene.write(f"scorecards/{HEX}.json", b"")


def strange_name_in_checkpoint(scene: Scene) -> None:
    scene.write(f"checkpoints/step-000020/weights/{HEX}.r00000.0.safetensors", b"")


def strange_step(scene: Scene) -> None:
    scene.write(f"checkpoints/step-{NUMBER.decode()}/manifest.json", b"")


def strange_link(scene: Scene) -> None:
    (scene.inside / HEX).symlink_to("/etc/passwd")


def strange_pipe(scene: Scene) -> None:
    os.mkfifo(scene.inside / "checkpoints" / "step-000020" / HEX)


NAMES: list[tuple[Callable[[Scene], None], bytes, tuple[object, str, object]]] = [
    (strange_name, TOKEN, (sealed_run, "REST_NAMES", EVERYTHING)),
    (strange_name_in_checkpoint, TOKEN, (sealed_run, "CHECKPOINT_NAMES", EVERYTHING)),
    (strange_step, NUMBER, (SealedRun, "_has_step", lambda _, name: sealed_run.STEP.fullmatch(name))),
    (strange_link, TOKEN, (collect, "_nameless", lambda _: nullcontext())),
    (strange_pipe, TOKEN, (collect, "_nameless", lambda _: nullcontext())),
]


@pytest.mark.parametrize("faulty", [False, True], ids=["", "planted-fault"])
@pytest.mark.parametrize(("attack", "token", "fault"), NAMES, ids=[a.__name__ for a, _, _ in NAMES])
def test_names_carry_nothing_out(
    attack: Callable[[Scene], None],
    token: bytes,
    fault: tuple[object, str, object],
    faulty: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(tmp_path)
    attack(scene)
    if faulty:
        monkeypatch.setattr(*fault)
    said = scene.collect()
    assert bool(carriers(token, Said(1, "", said), [scene.disk])) == faulty


def link_for_checkpoints(scene: Scene) -> None:
    shutil.rmtree(scene.inside / "checkpoints")
    (scene.inside / "checkpoints").symlink_to(scene.host / "checkpoints")


def link_for_step(scene: Scene) -> None:
    shutil.rmtree(scene.inside / "checkpoints" / "step-000020")
    (scene.inside / "checkpoints" / "step-000020").symlink_to(scene.host / "step-000020")


def link_for_run(scene: Scene) -> None:
    shutil.rmtree(scene.inside)
    scene.inside.symlink_to(scene.host)


def link_for_parent(scene: Scene) -> None:
    shutil.rmtree(scene.inside.parent)
    (scene.host / "first").symlink_to(".")
    scene.inside.parent.symlink_to(scene.host)


def _follow(folder: int, name: str) -> int | None:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    except FileNotFoundError:
        return None


LINKS = (link_for_checkpoints, link_for_step, link_for_run, link_for_parent)


@pytest.mark.parametrize("faulty", [False, True], ids=["", "planted-fault"])
@pytest.mark.parametrize("attack", LINKS)
def test_links_lead_nowhere(
    attack: Callable[[Scene], None], faulty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path)
    attack(scene)
    if faulty:
        monkeypatch.setattr(sealed_run, "further", _follow)
        # the one mechanism that reaches a folder, following links
        monkeypatch.setattr(files, "_FOLDER", os.O_RDONLY | os.O_DIRECTORY)
    said = scene.collect()
    assert any(SECRET in data for data in scene.sealed().values()) == faulty
    assert faulty or "cannot be taken" in said


@pytest.mark.parametrize("faulty", [False, True], ids=["", "planted-fault"])
def test_a_folder_that_becomes_a_link_while_it_is_read(
    faulty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path)
    if faulty:
        monkeypatch.setattr(sealed_run, "further", _follow)
    top = scene.inside / "checkpoints"
    (top / "other").symlink_to(scene.host / "step-000020")
    libc, stop = ctypes.CDLL(None, use_errno=True), threading.Event()
    two = [os.fsencode(top / name) for name in ("step-000020", "other")]

    def swap() -> None:
        while not stop.is_set():
            libc.renameat2(-100, two[0], -100, two[1], 2)  # RENAME_EXCHANGE

    thread = threading.Thread(target=swap)
    thread.start()
    seen = False
    try:
        for _ in range(25):
            scene.collector._saved.set()
            with scene.collector.watching(scene.root):
                pass
            scene.collector._ended = False
            with collect.reached(scene.root, scene.run) as place:
                assert place is not None
                try:
                    scene.collector._take(scene.collector.runs[scene.run], place)
                except HaganeError:
                    continue
            seen |= any(SECRET in data for data in scene.sealed().values())
            shutil.rmtree(scene.run / "sealed", ignore_errors=True)
    finally:
        stop.set()
        thread.join()
    assert seen == faulty


@pytest.mark.parametrize("odd", ["fifo", "holes", "many", "folder"])
def test_odd_things_are_refused_and_the_rest_stays(odd: str, tmp_path: Path) -> None:
    scene = Scene(tmp_path, size_bytes=8 << 20)
    assert scene.collect() == ""
    before = scene.sealed()
    step = scene.inside / "checkpoints" / "step-000021"
    step.mkdir()
    if odd == "fifo":
        os.mkfifo(step / "manifest.json")
    elif odd == "holes":
        with (step / "manifest.json").open("wb") as file:
            file.truncate(1 << 40)
    elif odd == "many":
        for number in range(2100):
            (step / f"{number}").touch()
        (step / "manifest.json").touch()
    else:
        (step / "manifest.json").mkdir()
        (step / "manifest.json" / "link").symlink_to("/")
    assert "cannot be taken" in scene.collect()
    after = scene.sealed()
    assert not any(name.startswith("step-000021") for name in after)
    assert before.items() <= after.items()


def test_a_full_disk_is_said_and_leaves_whole_checkpoints_only(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    assert scene.collect() == ""
    scene.write("checkpoints/step-000040/manifest.json", os.urandom(1 << 20))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))
    try:
        said = scene.collect()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in said
    left = sorted(p.name for p in (scene.run / "sealed").iterdir())
    assert left == ["rest", "step-000020"]
    assert scene.collect() == ""
    assert "step-000040/manifest.json" in scene.sealed()


def test_what_a_killed_keeper_left_is_tidied(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    assert scene.collect() == ""
    before, sealed = scene.sealed(), scene.run / "sealed"
    (sealed / "rest").rename(sealed / ".rest.old")
    shutil.copytree(sealed / "step-000020", sealed / ".step-000040.sealing-0123")
    shutil.copytree(sealed / "step-000020", sealed / ".step-000010.dropped")
    with scene.collector.alone():
        assert sorted(p.name for p in sealed.iterdir()) == ["rest", "step-000020"]
    assert scene.sealed() == before


def test_a_run_has_one_keeper(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    with (
        scene.collector.alone(),
        pytest.raises(StoreError, match="another keeper is at work"),
        scene.collector.alone(),
    ):
        pass
    assert scene.collect() == ""


def test_a_run_opens_at_another_place_and_not_without_its_key(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    assert scene.collect() == ""
    moved = tmp_path / "elsewhere" / "first"
    moved.parent.mkdir()
    scene.run.rename(moved)
    run, laid = read_sealed_run(moved), tmp_path / "laid"
    laid.mkdir()
    run.unseal(laid, scene.keyring)
    assert (laid / "checkpoints" / "step-000020" / "model.toml").read_bytes() == b"40m"
    assert run.steps == STEPS
    erase(scene.keyring, "consortium", run.name, scene.collector.house.ledger.append)
    again = tmp_path / "again"
    again.mkdir()
    with pytest.raises(HaganeError, match="erased"):
        run.unseal(again, scene.keyring)


def test_a_lineage_that_was_cut_is_said(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    assert scene.collect() == ""
    lineage = scene.run / "lineage.json"
    lineage.write_bytes(lineage.read_bytes()[:-20])
    with pytest.raises(CorruptError, match="lineage"):
        read_sealed_run(scene.run)
