"""Before weights leave: other members must have seen the ledger lately."""

from __future__ import annotations

from pathlib import Path

import pytest

from hagane.cli import main
from hagane.cli.site import ledger_of
from hagane.cli.witnessing import DAY_S, demand_witnessed
from hagane.terms import ConfigError, CorruptError, Refused

DAY_NS = int(DAY_S * 1e9)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site with a host key, two entries, and two members who may countersign."""
    monkeypatch.chdir(tmp_path)
    for who, out in (("host", "site/keys"), ("consortium-root", "root"), ("member-steel", "m"), ("member-cars", "m")):
        assert main(["contract", "keygen", "--owner", who, "--out", out]) == 0
    assert main(["contract", "site", "new", "site/site.toml", "--host-key", "site/keys/host.pub"]) == 0
    Path("site/trust").mkdir()
    for name in ("member-steel", "member-cars"):
        Path(f"site/trust/{name}.pub").write_bytes(Path(f"m/{name}.pub").read_bytes())
    ledger = ledger_of(tmp_path / "site")
    for n in range(2):
        ledger.append("run", {"n": n})
    return tmp_path / "site"


def countersign(home: Path, *members: str) -> None:
    assert main(["audit", "head", "--home", "site", "--key", "site/keys/host.pem", "--heads", "site/heads"]) == 0
    name = "consortium-lab"
    for member in members:
        about = ["--site", name, "--site-key", "site/keys/host.pub", "--name", member, "--key", f"m/{member}.pem"]
        assert main(["audit", "witness", "site/heads", *about, "--memory", f"m/{member}-memory"]) == 0


def test_without_witnesses_everything_stays_pending_and_says_so(home: Path) -> None:
    assert "stay pending" in demand_witnessed(home)


def test_an_entry_may_be_pending_for_so_long_and_no_longer(home: Path) -> None:
    (home / "witnesses.toml").write_text(
        'members = ["member-steel", "member-cars"]\nquorum = 2\nmax_pending_days = 2.0\n'
    )
    now = ledger_of(home).entry(0).time_ns
    assert "0 of 2" in demand_witnessed(home, lambda: now + DAY_NS)
    with pytest.raises(Refused, match="pending for 259"):
        demand_witnessed(home, lambda: now + 3 * DAY_NS)
    countersign(home, "member-steel")
    with pytest.raises(Refused, match="entry 0 has been pending"):
        demand_witnessed(home, lambda: now + 3 * DAY_NS)  # one of two is no quorum
    countersign(home, "member-steel", "member-cars")
    assert "all" in demand_witnessed(home, lambda: now + 3 * DAY_NS)
    ledger_of(home).append("run", {"n": 2})
    later = ledger_of(home).entry(2).time_ns
    assert "2 of 3" in demand_witnessed(home, lambda: later + DAY_NS)
    with pytest.raises(Refused, match="entry 2 has been pending"):
        demand_witnessed(home, lambda: later + 3 * DAY_NS)


def test_a_countersignature_of_somebody_else_counts_for_nothing(home: Path) -> None:
    (home / "witnesses.toml").write_text('members = ["member-cars"]\n')
    countersign(home, "member-steel")
    now = ledger_of(home).entry(0).time_ns
    with pytest.raises(Refused, match="entry 0 has been pending"):
        demand_witnessed(home, lambda: now + 30 * DAY_NS)


def test_a_ledger_that_was_cut_after_it_was_witnessed_is_found(home: Path) -> None:
    (home / "witnesses.toml").write_text('members = ["member-steel"]\n')
    countersign(home, "member-steel")
    first = (home / "ledger.jsonl").read_bytes().split(b"\n")[0]
    (home / "ledger.jsonl").write_bytes(first + b"\n")
    ledger = ledger_of(home)  # signed by the site itself, and still not what was witnessed
    for n in range(3):
        ledger.append("run", {"forged": n})
    with pytest.raises(CorruptError):
        demand_witnessed(home)


def test_release_asks_for_witnesses_first(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "witnesses.toml").write_text('members = ["member-steel"]\nmax_pending_days = 1e-9\n')
    args = ["release", "make", "nothing", "--out", "out", "--model", "m.toml", "--home", "site", "--key", "a=b.pem"]
    assert main(args) == 1
    assert "has been pending" in capsys.readouterr().err
    last = list(ledger_of(home).entries())[-1]
    assert last.kind == "export" and last.body["allowed"] is False


@pytest.mark.parametrize(
    "text", ["members = []\n", 'members = ["member-steel"]\nquorum = 2\n', 'members = ["../x"]\n', "members = 3\n"]
)
def test_witnesses_that_make_no_sense_are_refused(home: Path, text: str) -> None:
    (home / "witnesses.toml").write_text(text)
    with pytest.raises(ConfigError):
        demand_witnessed(home)
