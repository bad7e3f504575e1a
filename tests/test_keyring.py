"""The keyring: whole or old after a kill at any step, protected, rotated without a loss, erased for good."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hagane.seal import Keyring, Ledger, OwnKeys, Wrapped, check_folder, erase, open_folder, out_of_reach, rotate
from hagane.seal import key_file as key_file_module
from hagane.seal.private_files import write_private
from hagane.terms import ConfigError, ContractError, CorruptError, HaganeError, Refused, StoreError
from tests.sealed_fixture import CONTRACT, OWNER, SHARD, plaintexts, sealed

KEY = bytes(range(32))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_file_module, "SCRYPT", (1 << 15, 8, 1))


def reads(folder: Path, keyring: Keyring) -> bool:
    opened = open_folder(folder)
    wanted = plaintexts(f"<{opened.name}>".encode())
    return {p: opened.read(p, OwnKeys(opened, keyring)) for p in opened.files} == wanted


def test_wrap_and_unwrap(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keys")
    assert keyring.fresh(OWNER, "road-a") == keyring.fresh(OWNER, "road-a") == 1
    keyring.fresh(OWNER, "road-b")
    keyring.fresh("member-arms", "road-a")
    wrapped = keyring.wrap(OWNER, "road-a", KEY, SHARD, CONTRACT)
    again = Keyring(tmp_path / "keys")
    assert again.unwrap(OWNER, "road-a", wrapped, SHARD, CONTRACT) == KEY
    wrong = [
        (OWNER, "road-b", wrapped, SHARD, CONTRACT),
        ("member-arms", "road-a", wrapped, SHARD, CONTRACT),
        (OWNER, "road-a", wrapped, "00" * 16, CONTRACT),
        (OWNER, "road-a", wrapped, SHARD, "00" * 32),
        (OWNER, "road-a", Wrapped(1, b""), SHARD, CONTRACT),
        *((OWNER, "road-a", Wrapped(1, flipped(wrapped.data, i)), SHARD, CONTRACT) for i in range(60)),
    ]
    for words in wrong:
        with pytest.raises(CorruptError):
            again.unwrap(*words)
    for name, old in (("road-c", wrapped), ("road-a", Wrapped(2, wrapped.data))):
        with pytest.raises(Refused, match="no key"):
            again.unwrap(OWNER, name, old, SHARD, CONTRACT)
    assert again.owners() == ("member-arms", OWNER)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


@pytest.mark.parametrize("owner", ["../x", "a/b", "", "Member", "m\u0435mber", "x" * 65])
def test_an_owner_with_an_odd_name(tmp_path: Path, owner: str) -> None:
    with pytest.raises(ConfigError):
        Keyring(tmp_path / "keys").fresh(owner, "road-a")
    with pytest.raises(ConfigError):
        Keyring(tmp_path / "keys").fresh(OWNER, owner)
    assert not list(tmp_path.rglob("*.keys"))


@pytest.mark.parametrize("passphrase", [None, b"four words of sense"])
def test_every_flipped_byte_and_cut_of_the_file(tmp_path: Path, passphrase: bytes | None, quick: None) -> None:
    keyring = Keyring(tmp_path / "keys")
    keyring.fresh(OWNER, "road-a")
    keyring.protect(OWNER, passphrase)
    path = keyring.path_of(OWNER)
    good = path.read_bytes()
    again = Keyring(tmp_path / "keys", lambda owner: passphrase or b"")
    again.file_of(OWNER)
    for at in range(len(good)):
        for bad in (flipped(good, at), good[:at]):
            path.write_bytes(bad)
            with pytest.raises(HaganeError):
                again.file_of(OWNER)
    path.write_bytes(good)
    assert again.generations(OWNER, "road-a") == (1,)


def test_a_file_open_to_others_or_of_another_owner(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keys")
    keyring.fresh(OWNER, "road-a")
    path = keyring.path_of(OWNER)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.rename(keyring.path_of("member-arms"))
    with pytest.raises(CorruptError, match="another owner"):
        keyring.file_of("member-arms")
    keyring.path_of("member-arms").rename(path)
    path.chmod(0o640)
    with pytest.raises(ContractError, match="open to other users"):
        Keyring(tmp_path / "keys").file_of(OWNER)


def test_a_passphrase(tmp_path: Path, quick: None) -> None:
    folder = tmp_path / "keys"
    keyring = Keyring(folder)
    sealed(tmp_path, "road-a", keyring)
    keyring.protect(OWNER, b"right")
    on_disk = keyring.path_of(OWNER).read_bytes()
    assert b"road-a" not in on_disk
    asked: list[str] = []
    good = Keyring(folder, lambda owner: (asked.append(owner), b"right")[1])
    assert reads(tmp_path / "road-a", good)
    good.fresh(OWNER, "road-b")  # a change keeps the protection, and asks no more
    assert asked == [OWNER] and b"road-b" not in keyring.path_of(OWNER).read_bytes()
    with pytest.raises(ContractError, match="passphrase is wrong"):
        Keyring(folder, lambda owner: b"wrong").file_of(OWNER)
    with pytest.raises(ContractError, match="none was given"):
        Keyring(folder).file_of(OWNER)
    good.protect(OWNER, None)
    assert reads(tmp_path / "road-a", Keyring(folder))


def test_a_file_that_asks_for_terabytes(tmp_path: Path, quick: None) -> None:
    keyring = Keyring(tmp_path / "keys", lambda owner: b"x")
    keyring.fresh(OWNER, "road-a")
    keyring.protect(OWNER, b"x")
    path = keyring.path_of(OWNER)
    good = path.read_bytes()
    for n in (1 << 40, 2, 0, -1, 32769):
        path.write_bytes(good.replace(b'"n":32768', b'"n":%d' % n))
        with pytest.raises(CorruptError):
            keyring.file_of(OWNER)


def test_rotation(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keys")
    a, b = sealed(tmp_path, "road-a", keyring), sealed(tmp_path, "road-b", keyring)
    data = {p: p.read_bytes() for p in a.path.rglob("*.sealed")}
    done = rotate(keyring, OWNER, "road-a")
    assert (done.generation, done.folders, done.missing, done.destroyed) == (2, (a.path,), (), (1,))
    assert keyring.generations(OWNER, "road-a") == (2,) and keyring.generations(OWNER, "road-b") == (1,)
    assert all(p.read_bytes() == d for p, d in data.items()) and check_folder(a.path)
    assert reads(a.path, Keyring(tmp_path / "keys")) and reads(b.path, keyring)
    with pytest.raises(Refused, match="generation 1"):  # a copy of the old list opens nothing any more
        OwnKeys(a, keyring).key("road-a", next(iter(a.shards)))


def test_rotation_forgets_no_folder(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keys")
    sealed(tmp_path, "road-a", keyring)
    (tmp_path / "road-a").rename(tmp_path / "moved")
    done = rotate(keyring, OWNER, "road-a")
    assert [Path(p.path).name for p in done.missing] == ["road-a"] and not done.destroyed
    assert keyring.generations(OWNER, "road-a") == (1, 2) and reads(tmp_path / "moved", keyring)
    done = rotate(keyring, OWNER, "road-a", [tmp_path / "moved"])
    assert done.destroyed == (1,) and done.generation == 2 and reads(tmp_path / "moved", keyring)
    assert rotate(keyring, OWNER, "road-a").destroyed == (2,)  # found by itself from now on
    sealed(tmp_path, "road-b", keyring)
    with pytest.raises(StoreError, match="sealed for"):
        rotate(keyring, OWNER, "road-a", [tmp_path / "road-b"])
    (tmp_path / "moved" / "sealed.json").unlink()
    done = rotate(keyring, OWNER, "road-a", gone=True)
    assert len(done.missing) == 1 and done.destroyed == (3,)


def test_rotation_believes_no_list_that_somebody_changed(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keys")
    a = sealed(tmp_path, "road-a", keyring)
    good = (a.path / "sealed.json").read_bytes()
    (a.path / "sealed.json").write_bytes(flipped(good, 700))
    with pytest.raises(CorruptError):
        rotate(keyring, OWNER, "road-a")
    (a.path / "sealed.json").write_bytes(good)
    assert reads(a.path, keyring)


KILLED = """
import os, signal, sys
from pathlib import Path
from hagane.seal import Keyring, Ledger, erase, rotate
folder, what, stop, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), 0
def counted(real):
    def call(*args, **more):
        global count
        count += 1
        if count == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    return call
