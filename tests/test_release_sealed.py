"""Weights of a sealed run leave by the gate alone: asked, written in a jail, checked, signed, noted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hagane.cli import main
from hagane.seal import Ledger
from hagane.terms import digest_file
from tests.jail_fixture import why_not
from tests.sealed_site import good, make_site

pytestmark = pytest.mark.skipif(bool(why_not()), reason="no jail can be made here")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with a sealed run whose weights may be looked at and leave."""
    place = tmp_path_factory.mktemp("release")
    make_site(place, "anchor", "evaluate", "view", "export")
    return place


def entries(place: Path, kind: str) -> list[dict[str, object]]:
    return [dict(e.body) for e in Ledger(place / "site/ledger.jsonl").entries() if e.kind == kind]


def release(place: Path, out: Path, *owners: str) -> list[str]:
    keys = [f"{owner}={place}/keys/{owner}.pem" for owner in owners]
    about = ["--model", str(place / "model.toml"), "--home", str(place / "site"), "--out", str(out)]
    return ["release", "make", str(place / "runs/first"), *about, "--key", *keys]


def test_a_sealed_run_is_released_by_the_gate_and_by_nothing_else(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, site = place / "runs/first", place / "site"
    assert main(["export", str(run), "--out", str(tmp_path / "plain")]) == 1
    assert "leave by the gate" in capsys.readouterr().err and not (tmp_path / "plain").exists()
    good("release", "shape", run, "--home", site, "--out", place / "model.toml")
    assert main(["release", "shape", str(run), "--home", str(site), "--out", str(place / "model.toml")]) == 1
    assert "not overwritten" in capsys.readouterr().err
    assert main(release(place, tmp_path / "one", "member-steel")) == 1  # the consortium's part is not signed
    assert "does not sign" in capsys.readouterr().err and not (tmp_path / "one").exists()
    assert main(release(place, tmp_path / "out", "member-steel", "consortium")) == 0
    good("release", "check", tmp_path / "out", "--trust", site / "trust")
    asked = entries(place, "export")
    assert [e["allowed"] for e in asked] == [False, True]
    assert asked[-1]["statement_sha256"]
    assert not list(Path("/dev/shm").glob("hagane-gate-*"))
    seen = [f for e in entries(place, "left") for f in json.loads(json.dumps(e["files"]))]
    assert seen == [str(place / "model.toml")], "weights that the gate holds have not left yet"
    assert entries(place, "left")[0]["files"] == {str(place / "model.toml"): digest_file(place / "model.toml")}


def test_a_membership_check_tells_figures_only(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.json"
    argv = ["release", "membership", str(place / "runs/first"), "--home", str(place / "site"), "--out", str(out)]
    code = main([*argv, "--episodes", "4", "--samples", "2"])
    if code == 0:
        told = json.loads(out.read_bytes())
        assert set(told) == {"checkpoint", "rows"} and told["rows"]
    else:  # four episodes are few for two sides
        assert "too few episodes" in capfd.readouterr().err and not out.exists()


def test_what_the_contract_does_not_grant_is_refused_before_anything_runs(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "p"
    make_site(other, "anchor", "evaluate")
    (other / "model.toml").write_text((place / "model.toml").read_text())
    capsys.readouterr()
    assert main(release(other, tmp_path / "out", "member-steel", "consortium")) == 1
    assert "purpose 'export' is not granted" in capsys.readouterr().err
    shape = ["release", "shape", str(other / "runs/first"), "--home", str(other / "site"), "--out", str(tmp_path / "m")]
    assert main(shape) == 1
    assert "purpose 'view' is not granted" in capsys.readouterr().err and not (tmp_path / "m").exists()
    assert [e["purpose"] for e in entries(other, "refusal")] == ["export", "view"]
