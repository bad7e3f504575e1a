"""`hagane contract` and `hagane audit` as a person at a terminal uses them."""

from __future__ import annotations

import dataclasses
import json
import struct
from datetime import timedelta
from pathlib import Path

import pytest

from hagane.cli import main
from hagane.seal import Ledger, TrustStore, load_contract, public_pem, utc_today
from hagane.terms import RunRecord, digest_file, digest_value

SITE = 'name = "consortium-lab"\ncountry = "JP"\noperator = "consortium"\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a site, a key, and a signed contract, all made by the verbs."""
    monkeypatch.chdir(tmp_path)
    Path("site.toml").write_text(SITE)
    assert main(["contract", "keygen", "--owner", "member-cars", "--out", "keys"]) == 0
    assert main(["contract", "new", "cars.toml", "--protection", "process"]) == 0
    assert main(["contract", "sign", "cars.toml", "--key", "keys/member-cars.pem"]) == 0
    return tmp_path


def check(*more: str) -> int:
    return main(["contract", "check", "cars.toml", "--trust", "keys", *more])


def test_the_whole_way_from_key_to_decision(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--purpose", "anchor") == 0
    assert "allowed: road-demo" in capsys.readouterr().out
    assert main(["contract", "show", "cars.toml", "--trust", "keys"]) == 0
    shown = capsys.readouterr().out
    assert "signed      by member-cars" in shown and "consortium-lab" in shown


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--purpose", "export"], "not granted (granted: anchor, member-training, evaluate)"),
        (["--purpose", "ancor"], "did you mean 'anchor'"),
        (["--purpose", "anchor", "--dataset", "mill-demo"], "not about data set 'mill-demo'"),
        (["--purpose", "anchor", "--owner", "member-steel"], "belongs to 'member-steel'"),
        (["--purpose", "anchor", "--today", "2099-01-01"], "expired on"),
    ],
)
def test_refusals_are_in_words_and_exit_1(
    here: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert check(*more) == 1
    out = capsys.readouterr().out
    assert out.startswith("refused:") and words in out


def test_another_country_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("site.toml").write_text(SITE.replace("JP", "US"))
    assert check("--purpose", "anchor") == 1
    assert "may not be read in 'US'" in capsys.readouterr().out


def test_an_expired_contract_can_be_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("cars.toml")
    last = utc_today() + timedelta(days=365)
    text = path.read_text().replace(last.isoformat(), "2020-01-31")
    path.write_text(text.replace(f"issued = {utc_today()}", "issued = 2020-01-01"))
    assert main(["contract", "sign", "cars.toml", "--key", "keys/member-cars.pem"]) == 0
    assert main(["contract", "show", "cars.toml", "--trust", "keys"]) == 1
    assert "NO: expired on 2020-01-31" in capsys.readouterr().out
    assert check("--purpose", "anchor") == 1
    assert "expired on 2020-01-31" in capsys.readouterr().out


def test_an_unsigned_contract_is_shown_as_such_and_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("cars.toml.sig").unlink()
    assert main(["contract", "show", "cars.toml", "--trust", "keys"]) == 1
    assert "signed      NO" in capsys.readouterr().out
    assert check("--purpose", "anchor") == 1
    said = capsys.readouterr().err
    assert "is not signed" in said and "next:" in said and "Traceback" not in said


def test_nothing_is_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
    assert main(["contract", "keygen", "--owner", "member-cars", "--out", "keys"]) == 1
    assert main(["contract", "new", "cars.toml"]) == 1
    assert "not overwritten" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in here.rglob("*") if p.is_file()} == before


def test_bad_names_and_verbs_are_one_clear_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["contract", "keygen", "--owner", "../evil", "--out", "keys"]) == 1
    assert "not a member name" in capsys.readouterr().err
    assert main(["contract", "new", "x.toml", "--country", "Japan"]) == 1
    assert "no such country" in capsys.readouterr().err and not Path("x.toml").exists()
    assert main(["contract", "sing", "cars.toml"]) == 2
    assert "no verb 'sing'" in capsys.readouterr().err
    assert check("--purpose", "anchor", "--today", "tomorrow") == 1
    assert "no date" in capsys.readouterr().err
    assert main(["contract"]) == 0 and main(["audit", "--help"]) == 0
    assert main(["audit", "verfy"]) == 2


