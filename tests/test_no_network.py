"""No verb tries to reach anything beyond this machine: each runs where only loopback is, and two witnesses watch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hagane
from hagane.cli import VERBS, main
from hagane.engine import StepConfig, save_checkpoint
from hagane.quiet import VARIABLES
from hagane.seal import TrustStore, generate_key, public_of
from hagane.terms import Channel, Embodiment, RunRecord, dump_toml
from hagane.train import TrainConfig
from hagane.worlds import make
from tests.catalog_fixture import filled, make_home
from tests.model_fixture import engine_of
from tests.network_watch import HOOK, is_local

ROOT = Path(__file__).parents[1]
HEX = "0123456789abcdef" * 4
LINE = Embodiment("line", "plant", "member-steel", 1.0, 4, (Channel("pv", role="pv"),), (Channel("sp", role="sp"),))
IN_NAMESPACE = ["unshare", "-rn", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
SUB_VERBS = {
    "contract": ("keygen", "new", "sign", "show", "check"),
    "catalog": ("ls", "show", "sample", "diff", "duplicates", "split", "export", "verify"),
    "plan": ("size", "dry-run", "run", "programme", "scaling"),
    "audit": ("verify", "head", "witness", "trace", "uses", "recorded-absence", "report"),
    "keys": ("new", "ls", "rotate", "passphrase", "erase"),
    "jail": ("run", "test"),
    "release": ("make", "check", "membership"),
}


def run_steps(folder: Path, steps: list[list[str]], plant: str = "") -> list[dict[str, Any]]:
    """Run verbs in an empty network namespace under both witnesses."""
    tools = shutil.which("unshare") and shutil.which("ip")
    if not tools or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("no network namespace of one's own here (unshare -rn)")
    (folder / "hook").mkdir(parents=True, exist_ok=True)
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    (folder / "steps.json").write_text(json.dumps(steps))
    paths = [str(folder / "hook"), str(Path(hagane.__file__).parents[1]), str(ROOT)]
    watch = {"HAGANE_WATCH": str(folder / "tries"), "HAGANE_PLANT": plant, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [*IN_NAMESPACE, sys.executable, "-m", "tests.network_watch", str(folder / "steps.json")],
        env={**os.environ, **watch}, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def reached(result: dict[str, Any]) -> bool:
    """Whether either witness saw a try."""
    return bool(result["away"]) or result["no_routes"] > 0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with data, a run's checkpoint of the mill, a short run's configuration, keys."""
    folder = tmp_path_factory.mktemp("site")
    filled(folder, {"arm": 4, "road": 4})
    config = TrainConfig(datasets=("arm-demo", "road-demo"), samples_per_step=4, step=StepConfig(steps=2, warmup=1))
    (folder / "run.toml").write_text(dump_toml(config))
    mill = make("mill").embodiment
    record = RunRecord("mill-run", HEX, HEX, {"m": HEX}, {"m": HEX}, {"m": "member-steel"}, 0, 0)
    save_checkpoint(folder / "runs" / "mill" / "checkpoints", engine_of(embodiments=(mill,)), record, {"data": "x"})
    rows = "".join(f"2026-01-01T00:{s // 60:02d}:{s % 60:02d}Z,{s % 7},{s % 5}\n" for s in range(120))
    (folder / "line.csv").write_text(f"time,pv,sp\n{rows}")
    (folder / "line-machine.toml").write_text(dump_toml(LINE))
    make_home(folder).contract(LINE, "line")
    TrustStore(folder / "trust").add("consortium", public_of(generate_key(folder / "consortium.pem")))
    return folder


def steps_of(home: Path) -> list[list[str]]:
    """A small real invocation of every verb."""
    at, mill = str(home), str(home / "runs" / "mill")
    keys = [f"{owner}={home / owner}.pem" for owner in ("consortium", "member-steel")]
    return [
        ["contract", "keygen", "--owner", "member-x", "--out", f"{at}/keys"],
        ["contract", "new", f"{at}/x.toml", "--owner", "member-x", "--dataset", "x-drive"],
        ["contract", "sign", f"{at}/x.toml", "--key", f"{at}/keys/member-x.pem"],
        ["catalog", "ls", "--home", at],
        ["catalog", "show", "road-demo", "--home", at],
        ["catalog", "verify", "road-demo", "--home", at],
        ["doctor", "road-demo", "--home", at],
        ["doctor", f"{at}/line.csv", "--embodiment", f"{at}/line-machine.toml"],
        ["train", "--home", at, "--run", f"{at}/runs/first", "--config", f"{at}/run.toml"],
        ["console", "report", f"{at}/runs/first"],
        ["export", mill, "--out", f"{at}/weights"],
        ["contract", "show", f"{at}/x.toml", "--trust", f"{at}/keys"],
        ["release", "make", f"{at}/weights", "--out", f"{at}/out", "--model", f"{at}/model.toml", "--home", at,
         "--key", *keys],
        ["release", "check", f"{at}/out", "--trust", f"{at}/trust"],
        ["evaluate", mill, "--world", "mill", "--trials", "1", "--processes", "1"],
        ["+", "serve", f"{mill}/checkpoints/step-000000", "--port", "0"],
        ["drive", "mill", "--at", "ADDRESS", "--record", f"{at}/drives"],
        ["intake", f"{at}/line.csv", "--embodiment", f"{at}/line-machine.toml", "--contract", f"{at}/line.toml",
         "--name", "line", "--home", at],
        ["plan", "size", "1m"],
        ["keys", "new", "line", "--owner", "member-steel", "--home", at],
        ["keys", "ls", "--owner", "member-steel", "--home", at],
        ["erase", "line", "--owner", "member-steel", "--home", at, "--yes", "line"],
        ["audit", "verify", f"{at}/ledger.jsonl"],
        ["audit", "trace", f"{at}/runs/first", "--home", at],
        ["audit", "uses", "line", "--home", at],
        ["audit", "recorded-absence", "line", f"{at}/runs/first", "--home", at],
        ["audit", "report", "--officer", "--html", f"{at}/officer.html", "--home", at],
    ]  # fmt: skip


