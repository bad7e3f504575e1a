"""Formats are found by content; folders of logs; a format is one more module; the verb end to end."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from hagane.catalog import Workers
from hagane.cli import main
from hagane.cli.intake import Intake, workers_for
from hagane.intake import Options, read_logs
from hagane.intake.can_write import encode_can
from hagane.intake.detect import find_logs, format_of, formats
from hagane.intake.historian_write import write_historian
from hagane.intake.options import parse_options
from hagane.intake.zones import zone_of
from hagane.terms import ConfigError, Embodiment, LogError, dump_toml, load_toml
from tests.conftest import shared_data
from tests.intake_cases import CAR, LINE, noise

ROOT = Path(__file__).parents[1]


def test_every_format_is_found() -> None:
    assert {"can", "historian", "lerobot", "mcap_log"} <= set(formats())


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    log, _ = encode_can([noise(CAR, 0, 20)], CAR, tmp_path)
    table = write_historian([noise(LINE, 0, 20)], LINE, tmp_path / "line.csv")
    shutil.copy(log, tmp_path / "odd.csv")
    shutil.copy(table, tmp_path / "odd.log")
    assert (format_of(tmp_path / "odd.csv"), format_of(tmp_path / "odd.log")) == ("can", "historian")


def test_a_folder_of_logs(tmp_path: Path) -> None:
    for k in range(3):
        write_historian([noise(LINE, k, 20)], LINE, tmp_path / f"day-{k}.csv")
    (tmp_path / "notes.md").write_text("# no log")
    assert [e.id for e in read_logs(tmp_path, LINE)] == ["day-0-000000", "day-1-000001", "day-2-000002"]
    (tmp_path / "zz.bin").write_bytes(b"\x00\x01\x02")
    with pytest.raises(LogError, match=r"zz\.bin: no known log format"):
        read_logs(tmp_path, LINE)
    (tmp_path / "zz.bin").write_bytes(b"")
    with pytest.raises(LogError, match=r"zz\.bin: the file is empty"):
        read_logs(tmp_path, LINE)


def test_links_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "logs"
    log = write_historian([noise(LINE, 0, 20)], LINE, outside / "day.csv")
    write_historian([noise(LINE, 1, 20)], LINE, folder / "own.csv")
    (folder / "same.csv").symlink_to(folder / "own.csv")
    assert len(find_logs(folder)) == 2
    (folder / "day.csv").symlink_to(log)
    with pytest.raises(LogError, match=r"day\.csv: leads out of the folder(?s:.*)copy the file itself"):
        find_logs(folder)
    (folder / "day.csv").unlink()
    (folder / "more").symlink_to(outside)
    with pytest.raises(LogError, match="more: leads out of the folder"):
        find_logs(folder)
    # a link that the caller names is the caller's own choice
    (tmp_path / "alias").symlink_to(outside)
    assert len(find_logs(tmp_path / "alias")) == 1


def test_what_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no such file or folder"):
        find_logs(tmp_path / "nowhere")
    with pytest.raises(LogError, match="the folder holds no log"):
        find_logs(tmp_path)
    for name, data in (("a", b"hello world"), ("b", b"\x89PNG\r\n\x1a\n\0\0"), ("c", b'{"a": 1,\n"b": 2}\n')):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(LogError, match="no known log format"):
            find_logs(tmp_path / name)


def test_a_new_format_is_an_entry_with_two_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine:
        @staticmethod
        def sniff(path: Path) -> bool:
            return path.is_file() and path.read_bytes()[:4] == b"MINE"

        @staticmethod
        def read(path: Path, embodiment: Embodiment, options: Options) -> object:
            return iter((replace(noise(LINE, 0, 30), task=options.task),))

    monkeypatch.setitem(formats(), "mine", Mine)
    (tmp_path / "x").write_bytes(b"MINE" + bytes(20))
    (episode,) = read_logs(tmp_path / "x", LINE, task="roll")
    assert episode.task == "roll"


def member(home: Path, embodiment: Embodiment, dataset: str) -> tuple[str, str]:
    """A site with a member's signed contract; paths of contract and embodiment file."""
    machine = home / "machine.toml"
    machine.write_text(dump_toml(embodiment))
    (home / "site.toml").write_text('name = "lab"\ncountry = "JP"\noperator = "consortium"\n')
    contract = home / "c.toml"
    owner = embodiment.owner
    assert main(["contract", "keygen", "--owner", owner, "--out", str(home / "trust")]) == 0
    new = ["contract", "new", str(contract), "--owner", owner, "--dataset", dataset, "--site", "lab"]
    assert main([*new, "--protection", "process"]) == 0
    assert main(["contract", "sign", str(contract), "--key", str(home / "trust" / f"{owner}.pem")]) == 0
    return str(contract), str(machine)


def intake(home: Path, log: Path, contract: str, machine: str, *more: str) -> int:
    here = ["--contract", contract, "--home", str(home)]
    return main(["intake", str(log), "--embodiment", machine, *here, *more])


def test_the_verb_stores_under_a_contract_and_prints_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contract, machine = member(tmp_path, LINE, "line-demo")
    episodes = [noise(LINE, k, 60) for k in range(2)]
    episodes[1].streams["speed"].values[20:23] = 999.0
    log = write_historian(episodes, LINE, tmp_path / "line.csv")
    assert intake(tmp_path, log, contract, machine, "--name", "line-demo") == 0
    out = capsys.readouterr().out
    assert "finding: line-000001 speed at 20.000 s: out-of-range, 3 samples beyond 0..250 m/min, farthest 999" in out
    assert "2 episodes" in out and "findings: 1 out-of-range" in out
    assert (tmp_path / "catalog" / "sets" / "line-demo").is_dir()


