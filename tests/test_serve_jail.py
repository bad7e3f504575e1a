"""`hagane serve` of a run that lies sealed: the model in a jail, clients outside, and contracts that grant to serve."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hagane.cli import main
from hagane.cli.sealed_run import SealedRun, Source, read_sealed_run
from hagane.cli.site import keyring_of
from hagane.demo.members import write_logs
from hagane.terms import HistoryBuffer, Observation, RemoteError, WireError
from hagane.wire import RemotePolicy
from hagane.worlds import make
from tests.jail_fixture import why_not

ROOT = Path(__file__).parents[1]
MILL = ROOT / "src" / "hagane" / "worlds" / "mill.toml"
GRANTED = ("anchor", "member-training", "evaluate", "serve")

pytestmark = pytest.mark.skipif(bool(why_not()), reason="no jail can be made here")


def good(*argv: str | Path) -> None:
    assert main([str(a) for a in argv]) == 0


def command(*argv: str | Path) -> list[str]:
    return [sys.executable, "-m", "hagane", *map(str, argv)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with a run on a data set that may be served by the consortium; the run lies sealed."""
    place = tmp_path_factory.mktemp("serve")
    (place / "site/trust").mkdir(parents=True)
    for owner in ("consortium-root", "member-steel", "host"):
        good("contract", "keygen", "--owner", owner, "--out", place / "keys")
    for owner in ("consortium-root", "member-steel"):
        shutil.copy(place / f"keys/{owner}.pub", place / "site/trust")
    sign_site(place, "consortium")
    write_logs("mill", place / "logs", 4)
    bring_in(place, "mill-demo", "--may-serve", "consortium")
    good("train", "--recipe", "tiny", "--steps", "2", "--run", place / "runs/first", "--home", place / "site")
    return place


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Path:
    """The same site, to be spoilt."""
    shutil.copytree(place, tmp_path / "p")
    return tmp_path / "p"


