"""`hagane contract` and `hagane audit` as a person at a terminal uses them."""

from __future__ import annotations

import dataclasses
import json
import struct
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from hagane.catalog import Catalog
from hagane.catalog.store import put_contract
from hagane.cli import main
from hagane.seal import Ledger, TrustStore, load_contract, public_pem, read_contract, utc_today
from hagane.terms import Refused, RunRecord, digest_file, digest_value
from tests.catalog_fixture import ARM, episodes, make_home
from tests.catalog_fixture import SITE as PLANT

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


def checkpoint(run: Path, contract: str) -> Path:
    """A checkpoint's folder as the engine writes it, with a little safetensors file."""
    folder = run / "checkpoints" / "step-000010"
    (folder / "weights").mkdir(parents=True)
    (folder / "model.toml").write_text("size = '1m'\n")
    header = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
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


def add_arm(home: Path) -> str:
    """A site whose catalog holds "arm-demo"; the digest of its content."""
    made = make_home(home)
    return made.catalog().add("arm-demo", ARM, made.contract(ARM), episodes(ARM, 2)).digest


def test_a_contract_is_pinned_to_the_content_that_the_site_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = add_arm(tmp_path)
    terms, key = tmp_path / "arm.toml", str(tmp_path / "member-robots.pem")
    before = read_contract(terms.read_bytes())
    assert main(["contract", "pin", str(terms), "--home", str(tmp_path)]) == 0
    assert digest in capsys.readouterr().out
    after = read_contract(terms.read_bytes())
    assert after.digests == {"arm-demo": digest} and after.serial == before.serial + 1
    assert replace(after, digests={}, serial=before.serial, issued=before.issued) == before
    assert main(["contract", "pin", str(terms), "--home", str(tmp_path)]) == 0
    assert "says so already" in capsys.readouterr().out
    assert main(["contract", "sign", str(terms), "--key", key]) == 0
    catalog = make_home(tmp_path).catalog()
    catalog.renew("arm-demo", load_contract(terms, catalog.trust))
    assert len(catalog.columns("arm-demo", "anchor")) > 0
    other = make_home(tmp_path / "other")
    other.trust.add("member-robots", catalog.trust.key_of("member-robots"))
    with pytest.raises(Refused, match="this content is"):
        other.catalog().add("arm-demo", ARM, load_contract(terms, other.trust), episodes(ARM, 3))
    assert other.catalog().ls() == () and not list((other.folder / "catalog" / "staging").glob("*"))
    assert [e.kind for e in other.ledger.entries()] == ["refusal"]


def test_pinning_what_is_not_there_or_not_the_owners_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_arm(tmp_path)
    for words, more in (
        ("no data set 'arm-dema'", ["--dataset", "arm-dema", "--owner", "member-robots"]),
        ("belongs to member-robots, not to member-cars", ["--dataset", "arm-demo"]),
    ):
        path = tmp_path / f"{len(words)}.toml"
        assert main(["contract", "new", str(path), *more]) == 0
        text = path.read_bytes()
        assert main(["contract", "pin", str(path), "--home", str(tmp_path)]) == 1
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said and path.read_bytes() == text


def test_replay_and_a_clock_set_back_are_refused_and_logged(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    old = home.contract(ARM)
    catalog = home.catalog()
    catalog.add("arm-demo", ARM, old, episodes(ARM, 2))
    catalog.renew("arm-demo", home.contract(ARM, purposes=("view",)))
    with pytest.raises(Refused, match="this site has seen serial 2"):
        catalog.renew("arm-demo", old)
    put_contract(catalog.record("arm-demo").contract_path.parent, old)  # by hand, past all verbs
    with pytest.raises(Refused, match="this site has seen serial 2"):
        home.catalog().columns("arm-demo", "anchor")
    yesterday = utc_today() - timedelta(days=1)
    set_back = Catalog.open(tmp_path / "catalog", PLANT, home.trust, home.ledger, today=lambda: yesterday)
    with pytest.raises(Refused, match="the clock was set back"):
        set_back.columns("arm-demo", "view")
    refusals = [e.body for e in home.ledger.entries() if e.kind == "refusal"]
    assert [r["last_serial"] for r in refusals] == [2, 2, 2]
    assert refusals[-1]["today"] == str(yesterday) and refusals[-1]["last_day"] == str(utc_today())


def test_a_contract_that_asks_for_a_jail_is_refused_outside_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_home(tmp_path)
    with pytest.raises(Refused, match="is not signed by the consortium's root"):
        home.catalog().add("arm-demo", ARM, home.contract(ARM, protection="jail"), episodes(ARM, 2))
    assert [e.kind for e in home.ledger.entries()] == ["refusal"] and home.catalog().ls() == ()


def test_a_site_is_written_signed_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for owner, out in (("consortium-root", "trust"), ("member-cars", "trust"), ("lab-host", "keys")):
        assert main(["contract", "keygen", "--owner", owner, "--out", out]) == 0
    site = ["--host-key", "keys/lab-host.pub", "--fabric", 'pkey "0x8001"']
    assert main(["contract", "site", "new", "site.toml", *site]) == 0
    assert main(["contract", "site", "new", "site.toml"]) == 1, "not overwritten"
    assert main(["contract", "site", "show"]) == 1
    assert "signed      NO: no signature" in capsys.readouterr().out
    assert main(["contract", "new", "cars.toml", "--may-serve", "member-cars"]) == 0
    assert main(["contract", "sign", "cars.toml", "--key", "trust/member-cars.pem"]) == 0
    asked = ["contract", "check", "cars.toml", "--purpose", "anchor"]
    assert main([*asked, "--jailed"]) == 1
    assert main(["contract", "site", "sign", "site.toml", "--key", "trust/consortium-root.pem"]) == 0
    assert main(["contract", "site", "show"]) == 0
    shown = capsys.readouterr().out
    assert "signed      by the consortium" in shown and 'pkey "0x8001"' in shown
    assert main([*asked, "--jailed"]) == 0 and main(asked) == 1
    assert "not in one" in capsys.readouterr().out
    assert main(["contract", "show", "cars.toml"]) == 0
    shown = capsys.readouterr().out
    assert "protection  jail" in shown and "may merge   nobody" in shown and "may serve   member-cars" in shown
    Path("trust/consortium-root.pub").unlink()
    assert main(["contract", "site", "show"]) == 1
    assert "nobody can vouch for it" in capsys.readouterr().out
    assert main(["contract", "site", "sgin"]) == 2 and main(["contract", "site"]) == 0
