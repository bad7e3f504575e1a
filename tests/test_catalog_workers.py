"""Conversion is the same bytes whoever does it: this process, a pool of processes, a Ray cluster."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

import pytest

from hagane.catalog import Workers
from hagane.catalog.fill import log_jobs
from hagane.catalog.workers import working
from hagane.intake.can_write import encode_can
from hagane.intake.historian_write import write_historian
from hagane.intake.lerobot_rows import write_episodes
from hagane.intake.options import Options
from hagane.terms import ConfigError, LogError, StoreError
from tests.catalog_fixture import Home, make_home
from tests.intake_cases import CAR, LINE, noise
from tests.pictures_fixture import EYES, episodes


def logs(folder: Path, count: int = 5) -> Path:
    """A folder with that many historian files."""
    for n in range(count):
        write_historian([noise(LINE, 10 * n + k, 60) for k in range(2)], LINE, folder / f"line-{n:02d}.csv")
    return folder


def add(home: Home, source: Path, workers: Workers, **more: object) -> str:
    """Bring a folder of historian files in; returns the content digest."""
    signed = home.contract(LINE, "line-demo")
    return home.catalog().add_logs("line-demo", LINE, signed, source, workers=workers, **more).digest  # type: ignore[arg-type]


def bytes_of(folder: Path) -> dict[str, str]:
    """sha256 of every file of sets and cache, but the contract, which is signed anew."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for top in ("sets", "cache")
        for p in sorted((folder / top).rglob("*"))
        if p.is_file() and not p.name.startswith("contract.toml")
    }


def compare(tmp_path: Path, workers: Workers) -> None:
    source = logs(tmp_path / "logs")
    homes = [make_home(tmp_path / name) for name in ("here", "there")]
    digests = [add(home, source, w) for home, w in zip(homes, (Workers(), workers), strict=True)]
    assert digests[0] == digests[1]
    here, there = (bytes_of(home.folder / "catalog") for home in homes)
    assert here == there and len(here) > 10


def test_a_pool_makes_the_same_bytes(tmp_path: Path) -> None:
    compare(tmp_path, Workers(2))


@pytest.mark.slow
def test_a_ray_cluster_makes_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    compare(tmp_path, Workers(2, "ray"))


JOINED = """
from hagane.catalog.workers import Workers, working
with working(Workers(2, "ray")) as go:
    print(list(go(lambda n: n * n, range(5))))
"""


@pytest.mark.slow
def test_a_cluster_that_was_started_before_is_joined() -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": f"127.0.0.1:{port}"}
    start = [Path(sys.executable).parent / "ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=1"]
    # a short path: sockets lie in it
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        more = [f"--temp-dir={folder}", "--include-dashboard=false", "--disable-usage-stats"]
        cluster = subprocess.Popen([*start, *more], env=env, start_new_session=True, stdout=subprocess.PIPE, text=True)
        try:
            assert cluster.stdout is not None
            assert any("Ray runtime started" in line for line in cluster.stdout)
            args = [sys.executable, "-c", JOINED]
            done = subprocess.run(args, env=env, capture_output=True, text=True, check=False, timeout=120)
        finally:
            os.killpg(cluster.pid, signal.SIGKILL)
            cluster.communicate()
    assert done.stdout.strip().endswith("[0, 1, 4, 9, 16]"), done.stderr


