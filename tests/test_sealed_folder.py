"""Sealed folders: whole or absent, every change found without a key or with one, no way out of the folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import pytest

from hagane.seal import Keyring, OwnKeys, check_folder, open_folder, unseal_folder
from hagane.seal.sealed_list import SealedList, write_list
from hagane.terms import CorruptError, Refused, StoreError
from tests.sealed_fixture import plaintexts, sealed


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def read_all(folder: Path, keyring: Keyring) -> dict[str, bytes]:
    opened = open_folder(folder)
    return {path: opened.read(path, OwnKeys(opened, keyring)) for path in opened.files}


def test_there_and_back(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keys")
    folder = sealed(tmp_path, "road-a", keyring)
    wanted = plaintexts(b"<road-a>")
    assert read_all(tmp_path / "road-a", keyring) == wanted
    rows = folder.open("rows.bin", OwnKeys(folder, keyring))
    assert len(rows) == 9 and rows.record(4) == wanted["rows.bin"][4 * rows.stride : 5 * rows.stride]
    unseal_folder(tmp_path / "road-a", tmp_path / "back", keyring)
    assert files_of(tmp_path / "back") == files_of(tmp_path / "plain-road-a") == wanted
    assert check_folder(tmp_path / "road-a") == folder
    on_disk = files_of(tmp_path / "road-a")
    assert set(on_disk) == {
        "sealed.json",
        "rows.bin.sealed",
        "pictures/front.000.bin.sealed",
        "none.sealed",
        "record.json",
    }
    assert not any(b"road-a>" in d for name, d in on_disk.items() if name.endswith(".sealed"))
    assert json.loads(on_disk["sealed.json"])["plain"]["record.json"]["reason"] == "counts only"


def test_every_flipped_byte_of_every_file_is_found(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keys")
    folder = sealed(tmp_path, "road-a", keyring).path
    for name, good in files_of(folder).items():
        for at in range(len(good)):
            (folder / name).write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
            with pytest.raises(CorruptError):
                check_folder(folder)
            if name != "sealed.json" or at % 7 == 0:
                with pytest.raises(CorruptError):
                    read_all(folder, keyring)
        (folder / name).write_bytes(good)
    check_folder(folder)


def test_a_list_cut_at_any_byte(tmp_path: Path) -> None:
    folder = sealed(tmp_path, "road-a", Keyring(tmp_path / "keys")).path
    good = (folder / "sealed.json").read_bytes()
    for at in range(len(good)):
        (folder / "sealed.json").write_bytes(good[:at])
        with pytest.raises(CorruptError):
            open_folder(folder)


def test_files_swapped_missing_or_added(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keys")
    folder = sealed(tmp_path, "road-a", keyring).path
    other = sealed(tmp_path, "road-b", keyring).path
    good = folder / "rows.bin.sealed"
    kept = good.read_bytes()
    for wrong in (other / "rows.bin.sealed", folder / "none.sealed"):
        good.write_bytes(wrong.read_bytes())
        with pytest.raises(CorruptError, match="not the file that was sealed"):
            check_folder(folder)
        with pytest.raises(CorruptError, match=r"rows\.bin\.sealed.*another key"):
            read_all(folder, keyring)
    good.write_bytes(kept)
    (folder / "dropped.bin").write_bytes(b"plaintext")
    with pytest.raises(CorruptError, match=r"not on the list: 'dropped\.bin'"):
        check_folder(folder)
    (folder / "dropped.bin").unlink()
    good.unlink()
    with pytest.raises(CorruptError, match="cannot be read"):
        check_folder(folder)
    good.symlink_to(other / "rows.bin.sealed")
    with pytest.raises(CorruptError, match="not the file"):
        check_folder(folder)


def changed(folder: Path, **changes: object) -> None:
    """Write a list that is sound in itself: what somebody does who knows the form but no key."""
    write_list(folder, msgspec.structs.replace(open_folder(folder).listed, **changes))


def test_a_list_written_anew_gives_no_key(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keys")
    a, b = (sealed(tmp_path, n, keyring) for n in ("road-a", "road-b"))
    forged: list[dict[str, object]] = [
        {"contract": "00" * 32},
        {"name": "road-b"},
        {"plain": {}},
        {"files": dict(b.listed.files)},
        {"files": {"none": a.listed.files["rows.bin"], "rows.bin": a.listed.files["none"]}},
        {"proof": b.listed.proof},
        {"generation": 2},
    ]
    for changes in forged:
        changed(a.path, **changes)
        check = open_folder(a.path)
        path = next(iter(check.listed.files))
        with pytest.raises((CorruptError, Refused)):
            check.read(path, OwnKeys(check, keyring))
        with pytest.raises((CorruptError, Refused)):
            unseal_folder(a.path, tmp_path / "back", keyring)
        assert not (tmp_path / "back").exists()
    write_list(a.path, a.listed)
    assert read_all(a.path, keyring) == plaintexts(b"<road-a>")


@pytest.mark.parametrize(
    "path", ["../x", "/etc/x", "a//b", "a/./b", "a\\b", "a\nb", "\u202egnp", "", "sealed.json", "a/" * 40 + "b"]
)
def test_a_list_cannot_name_a_file_elsewhere(tmp_path: Path, path: str) -> None:
    folder = sealed(tmp_path, "road-a", Keyring(tmp_path / "keys"))
    for field in ("files", "plain"):
        entry = next(iter(getattr(folder.listed, field).values()))
        changed(folder.path, **{field: {path: entry}})
        with pytest.raises(CorruptError):
            open_folder(folder.path)
        write_list(folder.path, folder.listed)


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keys")
    sealed(tmp_path, "road-a", keyring)
    before = files_of(tmp_path)
    with pytest.raises(StoreError, match="not overwritten"):
        sealed(tmp_path, "road-a", keyring)
    with pytest.raises(StoreError, match="not overwritten"):
        unseal_folder(tmp_path / "road-a", tmp_path / "plain-road-a", keyring)
    assert files_of(tmp_path) == before


def test_the_list_says_nothing_of_the_plaintext(tmp_path: Path) -> None:
    folder = sealed(tmp_path, "road-a", Keyring(tmp_path / "keys"))
    text = (folder.path / "sealed.json").read_text()
    hidden = {p: d for p, d in plaintexts(b"<road-a>").items() if p != "record.json"}
    assert not any(hashlib.sha256(d).hexdigest() in text for d in hidden.values())
    assert isinstance(folder.listed, SealedList)
