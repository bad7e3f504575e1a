"""A site whose data lie sealed, made by the real verbs, and a judge of what stands open on its disk."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORLD = ROOT / "src" / "hagane" / "worlds" / "mill.toml"
NAME = "mill-demo"
OWNER = "member-steel"


@dataclass(frozen=True)
class Said:
    """What a verb's process said outside."""

    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        return self.out + self.err


@dataclass(frozen=True)
class Place:
    """A folder with a site, keys of people, contracts, logs and runs."""

    path: Path

    @property
    def site(self) -> Path:
        return self.path / "site"

    def run(self, name: str = "first") -> Path:
        return self.path / "runs" / name

    def hagane(self, *argv: str | Path, **env: str) -> Said:
        """Run a verb in a process of its own."""
        done = subprocess.run(command(*argv), cwd=self.path, env=environment(**env), capture_output=True, text=True)
        return Said(done.returncode, done.stdout, done.stderr)

    def good(self, *argv: str | Path, **env: str) -> Said:
        """Run a verb that must succeed."""
        said = self.hagane(*argv, **env)
        assert said.code == 0, said.all
        return said

    def begin(self, *argv: str | Path) -> subprocess.Popen[str]:
        """Start a verb and let it run."""
        pipe = subprocess.PIPE
        return subprocess.Popen(command(*argv), cwd=self.path, env=environment(), stdout=pipe, stderr=pipe, text=True)

    def train(self, *more: str | Path, run: str = "first") -> Said:
        """Train on this site's data."""
        return self.hagane("train", "--run", self.run(run), "--home", self.site, *more)

    def ledger(self) -> list[dict[str, object]]:
        """Entries of the ledger."""
        lines = (self.site / "ledger.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line)["entry"] for line in lines]

    def copy(self, to: Path) -> Place:
        """The same site elsewhere: locks and lists name no absolute place."""
        shutil.copytree(self.path, to, dirs_exist_ok=True)
        return Place(to)


def command(*argv: str | Path) -> list[str]:
    return [sys.executable, "-m", "hagane", *map(str, argv)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "120", **more}


def make_place(path: Path, *, episodes: int = 4, signed: bool = True) -> Place:
    """A signed site, and logs of a made-up mill that are not brought in yet."""
    from hagane.demo.members import write_logs

    place, keys = Place(path), path / "keys"
    (place.site / "trust").mkdir(parents=True)
    for owner in ("consortium-root", OWNER, "host"):
        place.good("contract", "keygen", "--owner", owner, "--out", keys)
    for owner in ("consortium-root", OWNER):
        shutil.copy(keys / f"{owner}.pub", place.site / "trust")
    toml = place.site / "site.toml"
    place.good("contract", "site", "new", toml, "--host-key", keys / "host.pub", "--operator", "consortium")
    if signed:
        place.good("contract", "site", "sign", toml, "--key", keys / "consortium-root.pem")
    write_logs("mill", path / "logs", episodes)
    return place


def sign(place: Place, name: str, *purposes: str, **terms: str) -> Path:
    """A contract of the data set's owner, in place of the one before."""
    path = place.path / f"{name}.toml"
    for old in (path, path.with_name(f"{path.name}.sig")):
        old.unlink(missing_ok=True)
    place.good("contract", "new", path, "--owner", OWNER, "--dataset", name, "--purpose", *purposes)
    text = path.read_text("utf-8")
    for key, value in terms.items():
        lines = [f"{key} = {value}" if line.startswith(f"{key} =") else line for line in text.splitlines()]
        text = "\n".join(lines if f"{key} = {value}" in lines else [f"{key} = {value}", *lines]) + "\n"
    path.write_text(text, "utf-8")
    place.good("contract", "sign", path, "--key", place.path / "keys" / f"{OWNER}.pem")
    return path


def intake(place: Place, contract: Path, name: str = NAME) -> Said:
    """Bring the logs in."""
    logs = place.path / "logs"
    return place.hagane(
        "intake", logs, "--embodiment", WORLD, "--contract", contract, "--home", place.site, "--name", name
    )


def outside(*folders: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below folders with its bytes, and every link with its target."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink():
                yield path, os.fsencode(path.readlink())
            elif path.is_file():
                yield path, path.read_bytes()


def forms(token: bytes) -> set[bytes]:
    """A token as it is, in hex, and in base64 at each of its three places in a triple."""
    found = {token, token.hex().encode(), token.hex().upper().encode(), token[::-1]}
    for skip in range(3):
        text = base64.b64encode(b"\0" * skip + token)
        first, last = (skip * 8 + 5) // 6, (skip + len(token)) * 8 // 6
        found |= {text[first:last], text[first:last].translate(bytes.maketrans(b"+/", b"-_"))}
    return found


def carriers(token: bytes, said: Said | None, folders: Sequence[Path]) -> list[str]:
    """Everything outside that holds a token: names of files, their bytes, and what was printed."""
    wanted = forms(token)
    found = [str(path) for path, data in outside(*folders) if any(w in data or w in os.fsencode(path) for w in wanted)]
    names = {os.fsencode(p) for folder in folders for p in folder.rglob("*")}
    found += [os.fsdecode(n) for n in names if any(w in n for w in wanted)]
    if said is not None and any(w in os.fsencode(said.all) for w in wanted):
        found.append("what was printed")
    return found


def runs_of(data: bytes, size: int = 16) -> set[bytes]:
    """All runs of so many bytes that are no filling (at least six different bytes)."""
    return {data[i : i + size] for i in range(len(data) - size + 1) if len(set(data[i : i + size])) > 5}


def shared_runs(secret: Iterable[bytes], files: Iterable[tuple[Path, bytes]]) -> dict[str, bytes]:
    """Files that share a run of 16 bytes with a plaintext."""
    known: set[bytes] = set()
    for data in secret:
        known |= runs_of(data)
    found = {}
    for path, data in files:
        if hit := next((r for r in (data[i : i + 16] for i in range(len(data) - 15)) if r in known), None):
            found[str(path)] = hit
    return found
