"""`hagane catalog`: ls, show and verify, as a person sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hagane.cli import main
from tests.catalog_fixture import ARM, episodes, filled, make_home


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(["catalog", *args])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_ls_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, {"arm": 5, "mill": 3})
    code, out, _ = run(capsys, "ls", "--home", str(tmp_path))
    assert code == 0 and "arm-demo" in out and "member-steel" in out
    code, out, _ = run(capsys, "show", "arm-demo", "--home", str(tmp_path))
    assert code == 0
    for word in ("5 episodes", "member-robots", "until 2099-12-31", "5 success", "2 stuck", "joints.2", "rad", "grip"):
        assert word in out, word


def test_show_asks_the_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = make_home(tmp_path)
    home.catalog().add("arm-demo", ARM, home.contract(ARM, purposes=("anchor",)), episodes(ARM, 2))
    code, _, err = run(capsys, "show", "arm-demo", "--home", str(tmp_path))
    assert code == 1 and "purpose 'view' is not granted" in err and "next:" in err
    code, _, err = run(capsys, "show", "nope", "--home", str(tmp_path))
    assert code == 1 and "no data set 'nope'" in err and "arm-demo" in err


def test_verify_names_the_damaged_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, {"arm": 3, "road": 2})
    code, out, _ = run(capsys, "verify", "--home", str(tmp_path))
    assert code == 0 and out.count("are right") == 2
    path = tmp_path / "catalog" / "sets" / "road-demo" / "data" / "chunk-000" / "file-000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    code, out, _ = run(capsys, "verify", "--home", str(tmp_path))
    assert code == 1 and str(path) in out and "arm-demo" in out
    assert run(capsys, "verify", "arm-demo", "--home", str(tmp_path))[0] == 0


def test_unfinished_and_unusable_sets_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, {"arm": 3})
    (tmp_path / "catalog" / "staging" / "mill-demo").mkdir(parents=True)
    (tmp_path / "catalog" / "sets" / "arm-demo" / "hagane" / "manifest.json").unlink()
    code, out, _ = run(capsys, "ls", "--home", str(tmp_path))
    assert code == 1 and "mill-demo: adding it was interrupted" in out and "arm-demo: cannot be used" in out


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys)[0] == 0
    code, _, err = run(capsys, "lss")
    assert code == 1 and "ls | show NAME | verify" in err