def test_verify_prints_what_to_remember_and_finds_a_flip(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(Path("ledger.jsonl"))
    for i in range(3):
        ledger.append("refusal" if i else "contract", {"n": i})
    assert main(["audit", "verify", "ledger.jsonl"]) == 0
    out = capsys.readouterr().out
    assert "3 entries (1 contract, 2 refusal)" in out
    again = out.splitlines()[-1].split()[1:]
    ledger.append("run", {})
    assert main(again) == 0
    assert "those remembered" in capsys.readouterr().out
    Path("cut.jsonl").write_bytes(b"".join(Path("ledger.jsonl").read_bytes().splitlines(keepends=True)[:2]))
    assert main(["audit", "verify", "cut.jsonl", *again[3:]]) == 1
    assert "the ledger was cut" in capsys.readouterr().err
    data = bytearray(Path("ledger.jsonl").read_bytes())
    data[40] ^= 1
    Path("ledger.jsonl").write_bytes(data)
    assert main(["audit", "verify", "ledger.jsonl"]) == 1
    assert "damaged here" in capsys.readouterr().err
    assert main(["audit", "verify", "none.jsonl"]) == 1
    assert main(["audit", "verify", "cut.jsonl", "--size", "3"]) == 1


def checkpoint(run: Path, contract: str, tensor: str = "trunk.layers.0.moe.router.member-cars.000") -> Path:
    """A checkpoint's folder as the engine writes it, with a little safetensors file."""
    folder = run / "checkpoints" / "step-000010"
    (folder / "weights").mkdir(parents=True)
    (folder / "model.toml").write_text("size = '1m'\n[experts]\nmember-cars = 1\n")
    header = json.dumps({tensor: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    weights = struct.pack("<Q", len(header)) + header + bytes(24)
    for rank in range(2):  # each wrote a half of one tensor
        (folder / "weights" / f"member-cars.r{rank:05d}.0.safetensors").write_bytes(weights)
    record = RunRecord(
        run.name, "c" * 64, "d" * 64, {"road-demo": "e" * 64}, {"road-demo": contract},
        {"road-demo": "member-cars"}, 7, 10, environment={"python": "3.11"},
    )  # fmt: skip
    files = {p.relative_to(folder).as_posix(): digest_file(p) for p in sorted(folder.rglob("*.*"))}
    manifest = {"step": 10, "cursor": {}, "files": files, "record": dataclasses.asdict(record)}
    manifest["id"] = digest_value(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_checkpoint_is_traced_to_its_contracts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signed = load_contract(Path("cars.toml"), TrustStore(Path("keys")))
    folder = checkpoint(Path("runs/demo"), signed.digest)
    Ledger(Path("ledger.jsonl")).append("contract", {"digest": signed.digest})
    more = ["--contracts", ".", "--trust", "keys", "--ledger", "ledger.jsonl"]
    for place in (folder, Path("runs/demo")):
        assert main(["audit", "trace", str(place), *more]) == 0
        out = capsys.readouterr().out
        assert "data set    road-demo, owner member-cars" in out
        assert "signed    by member-cars" in out
        assert "entry 0, contract" in out
        assert "member-cars: 1 tensors, 12 numbers" in out
    Path("site/catalog").mkdir(parents=True)
    for name in ("cars.toml", "cars.toml.sig"):
        Path("site/catalog", name).write_bytes(Path(name).read_bytes())
    Path("keys").rename("site/trust")
    assert main(["audit", "trace", str(folder), "--home", "site"]) == 0
    assert "signed    by member-cars" in capsys.readouterr().out
    assert main(["audit", "trace", str(folder)]) == 0
    assert "give --contracts DIR" in capsys.readouterr().out


def test_a_changed_checkpoint_or_contract_is_not_traced(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signed = load_contract(Path("cars.toml"), TrustStore(Path("keys")))
    folder = checkpoint(Path("runs/demo"), signed.digest)
    key = TrustStore(Path("keys")).key_of("member-cars")
    Path("wrong").mkdir()
    Path("wrong/member-steel.pub").write_bytes(public_pem(key))
    assert main(["audit", "trace", str(folder), "--contracts", ".", "--trust", "wrong"]) == 1
    assert "signed    NO" in capsys.readouterr().out
    for name in ("weights/member-cars.r00000.0.safetensors", "manifest.json"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(good.replace(b"road-demo", b"road-dema") if name.endswith("json") else good[:-1])
        assert main(["audit", "trace", str(folder)]) == 1
        said = capsys.readouterr().err
        assert "differs from its sha256" in said or "was changed" in said
        (folder / name).write_bytes(good)
    (folder / "manifest.json").write_text("{")
    assert main(["audit", "trace", str(folder)]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert main(["audit", "trace", "keys"]) == 1
    assert "no complete checkpoint" in capsys.readouterr().err


def test_a_head_is_signed_countersigned_and_checked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for who in ("host", "member-steel"):
        assert main(["contract", "keygen", "--owner", who, "--out", "others"]) == 0
    Path("witnesses").mkdir()
    Path("others/member-steel.pub").rename("witnesses/member-steel.pub")
    ledger = Ledger(Path("ledger.jsonl"))
    sign = ["audit", "head", "--key", "others/host.pem"]
    assert main(sign) == 1
    assert "nothing to sign" in capsys.readouterr().err
    ledger.append("run", {"n": 1})
    assert main(sign) == 0
    site = ["--site", "consortium-lab", "--site-key", "others/host.pub"]
    witness = ["audit", "witness", "heads", *site, "--name", "member-steel", "--key", "others/member-steel.pem"]
    assert main(witness) == 0
    assert main([*sign, "--witness-keys", "witnesses"]) == 0
    assert "1 entries are witnessed" in capsys.readouterr().out
    assert main(witness) == 0
    ledger.append("run", {"n": 2})
    verify = ["audit", "verify", "ledger.jsonl", "--heads", "heads", *site, "--witness-keys", "witnesses"]
    assert main(verify) == 0
    out = capsys.readouterr().out
    assert "first 2 entries are those that member-steel countersigned" in out and "entries after these: 1;" in out
    assert "1 of them are signed" in out
    assert main([*verify, "--quorum", "2"]) == 0
    assert "no head is countersigned by enough" in capsys.readouterr().out
    Path("ledger.jsonl").write_bytes(Path("ledger.jsonl").read_bytes().split(b"\n")[0] + b"\n")
    assert main(verify) == 1 and main(sign) == 1
    assert capsys.readouterr().err.count("the ledger was cut") == 2
    assert main(verify[:5]) == 1 and main([*verify, "--quorum", "0"]) == 1
    assert main(["audit", "witness", "none", *witness[3:]]) == 1
    assert "no such folder" in capsys.readouterr().err