for name in ("open", "replace", "rename", "fsync", "pwrite", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
keyring = Keyring(folder / "keys")
if what == "rotate":
    rotate(keyring, "member-cars", "road-a")
else:
    erase(keyring, "member-cars", "road-a", Ledger(folder / "ledger.jsonl").append)
"""


def killed(folder: Path, what: str, stop: int) -> bool:
    """Run one step of a key's life and kill it before its `stop`th system call; False when it came to its end."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), what, str(stop)], check=False)
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


def stops(short: tuple[int, ...]) -> list[Any]:
    return [pytest.param(s, marks=() if s in short else (pytest.mark.slow,)) for s in range(1, 45)]


@pytest.mark.parametrize("stop", stops((4, 9, 14, 19, 24)))
def test_a_killed_rotation_loses_nothing(tmp_path: Path, stop: int) -> None:
    a = sealed(tmp_path, "road-a", Keyring(tmp_path / "keys")).path
    killed(tmp_path, "rotate", stop)
    keyring = Keyring(tmp_path / "keys")
    assert reads(a, keyring)
    rotate(keyring, OWNER, "road-a")
    assert reads(a, keyring) and len(keyring.generations(OWNER, "road-a")) == 1
    assert not list((tmp_path / "keys").glob(".*making"))


@pytest.mark.parametrize("stop", stops((3, 7, 11, 15, 19)))
def test_a_killed_erasure_is_recorded_in_the_end(tmp_path: Path, stop: int) -> None:
    sealed(tmp_path, "road-a", Keyring(tmp_path / "keys"))
    ended = not killed(tmp_path, "erase", stop)
    keyring, ledger = Keyring(tmp_path / "keys"), Ledger(tmp_path / "ledger.jsonl")
    gone = not keyring.generations(OWNER, "road-a")
    if gone:
        with pytest.raises(Refused, match="erased on purpose"):
            reads(tmp_path / "road-a", keyring)
    else:
        assert reads(tmp_path / "road-a", keyring) and not list(ledger.entries())
    if any(t.recorded for t in keyring.file_of(OWNER).erased):
        with pytest.raises(Refused, match="already"):
            erase(keyring, OWNER, "road-a", ledger.append)
    else:
        assert not ended
        erase(keyring, OWNER, "road-a", ledger.append)
    assert {e.kind for e in ledger.entries()} == {"erase"} and 1 <= ledger.head().size <= 2


def test_erasing(tmp_path: Path) -> None:
    keyring, ledger = Keyring(tmp_path / "keys"), Ledger(tmp_path / "ledger.jsonl")
    a, b = sealed(tmp_path, "road-a", keyring), sealed(tmp_path, "road-b", keyring)
    key = next(k for k in keyring.file_of(OWNER).keys if k.name == "road-a").key
    done = erase(keyring, OWNER, "road-a", ledger.append)
    assert done.generations == (1,) and [p.folder_id for p in done.places] == [a.listed.id] and done.entry == 0
    (entry,) = ledger.entries()
    assert entry.kind == "erase" and entry.body["dataset"] == "road-a" and key.hex() not in str(entry.body)
    with pytest.raises(Refused, match="erased on purpose"):
        reads(a.path, Keyring(tmp_path / "keys"))
    assert reads(b.path, keyring)
    for again in (lambda: keyring.fresh(OWNER, "road-a"), lambda: erase(keyring, OWNER, "road-a", ledger.append)):
        with pytest.raises(Refused, match="erased"):
            again()
    with pytest.raises(Refused, match="no key"):
        erase(keyring, OWNER, "road-c", ledger.append)


def test_replaced_bytes_are_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.keys"
    write_private(path, b"old secret")
    with path.open("rb") as old:
        write_private(path, b"new")
        assert old.read() == bytes(10)
    # what a killed writer left goes as well
    (tmp_path / ".x.keys.making").write_bytes(b"half a secret")
    with (tmp_path / ".x.keys.making").open("rb") as left:
        write_private(path, b"newer")
        assert left.read() == bytes(13)
    assert [p.name for p in tmp_path.iterdir()] == ["x.keys"] and path.read_bytes() == b"newer"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = Keyring(tmp_path / "keys")
    keyring.fresh(OWNER, "road-a")
    good = keyring.path_of(OWNER).read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        keyring.fresh(OWNER, "road-b")
    assert keyring.path_of(OWNER).read_bytes() == good


def make_keys(folder: Path, names: list[str]) -> None:
    keyring = Keyring(folder)
    for name in names:
        keyring.fresh(OWNER, name)


def test_two_writers_lose_no_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    names = [[f"set-{who}-{i}" for i in range(15)] for who in range(2)]
    writers = [context.Process(target=make_keys, args=(tmp_path / "keys", n)) for n in names]
    for w in writers:
        w.start()
    for w in writers:
        w.join(60)
    kept = [k.name for k in Keyring(tmp_path / "keys").file_of(OWNER).keys]
    assert sorted(kept) == sorted(names[0] + names[1])


def test_what_erasing_does_not_reach(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    bodies: list[tuple[str, Mapping[str, Any]]] = [
        ("export", {"dataset": "road-a", "to": "a disk"}),
        ("export", {"dataset": "road-b", "to": "elsewhere"}),
        ("checkpoint", {"checkpoint": "c1" * 32, "datasets": {"road-a": "d"}}),
        ("checkpoint", {"checkpoint": "c2" * 32, "datasets": {"road-b": "d"}}),
    ]
    for kind, body in bodies:
        ledger.append(kind, body)
    text = "\n".join(out_of_reach("road-a", ledger.entries()))
    assert "a disk" in text and "c1c1" in text and "backups" in text
    assert "elsewhere" not in text and "c2c2" not in text
