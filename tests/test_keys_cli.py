"""`hagane keys`: each verb by hand; a passphrase never travels in a flag."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hagane.cli import main
from hagane.seal import Keyring, Ledger, OwnKeys, open_folder
from hagane.seal import key_file as key_file_module
from tests.sealed_fixture import OWNER, plaintexts, sealed


def run(home: Path, *args: str) -> int:
    return main(["keys", *args, "--owner", OWNER, "--home", str(home)])


def piped(text: bytes) -> str:
    """A descriptor that text can be read from."""
    read, write = os.pipe()
    os.write(write, text)
    os.close(write)
    return str(read)


def reads(folder: Path, keyring: Keyring) -> bool:
    opened = open_folder(folder)
    return opened.read("rows.bin", OwnKeys(opened, keyring)) == plaintexts(b"<road-a>")["rows.bin"]


def test_a_life_of_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_file_module, "SCRYPT", (1 << 15, 8, 1))
    assert run(tmp_path, "ls") == 0 and "no keys" in capsys.readouterr().out
    assert run(tmp_path, "new", "road-a") == 0
    a = sealed(tmp_path, "road-a", Keyring(tmp_path / "keys")).path
    assert run(tmp_path, "rotate", "road-a") == 0 and "generation 2" in capsys.readouterr().out
    a.rename(tmp_path / "moved")
    assert run(tmp_path, "rotate", "road-a") == 1 and "not found" in capsys.readouterr().out
    assert run(tmp_path, "rotate", "road-a", "--folder", str(tmp_path / "moved")) == 0
    assert run(tmp_path, "passphrase", "--new-fd", piped(b"right\n")) == 0
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        assert run(tmp_path, "ls") == 1 and "no terminal" in capsys.readouterr().err
        assert run(tmp_path, "ls", "--passphrase-fd", piped(b"wrong\n")) == 1
    assert run(tmp_path, "ls", "--passphrase-fd", piped(b"right\n")) == 0
    assert str(tmp_path / "moved") in capsys.readouterr().out
    assert reads(tmp_path / "moved", Keyring(tmp_path / "keys", lambda owner: b"right"))
    assert run(tmp_path, "passphrase", "--remove", "--passphrase-fd", piped(b"right")) == 0
    assert run(tmp_path, "erase", "road-a") == 1 and reads(tmp_path / "moved", Keyring(tmp_path / "keys"))
    Ledger(tmp_path / "ledger.jsonl").append("export", {"dataset": "road-a", "to": "a disk"})
    capsys.readouterr()
    assert main(["erase", "road-a", "--yes", "road-a", "--owner", OWNER, "--home", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "an export to a disk (ledger entry 0)" in out and "backups" in out and str(tmp_path / "moved") in out
    assert run(tmp_path, "erase", "road-a", "--yes", "road-a") == 1 and "erased on" in capsys.readouterr().err
    assert run(tmp_path, "ls") == 0 and "road-a  erased" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../x", "Road", "", "r\u043ead"])
def test_odd_names(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "new", name) == 1 and "is not a name" in capsys.readouterr().err
    assert main(["keys", "ls", "--owner", name, "--home", str(tmp_path)]) == 1
    assert not list(tmp_path.iterdir())


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys"]) == 0 and main(["keys", "burn"]) == 2
    assert "no verb 'burn'" in capsys.readouterr().err
