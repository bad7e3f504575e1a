"""Folders that code which nobody trusts made or is changing: walked, counted, sealed; and locks that one holds."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hagane.seal import Keyring, OwnKeys, SealedFolder, check_folder, open_folder, seal_folder, unseal_folder
from hagane.seal import folder_write as writing
from hagane.terms import StoreError
from hagane.terms.files import DEPTH, alone, check_total, files_below, folder_at
from tests.sealed_fixture import CONTRACT, OWNER

SECRET = b"a file of the host"


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Files at three depths, and a host's file beside."""
    (tmp_path / "secret").write_bytes(SECRET)
    made = tmp_path / "made"
    (made / "a" / "b").mkdir(parents=True)
    for name, data in {"top": b"1", "a/mid": b"22", "a/b/low": b"333"}.items():
        (made / name).write_bytes(data)
    return made


def seal(source: Path | int, target: Path, **how: Any) -> SealedFolder:
    return seal_folder(source, target, Keyring(target.parent / "keys"), "road-a", OWNER, CONTRACT, **how)


def texts(folder: SealedFolder) -> dict[str, bytes]:
    keys = OwnKeys(folder, Keyring(folder.path.parent / "keys"))
    return {path: folder.read(path, keys) for path in folder.files}


ALL = {"top": b"1", "a/mid": b"22", "a/b/low": b"333"}


def test_a_descriptor_is_as_good_as_a_path_and_stays_open(source: Path, tmp_path: Path) -> None:
    with opened(source) as fd:
        source.rename(tmp_path / "elsewhere")  # the descriptor still leads to it, and to nothing put in its place
        source.mkdir()
        (source / "other").write_bytes(b"x")
        assert texts(seal(fd, tmp_path / "one")) == ALL
        assert texts(seal(fd, tmp_path / "two")) == ALL, "the same descriptor can be read again"
        os.fstat(fd)
    assert texts(seal(tmp_path / "elsewhere", tmp_path / "three")) == ALL


def test_names_are_left_out_at_the_top_only(source: Path, tmp_path: Path) -> None:
    (source / "link").symlink_to(tmp_path / "secret")
    (source / "a" / "top").write_bytes(b"kept")
    found = texts(seal(source, tmp_path / "out", leave_out=frozenset({"link", "top", "absent"})))
    assert found == {"a/mid": b"22", "a/b/low": b"333", "a/top": b"kept"}


def test_what_trusted_code_adds_wins(source: Path, tmp_path: Path) -> None:
    extra = {"log": b"text", "a/mid": b"ours", "top/log": b"below a file", "a/b": b"instead of a folder"}
    folder = seal(source, tmp_path / "out", extra=extra)
    assert texts(folder) == extra and check_folder(folder.path)
    unseal_folder(folder.path, tmp_path / "back", Keyring(tmp_path / "keys"))
    assert (tmp_path / "back/top/log").read_bytes() == b"below a file"
    with pytest.raises(StoreError, match="not usable"):
        seal(source, tmp_path / "not", extra={"../log": b""})
    assert not (tmp_path / "not").exists()


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


ATTACKS: dict[str, Callable[[Path, Path], object]] = {
    "file link": lambda p, s: p.symlink_to(s),
    "folder link": lambda p, s: p.symlink_to(s.parent),
    "link up": lambda p, s: p.symlink_to("../.."),
    "link to nothing": lambda p, s: p.symlink_to("absent"),
    "pipe": lambda p, s: os.mkfifo(p),
    "socket": lambda p, s: _socket(p),
    "odd\nname": lambda p, s: p.write_bytes(b""),
    "odd\udcffname": lambda p, s: p.write_bytes(b""),
}


@pytest.mark.parametrize("level", ["", "a", "a/b"])
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_but_files_is_taken_at_any_level(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, level: str
) -> None:
    monkeypatch.chdir(source / level)  # a socket's path is short
    ATTACKS[name](Path(name), tmp_path / "secret")
    for given in ("path", "descriptor"):
        with (
            opened(source) as fd,
            pytest.raises(StoreError, match=r"neither file nor folder|does not print|not usable") as e,
        ):
            seal(source if given == "path" else fd, tmp_path / "out")
        assert e.value.where
        assert sorted(p.name for p in tmp_path.iterdir()) == ["keys", "made", "secret"]


