"""The trial of the jail: its judge hears what leaks, and a jail with a layer missing is judged a leak."""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hagane.cli import jail_test
from hagane.jail import LAYERS, Bind, Plan, probe, python_env, python_reads, start
from hagane.jail.attempts import ATTEMPTS, Attempt, files, network, output, processes, relays, shared
from hagane.jail.trial import (
    HOLDS,
    LEAKS,
    NOT_COUNTED,
    OPEN,
    UNPROVED,
    Run,
    Trial,
    judge,
    open_trial,
    stops_here,
    would_pass,
)
from hagane.jail.trial_keeper import OUTPUT
from hagane.terms import ConfigError

ALL = frozenset({*LAYERS, OUTPUT})
BY_NAME = {attempt.name: attempt for attempt in ATTEMPTS}
ATTACKER = Path(__file__).parents[1] / "examples" / "attacker.py"
needs_jail = pytest.mark.skipif(bool(probe().missing), reason="this kernel gives no whole jail to this user")


@pytest.fixture(scope="module")
def trial() -> Iterator[Trial]:
    with open_trial(ALL) as made:
        yield made


def test_attempts_are_many_named_once_and_stopped_by_layers_that_exist() -> None:
    assert len(BY_NAME) == len(ATTEMPTS) >= 40
    for attempt in ATTEMPTS:
        assert set(attempt.stops) <= ALL, attempt.name
        assert bool(attempt.stops) != bool(attempt.known_open), attempt.name
        assert attempt.words.endswith("."), attempt.name


def test_attempts_import_nothing_of_ours() -> None:
    for path in (ATTACKER, *{attempt.file for attempt in ATTEMPTS}):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(name.split(".")[0] in sys.stdlib_module_names for name in names), path


@needs_jail
@pytest.mark.parametrize("act", [network.udp, relays.inherited_pipe, files.append, shared.sysv_memory, output.stdout])
def test_what_leaks_unprotected_is_held_and_leaks_again_without_its_layers(trial: Trial, act: object) -> None:
    attempt = next(a for a in ATTEMPTS if a.act is act)
    row = trial.row(attempt)
    assert row.control.channels and row.opened and row.opened.channels
    assert row.jailed == Run((), row.jailed.code if row.jailed else None)
    assert row.verdict == HOLDS, row.reason


@needs_jail
def test_a_jail_with_a_layer_missing_is_judged_a_leak(trial: Trial) -> None:
    for act, layer in ((network.tcp, "netns"), (processes.outlive, "pidns"), (files.drop_run, "private_tmpfs")):
        poor = Trial(trial.listener, ALL - {layer})
        row = poor.row(BY_NAME[act.__name__])
        assert row.verdict == LEAKS, (row, layer)


@needs_jail
def test_an_attempt_that_its_layers_do_not_stop_proves_nothing(trial: Trial) -> None:
    row = trial.row(Attempt(network.udp, ("utsns",)))
    assert row.verdict == UNPROVED and "utsns" in row.reason


def test_the_judge_hears_nothing_from_an_attempt_that_says_nothing(trial: Trial) -> None:
    # it ends well, but what it sent came to somebody else: what an attempt says of itself does not count
    port = trial.listener.at["udp"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        trial.listener.at["udp"] = other.getsockname()[1]
        row = trial.row(BY_NAME["udp"], jails=False)
        trial.listener.at["udp"] = port
    assert row.control.code == 0 and row.verdict == NOT_COUNTED


def test_verdicts() -> None:
    attempt, known = BY_NAME["tcp"], BY_NAME["title"]
    nothing, out = Run((), 1), Run(("tcp",), 0)
    assert judge(attempt, nothing, out, attempt.stops)[0] == HOLDS
    assert judge(attempt, out, out, attempt.stops)[0] == LEAKS
    assert judge(attempt, nothing, nothing, attempt.stops)[0] == UNPROVED
    assert judge(attempt, Run((), None, "no jail"), out, attempt.stops)[0] == UNPROVED
    assert judge(known, out, None, ())[0] == OPEN
    assert judge(known, nothing, None, ())[0] == HOLDS


def test_what_would_pass_without_a_layer() -> None:
    assert BY_NAME["tcp"] in would_pass(frozenset({"netns"}))
    assert BY_NAME["unix_abstract"] not in would_pass(frozenset({"netns"}))  # Landlock stops it too
    assert not would_pass(frozenset())
    assert set(stops_here(BY_NAME["tcp"])) == {"netns"}


@needs_jail
def test_the_command_exits_1_on_a_leak_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert jail_test.main(["--only", "udp", "--without", "netns", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["totals"] == {LEAKS: 1} and told["attempts"][0]["jailed"] == ["udp"]
    with pytest.raises(ConfigError, match="no attempts"):
        jail_test.main(["--only", "upd"])
    with pytest.raises(ConfigError, match="no layers"):
        jail_test.main(["--without", "walls"])


@needs_jail
def test_the_attacker_finds_every_door_shut(tmp_path: Path) -> None:
    command = (sys.executable, "-I", str(ATTACKER))
    ours, theirs = os.pipe()
    with start(Plan(command, python_env(), (*python_reads(), Bind.at(ATTACKER))), theirs, theirs) as jailed:
        os.close(theirs)
        with os.fdopen(ours) as lines:
            said = lines.read()
        assert jailed.wait() == 0, said
        jailed.release()
    assert ", 0 open" in said


def totals(*command: str) -> dict[str, int]:
    """The totals of a whole trial, and how many leak without protection."""
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)
    bad = [row for row in told["attempts"] if row["verdict"] in (LEAKS, UNPROVED)]
    assert done.returncode == 0 and not bad, (bad, done.stderr)
    return {**told["totals"], "control": told["control_leaks"]}


@pytest.mark.slow
@needs_jail
def test_no_attempt_leaks() -> None:
    found = totals(sys.executable, "-m", "hagane", "jail", "test")
    assert found["control"] >= 14 and found[HOLDS] >= 25


@pytest.mark.slow
@needs_jail
@pytest.mark.skipif(os.geteuid() != 0, reason="the trial above was rootless already")
def test_no_attempt_leaks_without_privileges() -> None:
    # an interpreter that every user may run, with the packages of this one
    python = next((p for p in (sys.executable, "/usr/bin/python3") if _open_to_all(p)), "")
    if not python:
        pytest.skip("no interpreter here that nobody may run")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    os.environ.update(env)
    found = totals(python, "-m", "hagane", "jail", "test", "--as", "nobody")
    assert found["control"] >= 14 and found[HOLDS] >= 25


@pytest.mark.slow
@needs_jail
@pytest.mark.skipif(os.geteuid() != 0, reason="without privileges most layers cannot stand without a user namespace")
def test_each_of_the_layers_that_are_named_stops_its_attempt_by_itself(trial: Trial) -> None:
    for attempt in (a for a in ATTEMPTS if len(a.stops) > 1 and a.name not in trial.listener.missing):
        for layer in attempt.stops:
            run = trial.run(attempt, ALL - (set(attempt.stops) - {layer}))
            assert not run.channels and not run.failed, (attempt.name, layer, run)


def _open_to_all(path: str) -> bool:
    done = subprocess.run(["/bin/sh", "-c", f"test -x {os.path.realpath(path)}"], user=65534, check=False)
    return done.returncode == 0