MAY_FAIL = {"evaluate": "conventions do not hold", "doctor": "not identifiable"}
"""Untrained weights do not keep conventions, noise is no sound log: exit code 1 after the work, and what it said."""


def test_every_verb_works_where_there_is_only_loopback(home: Path, tmp_path: Path) -> None:
    shutil.copyfile(home / "runs/mill/checkpoints/step-000000/model.toml", home / "model.toml")
    steps = steps_of(home)
    assert {s[0] for s in steps} | {s[1] for s in steps if s[0] == "+"} >= set(VERBS) - {"demo", "jail"}
    helps = [[verb, "--help"] for verb in VERBS]
    helps += [[verb, sub, "--help"] for verb, subs in SUB_VERBS.items() for sub in subs]
    results = run_steps(tmp_path, [*helps, *steps])
    for r in results:
        assert not reached(r), (r["argv"], r["away"], r["no_routes"])
        assert r["code"] == 0 or (r["code"] == 1 and MAY_FAIL[r["argv"][0]] in r["said"]), r
    drives = next(r for r in results if r["argv"][0] == "drive" and "--at" in r["argv"])
    assert drives["tries"] > 0, "the watch heard not even the drive's own connection to loopback"


PLANTED = """
import sys, types, hagane.cli
module = types.ModuleType("hagane.cli.planted")
def main(argv):
    exec(argv[0], {})
    return 0
module.main = main
sys.modules["hagane.cli.planted"] = module
hagane.cli.VERBS["planted"] = "a verb that phones home"
"""
NATIVE = """
import ctypes, socket, struct
libc = ctypes.CDLL(None)
fd = libc.socket(2, 1, 0)
libc.connect(fd, struct.pack("=HH4s8x", 2, 0x5000, bytes([192, 0, 2, 1])), 16)
"""
FAULTS = {
    "resolves a name": "import socket\ntry: socket.getaddrinfo('updates.example.com', 443)\nexcept OSError: pass",
    "connects": "import socket\ntry: socket.create_connection(('192.0.2.1', 443), 1)\nexcept OSError: pass",
    "sends a datagram": "import socket\ns = socket.socket(2, 2)\ntry: s.sendto(b'x', ('192.0.2.1', 53))\n"
    "except OSError: pass",
    "asks by URL": "import urllib.request\ntry: urllib.request.urlopen('http://192.0.2.1/', timeout=1)\n"
    "except OSError: pass",
    "in a child": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', "
    "'import socket; socket.getaddrinfo(\"updates.example.com\", 443)'], capture_output=True)",
    "in native code": NATIVE,
    "over IPv6": "import socket\ntry: socket.create_connection(('2001:db8::1', 443), 1)\nexcept OSError: pass",
}


def test_planted_verbs_that_phone_home_are_caught(tmp_path: Path) -> None:
    quiet = ["planted", "import socket; s = socket.create_server(('127.0.0.1', 0)); "
             "socket.create_connection(s.getsockname())"]  # fmt: skip
    results = run_steps(tmp_path, [quiet, *(["planted", code] for code in FAULTS.values())], PLANTED)
    assert not reached(results[0]) and results[0]["tries"] > 0, results[0]
    for name, r in zip(FAULTS, results[1:], strict=True):
        assert r["code"] == 0 and reached(r), (name, r)
    assert results[1 + list(FAULTS).index("in native code")]["no_routes"] > 0


def test_local_is_what_stays_here() -> None:
    assert is_local(["socket.connect", "1", "'/run/x.sock'"]) and is_local(["socket.connect", "2", "('127.0.0.9', 1)"])
    assert is_local(["socket.getaddrinfo", "0", "'localhost'"]) and is_local(
        ["socket.connect", "10", "('::1', 1, 0, 0)"]
    )
    for away in ("('10.0.0.1', 1)", "'updates.example.com'", "('127.0.0.1.example.com', 1)", "('::ffff:1.2.3.4', 1)"):
        assert not is_local(["socket.connect", "2", away])


def test_dependencies_are_told_to_be_quiet_before_anything_is_imported() -> None:
    code = f"import os, hagane; print([os.environ.get(k) for k in {list(VARIABLES)}])"
    loud = {**os.environ, "RAY_USAGE_STATS_ENABLED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=loud, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(list(VARIABLES.values()))
    assert main(["--version"]) == 0
