"""A site whose data and run lie sealed, made by the verbs themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

from hagane.cli import main
from hagane.demo.members import write_logs

ROOT = Path(__file__).parents[1]
MILL = ROOT / "src" / "hagane" / "worlds" / "mill.toml"
GRANTED = ("anchor", "member-training", "evaluate", "serve")


def good(*argv: str | Path) -> None:
    assert main([str(a) for a in argv]) == 0


def bring_in(place: Path, name: str, *terms: str, purposes: tuple[str, ...] = GRANTED) -> None:
    """The logs as a data set of this name, under a contract of its own."""
    contract, about = place / f"{name}.toml", ("--owner", "member-steel", "--dataset", name)
    good("contract", "new", contract, *about, "--purpose", *purposes, *terms)
    good("contract", "sign", contract, "--key", place / "keys/member-steel.pem")
    about = ("--contract", str(contract), "--home", str(place / "site"), "--name", name)
    good("intake", place / "logs", "--embodiment", MILL, *about)


def sign_site(place: Path, operator: str) -> None:
    site = place / "site/site.toml"
    for path in (site, site.with_name("site.toml.sig")):
        path.unlink(missing_ok=True)
    good("contract", "site", "new", site, "--host-key", place / "keys/host.pub", "--operator", operator)
    good("contract", "site", "sign", site, "--key", place / "keys/consortium-root.pem")


def make_site(place: Path, *purposes: str) -> None:
    """Keys, a signed site, the mill's logs as data set "mill-demo", and the run "first" of two steps on it."""
    (place / "site/trust").mkdir(parents=True)
    for owner in ("consortium-root", "member-steel", "host", "consortium"):
        good("contract", "keygen", "--owner", owner, "--out", place / "keys")
    for owner in ("consortium-root", "member-steel", "consortium"):
        shutil.copy(place / f"keys/{owner}.pub", place / "site/trust")
    sign_site(place, "consortium")
    write_logs("mill", place / "logs", 4)
    bring_in(place, "mill-demo", "--may-serve", "consortium", purposes=purposes or GRANTED)
    good("train", "--recipe", "tiny", "--steps", "2", "--run", place / "runs/first", "--home", place / "site")