def test_groups_do_not_depend_on_who_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics are merged group by group: groups follow from the episodes alone."""
    for n, room in enumerate((1 << 12, 1 << 24)):
        monkeypatch.setattr("hagane.intake.lerobot_write.GROUP_BYTES", room)
        home = make_home(tmp_path / str(n))
        home.catalog().add("eyes-demo", EYES, home.contract(EYES), episodes(6))
        assert home.catalog().verify("eyes-demo") > 5
    a, b = (make_home(tmp_path / str(n)).catalog().stats("eyes-demo", "view")["state"] for n in (0, 1))
    assert a.count == b.count and a.mean == pytest.approx(b.mean) and a.q99 == pytest.approx(b.q99, rel=1e-2)


def test_a_second_run_reads_only_what_was_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, home = logs(tmp_path / "logs"), make_home(tmp_path)
    whole = add(make_home(tmp_path / "other"), source, Workers())

    def stop(what: str, count: int) -> None:
        if (what, count) == ("read", 6):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(home, source, Workers(), progress=stop)
    assert home.catalog().ls() == () and home.catalog().unfinished() == ("line-demo",)
    opened: list[str] = []
    from hagane.intake import historian

    real = historian.read

    def counted(path: Path, *more: object) -> object:
        opened.append(path.name)
        return real(path, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(historian, "read", counted)
    assert add(home, source, Workers()) == whole
    assert opened == ["line-03.csv", "line-04.csv"] and home.catalog().unfinished() == ()


def test_a_log_that_changed_after_the_crash_is_read_again(tmp_path: Path) -> None:
    source, home = logs(tmp_path / "logs", 3), make_home(tmp_path)

    def stop(what: str, count: int) -> None:
        if (what, count) == ("read", 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(home, source, Workers(), progress=stop)
    write_historian([noise(LINE, 99, 60)], LINE, source / "line-00.csv")
    assert add(home, source, Workers()) == add(make_home(tmp_path / "other"), source, Workers())


def test_the_same_logs_twice_and_elsewhere_give_the_same_digest(tmp_path: Path) -> None:
    source, home = logs(tmp_path / "logs", 2), make_home(tmp_path)
    first = add(home, source, Workers())
    before = {p: p.stat().st_mtime_ns for p in (home.folder / "catalog" / "sets").rglob("*")}
    assert add(home, source, Workers()) == first
    assert {p: p.stat().st_mtime_ns for p in (home.folder / "catalog" / "sets").rglob("*")} == before
    shutil.copytree(source, tmp_path / "moved")
    assert add(make_home(tmp_path / "third"), tmp_path / "moved", Workers()) == first


def test_one_bad_log_in_a_pool_refuses_all_of_it(tmp_path: Path) -> None:
    source, home = logs(tmp_path / "logs"), make_home(tmp_path)
    text = (source / "line-03.csv").read_text().splitlines(keepends=True)
    (source / "line-03.csv").write_text("".join([*text[:20], "oops," + text[20], *text[21:]]))
    with pytest.raises(LogError, match=r"line-03\.csv:21: a row has") as e:
        add(home, source, Workers(2))
    assert e.value.where.endswith("line-03.csv:21") and e.value.next_step  # the error crosses processes whole
    assert home.catalog().ls() == () and home.catalog().unfinished() == ()


def test_a_worker_that_dies_is_one_message(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match=r"a worker process died(.|\n)*goes on where it was"),
        working(Workers(2)) as go,
    ):
        list(go(die, range(4)))


def die(_: int) -> None:
    os._exit(9)


def slow_square(n: int) -> int:
    time.sleep(0.02 * (5 - n % 5))
    return n * n


def test_results_come_in_the_order_of_the_items() -> None:
    with working(Workers(2)) as go:
        assert list(go(slow_square, range(12))) == [n * n for n in range(12)]


def test_what_workers_refuse() -> None:
    with pytest.raises(ConfigError, match="engines: pool, ray"):
        Workers(-1)
    with pytest.raises(ConfigError):
        Workers(1, "slurm")  # type: ignore[arg-type]


def test_pictures_of_a_lerobot_set_pass_through_a_pool(tmp_path: Path) -> None:
    source = write_episodes(tmp_path / "set", EYES, episodes(3))
    home = make_home(tmp_path)
    record = home.catalog().add_logs("eyes-demo", EYES, home.contract(EYES), source, workers=Workers(2))
    assert record.episodes == 3 and home.catalog().verify("eyes-demo") > 5


def test_nothing_runs_on_after_one_bad_log(tmp_path: Path) -> None:
    """The first log is refused while others wait: a worker that began late would make the folder again."""
    source, home = logs(tmp_path / "logs", 8), make_home(tmp_path)
    (source / "line-00.csv").write_text("time,COATING_TOP\noops,1\n")
    with pytest.raises(LogError):
        add(home, source, Workers(2))
    assert not list((home.folder / "catalog" / "staging").iterdir())


def test_a_pool_that_broke_and_takes_nothing_more_is_one_message() -> None:
    """A worker may die while nobody waits for it: then it is the next item that cannot be handed over."""
    with pytest.raises(StoreError, match="a worker process died"), working(Workers(2)) as go:
        with suppress(StoreError, BrokenProcessPool):
            list(go(die, [0]))
        list(go(die, [1]))


@pytest.mark.parametrize("which", ["given", "beside"])
def test_logs_are_read_again_when_their_dbc_changed(tmp_path: Path, which: str) -> None:
    log, dbc = encode_can([noise(CAR, 1, 40)], CAR, tmp_path)
    options = Options(dbc=dbc if which == "given" else None)
    first = log_jobs(tmp_path, log, CAR, options)
    assert log_jobs(tmp_path, log, CAR, options) == first
    dbc.write_text(dbc.read_text() + "\n")
    assert log_jobs(tmp_path, log, CAR, options)[0].journal != first[0].journal