@pytest.mark.parametrize("level", ["", "a", "a/b"])
@pytest.mark.parametrize("swap", ["file", "folder", "pipe"])
def test_what_is_swapped_for_a_link_after_it_was_looked_at_is_not_followed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, swap: str
) -> None:
    """The jail may still run: between our look and our open, it puts something else in the place."""
    place = source / level / "victim"
    place.mkdir() if swap == "folder" else place.write_bytes(b"harmless")
    real = os.lstat

    def look_then_swap(name: Any, *, dir_fd: int | None = None) -> os.stat_result:
        found = real(name, dir_fd=dir_fd)
        if name == "victim" and not place.is_symlink():
            place.rmdir() if swap == "folder" else place.unlink()
            os.mkfifo(place) if swap == "pipe" else place.symlink_to(
                tmp_path if swap == "folder" else tmp_path / "secret"
            )
        return found

    monkeypatch.setattr(os, "lstat", look_then_swap)
    with opened(source) as fd, pytest.raises(StoreError, match=r"cannot be sealed|no plain file any more"):
        seal(fd, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_file_with_holes_is_refused_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    with (source / "a" / "sparse").open("wb") as f:
        f.truncate(1 << 40)
    with opened(source) as fd, pytest.raises(StoreError, match=r"more than 1048576 bytes, up to 'a/sparse'") as e:
        seal(fd, tmp_path / "out", most_bytes=1 << 20)
    assert "open folder" in e.value.where
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "secret"], "not even a key"
    os.truncate(source / "a" / "sparse", 5)
    assert texts(seal(source, tmp_path / "out", most_bytes=4 * 4096)) == {**ALL, "a/sparse": bytes(5)}
    with pytest.raises(StoreError, match="more than"):
        seal(source, tmp_path / "more", most_bytes=4 * 4096 - 1)
    assert texts(seal(source, tmp_path / "less", most_bytes=4096, leave_out=frozenset({"a"}))) == {"top": b"1"}


def test_a_file_that_grows_after_the_count_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count_then_grow(*args: Any) -> None:
        check_total(*args)
        os.truncate(source / "top", 1 << 40)

    monkeypatch.setattr(writing, "check_total", count_then_grow)
    with pytest.raises(StoreError, match="grew to more than 1048576 bytes"):
        seal(source, tmp_path / "out", most_bytes=1 << 20)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_path_of_too_many_names_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "made"
    deep = made.joinpath(*["d"] * (DEPTH - 1))
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x")
    assert len(texts(seal(made, tmp_path / "out"))) == 1
    (deep / "more").mkdir()
    (deep / "more" / "file").write_bytes(b"x")
    with pytest.raises(StoreError, match=f"more than {DEPTH}"):
        seal(made, tmp_path / "not")
    with opened(tmp_path) as fd:
        shutil.rmtree(made)
        assert [path for path, _ in files_below(fd, frozenset({"out", "keys"}))] == []


HOLDER = """
import os, signal, sys
from pathlib import Path
from hagane.terms.files import alone
with alone(Path(sys.argv[1]), private=True):
    print("held", flush=True)
    signal.pause()
"""


def test_a_lock_is_held_by_one_and_let_go_by_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        with path.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder.kill()
    order: list[int] = []

    def work(number: int) -> None:
        with alone(path) as fd:  # threads of one process wait for each other too
            order.append(number)
            os.write(fd, b"x")
            order.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert order[::2] == order[1::2] and sorted(order[::2]) == list(range(8))
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="the disk refused a lock") as e, alone(tmp_path / "file" / "lock"):
        raise AssertionError
    assert e.value.where and e.value.next_step


def test_a_folder_below_a_root_is_reached_without_links(source: Path, tmp_path: Path) -> None:
    fd = folder_at(tmp_path, Path("/made/a"))  # as in a jail: absolute paths begin at the root that is given
    assert [path for path, _ in files_below(fd)] == ["b/low", "mid"]
    os.close(fd)
    (tmp_path / "link").symlink_to(source)
    (source / "link").symlink_to(source / "a")
    for bad in ("link", "link/a", "made/link", "made/link/b", "made/top", "made/../made", "/etc"):
        with pytest.raises(OSError):
            folder_at(tmp_path, Path(bad))
    with pytest.raises(FileNotFoundError):
        folder_at(tmp_path, Path("absent/a"))
    with pytest.raises(StoreError, match="link"):
        seal(tmp_path / "link", tmp_path / "out")
    assert open_folder(seal(source / "a", tmp_path / "a").path).files == ("b/low", "mid")