@contextmanager
def serving(place: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A server of the sealed run in a process, its address, and the id of its weights."""
    argv = command("serve", place / "runs/first", "--home", place / "site", "--port", "0", *more)
    pipe = subprocess.PIPE
    server = subprocess.Popen(argv, env=environment(), stdout=pipe, stderr=pipe, text=True)
    try:
        assert server.stdout is not None and server.stderr is not None
        first = server.stdout.readline()
        assert first.startswith("serving mill at "), first + server.stderr.read()
        yield server, first.split(" at ")[-1].strip(), server.stdout.readline().split()[-1]
    finally:
        server.kill()
        server.communicate(timeout=30)


def models_of(keeper: int) -> list[int]:
    """Processes below the keeper that run its verb: the model in the jail is the last."""
    found, left = [], [keeper]
    while left:
        pid = left.pop()
        below = [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]
        left += below
        found += [p for p in below if b"hagane\0serve" in Path(f"/proc/{p}/cmdline").read_bytes()]
    return found


def ledger(place: Path) -> list[dict[str, object]]:
    lines = (place / "site/ledger.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["entry"] for line in lines]


def refused(capfd: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """The one message of a verb that fails before anything is served."""
    capfd.readouterr()
    assert main([str(a) for a in argv]) == 1
    out, err = capfd.readouterr()
    assert "serving" not in out and "Traceback" not in err
    assert err.count("hagane serve:") == 1, err
    return err


def test_a_world_is_driven_then_a_model_that_hangs_ends_the_server(place: Path) -> None:
    with serving(place, "--model-timeout-s", "2") as (server, url, checkpoint):
        driven = subprocess.run(
            command("drive", "mill", "--at", url, "--home", place), env=environment(), capture_output=True, text=True
        )
        assert driven.returncode == 0, driven.stderr
        assert "400 steps" in driven.stdout and "misses 0" in driven.stdout
        (fact,) = [e["what"] for e in ledger(place) if e["type"] == "deployment"]
        site = "consortium-lab"
        assert fact == {"checkpoint_sha256": checkpoint, "envelope_sha256": "", "machine": "mill", "site": site}
        (model,) = models_of(server.pid)
        with RemotePolicy(url, timeout_s=30.0) as policy:
            policy.reset(make("mill").embodiment, "")
            assert policy.checkpoint_id == checkpoint
            os.kill(model, signal.SIGSTOP)
            with pytest.raises(RemoteError, match="no answer within 2 s"):
                policy.act(observed())
        _, err = server.communicate(timeout=30)
        assert server.returncode == 1 and err.count("hagane serve:") == 1
        assert "not served any more: no answer within 2 s" in err and "next:" in err
        assert not Path(f"/proc/{model}").exists()


@pytest.mark.slow
def test_a_model_that_dies_ends_the_server_at_once(place: Path) -> None:
    with serving(place) as (server, _, _):
        (model,) = models_of(server.pid)
        os.kill(model, signal.SIGKILL)
        _, err = server.communicate(timeout=30)
        assert server.returncode == 1 and "not served any more: it ended" in err


@pytest.mark.slow
def test_a_signal_finishes_what_was_asked_and_ends_well(place: Path) -> None:
    with serving(place) as (server, url, _):
        with RemotePolicy(url, timeout_s=30.0) as policy:
            policy.reset(make("mill").embodiment, "")
            policy.act(observed())
        server.terminate()
        out, err = server.communicate(timeout=30)
        assert server.returncode == 0 and "stopped: all replies" in out, err
        with pytest.raises(WireError):
            RemotePolicy(url).reset(make("mill").embodiment, "")


def observed() -> Observation:
    """What a mill sees at its start."""
    world = make("mill")
    world.reset(world.cases[0], [1])
    buffer = HistoryBuffer(world.embodiment, 1)
    buffer.push(world.observe(), np.array([0], np.int64))
    return buffer.observation(world.tasks())


def test_a_contract_that_does_not_grant_to_serve_is_refused(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bring_in(copied, "mill-closed", purposes=("anchor", "evaluate"))
    sources = read_sealed_run(copied / "runs/first").sources
    closed = Source("mill-closed", sources[0].digest, sources[0].contract, "member-steel")
    SealedRun(copied / "runs/first", "consortium", (*sources, closed), "anchor").write_lineage()
    err = refused(capfd, "serve", copied / "runs/first", "--home", copied / "site")
    assert "purpose 'serve' is not granted" in err and "mill-closed" in err
    assert not [e for e in ledger(copied) if e["type"] == "deployment" and e["what"]["machine"] != "mill"]  # type: ignore[index]


def test_another_operator_may_not_serve(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sign_site(copied, "member-cars")
    err = refused(capfd, "serve", copied / "runs/first", "--home", copied / "site")
    assert "'member-cars' may not serve what was trained on it" in err and "mill-demo" in err


@pytest.mark.parametrize("name, owner", [("run-first", "consortium"), ("mill-demo", "member-steel")])
def test_erased_keys_end_it(name: str, owner: str, copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good("erase", name, "--owner", owner, "--yes", name, "--home", copied / "site")
    err = refused(capfd, "serve", copied / "runs/first", "--home", copied / "site")
    assert "erased" in err


def test_where_no_jail_can_be_made_nothing_is_served(place: Path) -> None:
    # in a user namespace of its own, whose root may say that it has none below it
    inner = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    argv = command("serve", place / "runs/first", "--home", place / "site", "--port", "0")
    done = subprocess.run(
        ["unshare", "-r", "sh", "-c", inner, "-", *argv], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr and "serving" not in done.stdout
    assert done.stderr.count("hagane serve:") == 1 and "jail" in done.stderr and "next:" in done.stderr


@pytest.mark.slow
def test_a_port_in_use_is_said_once(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        argv = command("serve", place / "runs/first", "--home", place / "site", "--port", str(taken.getsockname()[1]))
        done = subprocess.run(argv, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1 and "in use" in done.stderr and done.stderr.count("hagane serve:") == 1


def test_weights_that_lie_open_are_asked_for_where_a_home_is_given(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    read_sealed_run(place / "runs/first").unseal(tmp_path, keyring_of(place / "site"))
    err = refused(capfd, "serve", tmp_path, "--home", place / "site")
    assert "jail" in err and "mill-demo" in err


def test_other_bad_flags(capfd: pytest.CaptureFixture[str], place: Path) -> None:
    assert "positive" in refused(capfd, "serve", place / "runs/first", "--model-timeout-s", "0")
    assert "without a key" in refused(capfd, "serve", place / "runs/first", "--host", "0.0.0.0")
