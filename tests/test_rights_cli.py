"""Pinned contracts, replay, clocks set back, jails and sites, as a person at a terminal meets them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from hagane.catalog import Catalog
from hagane.catalog.store import put_contract
from hagane.cli import main
from hagane.seal import load_contract, read_contract, utc_today
from hagane.terms import Refused
from tests.catalog_fixture import ARM, SITE, episodes, make_home


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
    set_back = Catalog.open(tmp_path / "catalog", SITE, home.trust, home.ledger, today=lambda: yesterday)
    with pytest.raises(Refused, match="the clock was set back"):
        set_back.columns("arm-demo", "view")
    (tmp_path / "catalog" / "memory.json").unlink()  # the ledger still knows the day
    with pytest.raises(Refused, match="the clock was set back"):
        set_back.columns("arm-demo", "anchor")
    refusals = [e.body for e in home.ledger.entries() if e.kind == "refusal"]
    assert [r["last_serial"] for r in refusals] == [2, 2, 2, 0]
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
