"""`hagane audit trace`, `uses`, `recorded-absence`: what they prove, and that a planted fault in each link is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hagane.cli import main
from hagane.cli.audit_books import Where, open_books
from hagane.cli.audit_checkpoint import tensors_of
from hagane.cli.recorded import read_recording
from hagane.cli.site import ledger_of
from hagane.seal import Ledger
from hagane.terms import ConfigError
from tests.audit_fixture import SETS, Books, books, read, record_drive, run, sha
from tests.test_seal_cli import checkpoint

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Books:
    return books(tmp_path_factory.mktemp("audit") / "site")


def audit(made: Books, verb: str, *args: str) -> int:
    return main(["audit", verb, *args, "--home", str(made.home)])


def test_an_action_is_traced_to_owners_contracts_and_proofs(whole: Books, capsys: Said, tmp_path: Path) -> None:
    proofs = tmp_path / "proofs.json"
    key = str(whole.home / "keys" / "host.pub")
    assert audit(whole, "trace", f"{whole.recording}@0.12", "--json", str(proofs), "--site-key", key) == 0
    out = capsys.readouterr().out
    assert "at 0.1 s, guard run" in out and "2, 0.5" in out and "traced      1 of 1 actions" in out
    for words in ("run         second", "first, which the one above started from", *SETS):
        assert words in out
    assert all(f"by {owner}; until" in out for owner in SETS.values())
    assert "0 unsigned after the first" in out and "proved by" in out
    told = json.loads(proofs.read_text())
    assert told["values"]["move"] == [2, 0.5] and told["checkpoint"] == whole.second
    assert {r["kind"] for r in told["proofs"]} >= {"run", "read", "checkpoint", "deployment", "recording"}
    assert audit(whole, "trace", str(whole.recording)) == 0
    assert "traced      5 of 5 actions" in capsys.readouterr().out


def test_a_machine_and_a_checkpoint_by_its_id(whole: Books, capsys: Said) -> None:
    assert audit(whole, "trace", "arm") == 0
    out = capsys.readouterr().out
    assert f"checkpoint {whole.second}" in out and "second: arm-demo" in out and "recording" in out
    assert audit(whole, "trace", whole.first) == 0
    assert "road-demo" in capsys.readouterr().out


def test_uses_follow_runs_that_start_from_others(whole: Books, capsys: Said) -> None:
    assert audit(whole, "uses", "road-demo") == 0
    out = capsys.readouterr().out
    assert f"checkpoint  {whole.second[:16]} of run second, by way of run first" in out
    assert "deployment" in out and "machine arm" in out
    assert audit(whole, "uses", "rode-demo") == 1
    assert "did you mean 'road-demo'" in capsys.readouterr().err


def test_absence_presence_and_what_cannot_be_said(whole: Books, capsys: Said) -> None:
    assert audit(whole, "recorded-absence", "arm-demo", whole.first) == 0
    out = capsys.readouterr().out
    assert "NOT RECORDED" in out and "assumed   that lab recorded" in out and "its whole recorded lineage" in out
    for name in SETS:  # one by way of the run that it started from
        assert audit(whole, "recorded-absence", name, whole.second) == 1
        assert "PRESENT" in capsys.readouterr().out
    for name, at in (("rode-demo", whole.first), ("arm-demo", sha("another"))):
        assert audit(whole, "recorded-absence", name, at) == 2
        assert "CANNOT BE SAID" in capsys.readouterr().out


def test_absence_on_witnessed_entries_only(tmp_path: Path, capsys: Said) -> None:
    made = books(tmp_path / "site")
    home, heads, keys = made.home, tmp_path / "heads", tmp_path / "witnesses"
    assert main(["contract", "keygen", "--owner", "member-steel", "--out", str(keys)]) == 0
    host, pub = home / "keys" / "host.pem", home / "keys" / "host.pub"
    assert main(["audit", "head", "--key", str(host), "--home", str(home), "--heads", str(heads)]) == 0
    flags = ["--heads", str(heads), "--site-key", str(pub), "--witness-keys", str(keys), "--witnessed"]
    assert audit(made, "recorded-absence", "arm-demo", made.first, *flags) == 2
    assert "are pending" in capsys.readouterr().out
    name = ["--name", "member-steel", "--key", str(keys / "member-steel.pem"), "--memory", str(tmp_path / "memory")]
    assert main(["audit", "witness", str(heads), "--site", "lab", "--site-key", str(pub), *name]) == 0
    assert audit(made, "recorded-absence", "arm-demo", made.first, *flags) == 0
    assert "countersigned by member-steel" in capsys.readouterr().out


def orphan(made: Books) -> None:
    run(made, "third", ("arm-demo",), sha("third"), {"gone": sha("from nowhere")})


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda m: read(m, "road-demo", "second"), "its record does not name it"),
        (lambda m: read(m, "road-demo"), "no run answers for it"),
        (lambda m: ledger_of(m.home).append("checkpoint", {"run": "x", "checkpoint": sha("x")}), "says that it began"),
        (lambda m: ledger_of(m.home).append("deployment", {"machine": "arm"}), "a checkpoint of no known run"),
        (
            lambda m: ledger_of(m.home).append("recording", {"machine": "mill", "checkpoint_sha256": m.first}),
            "without a deployment",
        ),
    ],
)  # fmt: skip
def test_every_broken_link_is_found(tmp_path: Path, plant: Callable[[Books], object], words: str) -> None:
    made = books(tmp_path / "site")
    assert open_books(Where(made.home)).lineage.problems() == []
    plant(made)
    assert any(words in p for p in open_books(Where(made.home)).lineage.problems())


def test_faults_make_absence_unsayable(tmp_path: Path, capsys: Said) -> None:
    made = books(tmp_path / "site")
    orphan(made)
    assert audit(made, "recorded-absence", "road-demo", sha("third")) == 2
    assert "no entry says which run made it" in capsys.readouterr().out
    read(made, "arm-demo")
    assert audit(made, "recorded-absence", "arm-demo", made.first) == 2
    assert "names no run" in capsys.readouterr().out
    # read, and left out of the run's record: present all the same
    read(made, "arm-demo", "first")
    assert audit(made, "recorded-absence", "arm-demo", made.first) == 1
    assert audit(made, "trace", made.first) == 1
    assert "record does not name it" in capsys.readouterr().out


def test_the_same_content_under_another_name_is_present(tmp_path: Path, capsys: Said) -> None:
    made = books(tmp_path / "site")
    ledger_of(made.home).append("add", {"dataset": "renamed", "digest": sha("road-demo"), "site": "lab"})
    assert audit(made, "recorded-absence", "renamed", made.first) == 1
    assert "the content of renamed" in capsys.readouterr().out


def test_an_action_without_entries_is_not_traced(tmp_path: Path, capsys: Said) -> None:
    made = books(tmp_path / "site", until="deployment")
    record_drive(made)
    assert audit(made, "trace", str(made.recording)) == 1
    out = capsys.readouterr().out
    assert "no deployment of this checkpoint" in out and "traced      0 of 5 actions" in out
    other = books(tmp_path / "other", until="recording")
    assert audit(other, "trace", str(other.recording)) == 1
    assert "no entry names this recording's root" in capsys.readouterr().out


def test_a_changed_recording_has_another_root(whole: Books, tmp_path: Path) -> None:
    other = Books(whole.home, tmp_path / "a" / "arm.mcap", whole.contracts)
    record_drive(other, noted=False)
    assert read_recording(other.recording).root == read_recording(whole.recording).root
    longer = Books(whole.home, tmp_path / "b" / "arm.mcap", whole.contracts)
    record_drive(longer, noted=False, steps=6)
    assert read_recording(longer.recording).root != read_recording(whole.recording).root


@pytest.mark.parametrize("at", ["9", "-1", "nan", "inf", "noon", "1e999"])
def test_times_that_are_none(whole: Books, capsys: Said, at: str) -> None:
    assert audit(whole, "trace", f"{whole.recording}@{at}") == 1
    said = capsys.readouterr().err
    assert ("no action at" in said or "no time in seconds" in said) and "Traceback" not in said


def test_bad_input_is_one_message(whole: Books, tmp_path: Path, capsys: Said) -> None:
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(whole.recording.read_bytes()[:-40])
    junk = tmp_path / "junk.mcap"
    junk.write_bytes(b"\x89MCAP0\r\n" + bytes(100))
    for what in (str(cut), str(junk), str(tmp_path / "none.mcap"), "nobody", "../arm", "x" * 64, "", str(tmp_path)):
        assert audit(whole, "trace", what) == 1
        said = capsys.readouterr().err
        assert said.count("next:") <= 1 and "Traceback" not in said and said, what
    assert main(["audit", "trace", "arm", "--home", str(tmp_path)]) == 1
    assert main(["audit", "uses", "arm-demo", "--home", str(tmp_path)]) == 1
    assert audit(whole, "recorded-absence", "arm-demo", whole.first, "--witnessed") == 1
    assert audit(whole, "recorded-absence", "arm-demo", str(tmp_path)) == 1


def test_forged_and_replayed_entries(tmp_path: Path, capsys: Said) -> None:
    made = books(tmp_path / "site")
    path, key = made.home / "ledger.jsonl", str(made.home / "keys" / "host.pub")
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    for bad in (good + lines[2], good[:-30], b"".join(lines[1:]), good.replace(b'"payload":"ey', b'"payload":"fy', 1)):
        path.write_bytes(bad)
        assert audit(made, "uses", "arm-demo") == 1
        assert "Traceback" not in capsys.readouterr().err
    path.write_bytes(good)
    other = books(tmp_path / "other")
    path.write_bytes((other.home / "ledger.jsonl").read_bytes())
    assert audit(made, "uses", "arm-demo", "--site-key", key) == 1
    assert "is not signed by site 'lab'" in capsys.readouterr().err
    Ledger(path).append("read", {"dataset": "arm-demo"})
    verify = ["audit", "verify", str(path), "--site", "lab"]
    assert main([*verify, "--site-key", key]) == 1
    assert main([*verify, "--site-key", str(other.home / "keys" / "host.pub")]) == 0
    assert "1 after the first of them are not signed" in capsys.readouterr().out


def test_another_host_key_than_the_record_names(tmp_path: Path) -> None:
    made = books(tmp_path / "site", until="run")
    assert main(["contract", "keygen", "--owner", "host", "--out", str(tmp_path / "k")]) == 0
    (tmp_path / "k" / "host.pem").replace(made.home / "keys" / "host.pem")
    with pytest.raises(ConfigError, match="not the host key"):
        ledger_of(made.home)


def test_every_tensor_of_a_whole_model_has_the_owner_that_the_model_says() -> None:
    import torch

    from hagane.model import Generalist
    from hagane.model.naming import pieces
    from hagane.terms.ownership import owner_of
    from tests.model_fixture import ARM, CAM, ROAD, shape_of

    shape = shape_of("1m", (ARM, CAM, ROAD))
    with torch.device("meta"):
        model = Generalist(shape)
    names = tuple(n for n, _ in (*model.named_parameters(), *model.named_buffers()))
    machines, found = {e.name: e.owner for e in shape.embodiments}, pieces(model, names)
    assert len(found) > 200
    assert {p.name: owner_of(p.name, machines, shape.experts) for p in found} == {p.name: p.owner for p in found}


def test_a_tensor_without_an_owner_is_reported(tmp_path: Path, capsys: Said) -> None:
    folder = checkpoint(tmp_path / "runs" / "demo", "f" * 64)
    assert main(["audit", "trace", str(folder), "--tensors"]) == 0
    assert "traced    1 of 1 tensors" in capsys.readouterr().out
    for name, words in (
        ("stray.weight", "no owner is known"),
        ("trunk.norm.gain", "its name says consortium, its file"),
    ):
        other = checkpoint(tmp_path / name / "runs" / "demo", "f" * 64, tensor=name)
        assert [words in t.problem for t in tensors_of(other)] == [True]
        assert main(["audit", "trace", str(other)]) == 1
        assert "traced    0 of 1 tensors" in capsys.readouterr().out