def test_the_verb_refuses_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contract, machine = member(tmp_path, CAR, "road-demo")
    log, _ = encode_can([noise(CAR, k, 30) for k in range(3)], CAR, tmp_path / "car")
    sets = tmp_path / "catalog" / "sets"

    def refused(words: str, *more: str) -> None:
        assert intake(tmp_path, log, contract, machine, *more) == 1
        err = capsys.readouterr().err
        assert words in err and "next: " in err and "Traceback" not in err
        assert not sets.exists() or not any(sets.iterdir())

    refused("not about data set 'other'", "--name", "other")
    whole = log.read_bytes()
    log.write_bytes(whole[:-20])
    refused("truncated log", "--name", "road-demo")
    log.write_bytes(whole[: len(whole) // 2] + b"garbage\n" + whole[len(whole) // 2 :])
    refused("no CAN frame", "--name", "road-demo")
    log.write_bytes(whole[:-20])
    assert intake(tmp_path, log, contract, machine, "--name", "road-demo", "--keep-whole") == 0
    assert "truncated" in capsys.readouterr().out
    Path(contract + ".sig").unlink()
    assert intake(tmp_path, log, contract, machine, "--name", "road-demo") == 1
    assert "not signed" in capsys.readouterr().err


def test_the_verb_without_a_contract_only_looks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_historian([noise(LINE, 0, 30)], LINE, tmp_path / "line.csv")
    (tmp_path / "m.toml").write_text(dump_toml(LINE))
    args = ["intake", str(log), "--embodiment", str(tmp_path / "m.toml")]
    assert main(args) == 1 and "no contract given" in capsys.readouterr().err
    assert main([*args, "--dry-run"]) == 0 and "nothing is stored" in capsys.readouterr().out
    assert main([*args, "--dry-run", "--read", "colour=red"]) == 1
    assert "keys are: bus, gap-s" in capsys.readouterr().err
    (tmp_path / "m.toml").write_text(dump_toml(LINE).replace("rate_hz", "rate_khz", 1))
    assert main([*args, "--dry-run"]) == 1
    assert "did you mean `rate_hz`" in capsys.readouterr().err


def test_an_expired_contract_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contract, machine = member(tmp_path, LINE, "line-demo")
    path = Path(contract)
    today = date.today()
    lines = [
        f"{line.split()[0]} = {today - timedelta(days=1)}" if line.startswith(("until", "issued")) else line
        for line in path.read_text().splitlines()
    ]
    path.write_text("\n".join(lines) + "\n")
    assert main(["contract", "sign", contract, "--key", str(tmp_path / "trust" / "member-steel.pem")]) == 0
    log = write_historian([noise(LINE, 0, 30)], LINE, tmp_path / "line.csv")
    assert intake(tmp_path, log, contract, machine, "--name", "line-demo") == 1
    assert str(today - timedelta(days=1)) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("example", "log", "more"),
    [
        ("toyota-drive", ("can", "comma2k19_segment"), ("can", "dbc", "toyota_nodsu_pt.dbc")),
        ("ladle-heat", ("plant", "ladle_heat", "7654321.csv"), ()),
    ],
)
def test_the_real_logs_come_in(tmp_path: Path, example: str, log: tuple[str, ...], more: tuple[str, ...]) -> None:
    machine = load_toml(ROOT / "examples" / f"{example}.toml", Embodiment)
    path, dbc = shared_data(*log), ["--dbc", str(shared_data(*more))] if more else []
    contract, file = member(tmp_path, machine, example)
    assert intake(tmp_path, path, contract, file, *dbc) == 0


def test_links_in_a_circle_and_pipes_are_one_message(tmp_path: Path) -> None:
    write_historian([noise(LINE, 0, 20)], LINE, tmp_path / "day.csv")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(LogError, match=r"loop'?: is no path"):
        find_logs(tmp_path)
    (tmp_path / "loop").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LogError, match=r"pipe: no known log format(?s:.*)take it out"):
        find_logs(tmp_path)
    with pytest.raises(LogError, match="pipe: no known log format"):
        find_logs(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("gap-s=nan", "more than 0"),
        ("gap-s=-5", "more than 0"),
        ("gap-s=1e300", "more than 0"),
        ("bus=-1", "0 to 255"),
        ("timezone=Europe", "IANA name"),
        ("timezone=", "IANA name"),
        ("day-first=maybe", "yes or no"),
        ("time", "keys are: bus"),
    ],
)
def test_words_that_are_no_option_are_refused(word: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_options([word])


def test_a_zone_that_is_none_is_one_message_in_the_library_too(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("time,COATING_TOP\n2026-01-05 00:00:00,1\n")
    with pytest.raises(LogError, match="unknown time zone 'Mars/Olympus'"):
        zone_of("Mars/Olympus")


def test_large_logs_take_a_process_a_core(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with (tmp_path / "logs" / "a.csv").open("wb") as f:
        f.truncate(63_000_000)
    asked = Intake(tmp_path / "logs", tmp_path / "machine.toml")
    assert workers_for(asked) == Workers(1)
    with (tmp_path / "logs" / "b.csv").open("wb") as f:
        f.truncate(2_000_000)
    assert workers_for(asked) == Workers(0) and workers_for(replace(asked, jobs=3)) == Workers(3)
    assert workers_for(replace(asked, path=tmp_path / "logs" / "b.csv", engine="ray")) == Workers(0, "ray")
