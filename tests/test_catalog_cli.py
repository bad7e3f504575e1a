"""`hagane catalog`: every verb as a person sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hagane.catalog import stored
from hagane.catalog.contents import disk_bytes
from hagane.catalog.episode_io import read_episode
from hagane.catalog.split import load_split
from hagane.cli import main
from hagane.cli.catalog import Ls, Show, Verify
from hagane.cli.catalog_look import DiffOptions, SampleOptions
from hagane.cli.catalog_sets import DuplicatesOptions, ExportOptions, SplitOptions
from tests.catalog_fixture import ARM, ROAD, Home, episodes, filled, make_home
from tests.curation_fixture import reach


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(["catalog", *args])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_ls_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, {"arm": 5, "mill": 3})
    code, out, _ = run(capsys, "ls", "--home", str(tmp_path))
    assert code == 0 and "arm-demo" in out and "member-steel" in out
    code, out, _ = run(capsys, "show", "arm-demo", "--home", str(tmp_path))
    assert code == 0
    for word in ("5 episodes", "member-robots", "until 2099-12-31", "5 success", "2 stuck", "joints.2", "rad", "grip"):
        assert word in out, word


def test_show_asks_the_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = make_home(tmp_path)
    home.catalog().add("arm-demo", ARM, home.contract(ARM, purposes=("anchor",)), episodes(ARM, 2))
    code, _, err = run(capsys, "show", "arm-demo", "--home", str(tmp_path))
    assert code == 1 and "purpose 'view' is not granted" in err and "next:" in err
    code, _, err = run(capsys, "show", "nope", "--home", str(tmp_path))
    assert code == 1 and "no data set 'nope'" in err and "arm-demo" in err


def test_verify_names_the_damaged_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, {"arm": 3, "road": 2})
    code, out, _ = run(capsys, "verify", "--home", str(tmp_path))
    assert code == 0 and out.count("are right") == 2
    path = tmp_path / "catalog" / "sets" / "road-demo" / "data" / "chunk-000" / "file-000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    code, out, _ = run(capsys, "verify", "--home", str(tmp_path))
    assert code == 1 and str(path) in out and "arm-demo" in out
    assert run(capsys, "verify", "arm-demo", "--home", str(tmp_path))[0] == 0


def test_unfinished_and_unusable_sets_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, {"arm": 3})
    (tmp_path / "catalog" / "staging" / "mill-demo").mkdir(parents=True)
    (tmp_path / "catalog" / "sets" / "arm-demo" / "hagane" / "manifest.json").unlink()
    code, out, _ = run(capsys, "ls", "--home", str(tmp_path))
    assert code == 1 and "mill-demo: adding it was interrupted" in out and "arm-demo: cannot be used" in out


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys)[0] == 0
    code, _, err = run(capsys, "lss")
    assert code == 1 and "ls | show | sample | diff | duplicates | split | export | verify" in err
    for verb in ("sample", "diff", "export"):
        with pytest.raises(SystemExit):
            main(["catalog", verb, "--help"])


@pytest.mark.parametrize(
    "options", [Ls, Show, Verify, SampleOptions, DiffOptions, DuplicatesOptions, SplitOptions, ExportOptions]
)
def test_no_verb_has_more_than_twelve_flags(options: type) -> None:
    assert len(fields(options)) <= 12


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Two sets of the arm, the second with a copy of an episode of the first; one of the road that nobody may view."""
    made = make_home(tmp_path)
    catalog, runs = made.catalog(), list(episodes(ARM, 12))
    terms = made.contract(ARM, "arm-a", "arm-b", purposes=("view", "export"))
    catalog.add("arm-a", ARM, terms, runs[:8])
    catalog.add("arm-b", ARM, terms, [replace(runs[3], id="arm/copy/000000"), *runs[8:]])
    catalog.add("road-demo", ROAD, made.contract(ROAD, purposes=("anchor",)), episodes(ROAD, 2))
    return made


def test_ls_sums_filters_and_speaks_json(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--home", str(home.folder))
    code, out, _ = run(capsys, "ls", *where)
    assert code == 0 and "3 data sets" in out and "kB" in out and "vehicle" in out
    told = json.loads(run(capsys, "ls", "--json", *where)[1])
    assert told["total"]["episodes"] == 15 == sum(d["episodes"] for d in told["datasets"])
    sizes = {
        p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in (home.folder / "catalog/sets").iterdir()
    }
    assert {d["name"]: d["bytes"] for d in told["datasets"]} == {p.name: n for p, n in sizes.items()}
    assert all(d["cache_bytes"] > 0 for d in told["datasets"])
    for flags, names in ((("--owner", "member-cars"), ["road-demo"]), (("--domain", "robot"), ["arm-a", "arm-b"])):
        assert [d["name"] for d in json.loads(run(capsys, "ls", "--json", *flags, *where)[1])["datasets"]] == names
    code, _, err = run(capsys, "ls", "--domain", "boat", *where)
    assert code == 1 and "no domain 'boat'" in err and "vehicle" in err


def test_ls_lists_a_set_whose_contract_does_not_hold(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    sig = home.folder / "catalog" / "sets" / "arm-a" / "hagane" / "contract.toml.sig"
    sig.unlink()
    code, out, _ = run(capsys, "ls", "--home", str(home.folder))
    assert code == 1 and "not verified" in out and "arm-a: cannot be used" in out


def test_show_lists_episodes_and_marks_the_jerky_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = make_home(tmp_path)
    machine = replace(ARM, rate_hz=50.0)
    runs = [reach(machine, k, steps=90, tremor=0.1 if k == 4 else 0.0) for k in range(9)]
    home.catalog().add("arm-demo", machine, home.contract(machine), runs)
    code, out, _ = run(capsys, "show", "arm-demo", "--episodes", "--home", str(tmp_path))
    marked = [line.split()[0] for line in out.splitlines() if " jerky " in line]
    assert code == 0 and marked == ["arm/reach/000004"] and "-1.4" in out


def test_sample_shows_and_writes_the_same_steps(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("--home", str(home.folder))
    code, out, _ = run(capsys, "sample", "arm-a", "--n", "4", *where)
    assert code == 0 and out.count(", step ") == 4 and "rad" in out and "grip" in out
    assert (
        out
        == run(capsys, "sample", "arm-a", "--n", "4", *where)[1]
        != run(capsys, "sample", "arm-a", "--n", "4", "--seed", "1", *where)[1]
    )
    with monkeypatch.context() as patch:
        opened: list[str] = []
        patch.setattr(
            stored, "read_episode", lambda fact, *more: opened.append(fact["id"]) or read_episode(fact, *more)
        )
        assert run(capsys, "sample", "arm-a", "--n", "1", *where)[0] == 0
        assert len(opened) == 1  # of a large set, only what is shown is read
    paths = [home.folder / f"s.{kind}" for kind in ("parquet", "jsonl")]
    for path in paths:
        assert run(capsys, "sample", "arm-a", "--n", "4", "--out", str(path), *where)[0] == 0
    rows = pq.read_table(paths[0]).to_pylist()
    assert rows == [json.loads(line) for line in paths[1].read_text().splitlines()]
    by_id = {e.id: e for e in episodes(ARM, 8)}
    for row in rows:
        want = by_id[row["episode"]].streams["joints"].values[row["step"]].tolist()
        assert row["joints"] == want and row["joints.valid"] is True and row["task"].startswith("task")
    # more than there are: every step once
    every = home.folder / "all.parquet"
    run(capsys, "sample", "arm-b", "--n", "100000", "--out", str(every), *where)
    keys = [(r["episode"], r["step"]) for r in pq.read_table(every).to_pylist()]
    assert len(keys) == len(set(keys)) == home.catalog().record("arm-b").steps


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("sample", "nope"), "no data set 'nope'"),
        (("sample", "../arm-a"), "no data set '../arm-a'"),
        (("sample", "road-demo"), "purpose 'view' is not granted"),
        (("sample", "arm-a", "--n", "0"), "cannot draw 0 samples"),
        (("sample", "arm-a", "--out", "s.csv"), "cannot write samples as .csv"),
        (("sample", "arm-a", "--out", "site.toml"), "cannot write samples as .toml"),
        (("diff", "arm-a", "nope"), "no data set 'nope'"),
        (("diff", "arm-a", "road-demo"), "purpose 'view' is not granted"),
        (("duplicates", "arm-a", "arm-a"), "named twice"),
        (("duplicates", "nope"), "no data set 'nope'"),
        (("duplicates", "arm-a", "--purpose", "serve"), "purpose 'serve' is not granted"),
        (("split", "arm-a", "--out", "x.toml", "--share", "1.5"), "between 0 and 1"),
        (("split", "road-demo", "--out", "x.toml"), "purpose 'view' is not granted"),
        (("split", "arm-a", "--out", "no/such/folder/x.toml", "--share", "0.5"), "the split cannot be written"),
        (("export", "nope", "--to", "lerobot", "--out", "o"), "no data set 'nope'"),
        (("export", "road-demo", "--to", "lerobot", "--out", "o"), "purpose 'export' is not granted"),
        (("export", "arm-a", "--to", "parquet", "--out", "catalog"), "the folder exists"),
    ],
)
def test_bad_input_is_one_message_and_writes_nothing(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(home.folder)
    before = sorted(p for p in home.folder.iterdir())
    code, _, err = run(capsys, *args)
    assert code == 1 and words in err and "Traceback" not in err and err.count("\n  next: ") <= 1
    assert sorted(p for p in home.folder.iterdir()) == before


def test_diff_tells_by_its_exit_code(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--home", str(home.folder))
    code, out, _ = run(capsys, "diff", "arm-a", "arm-b", *where)
    assert code == 1 and "machine: the same" in out and "shared: 0 episodes in every bit, 1 logs" in out
    assert run(capsys, "diff", "arm-a", "arm-a", *where)[0] == 0
    code, out, _ = run(capsys, "diff", "arm-a", "arm-b", "--json", *where)
    told = json.loads(out)
    assert code == 1 and told["same"] is False and len(told["drift"]) == 6 and told["shared"]["sources"] == 1


def test_duplicates_and_split_keep_the_copy_on_one_side(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--home", str(home.folder))
    code, out, _ = run(capsys, "duplicates", "arm-a", "arm-b", *where)
    assert code == 1 and "1 pairs the same, 0 nearly; 1 episodes could be left out" in out
    assert json.loads(run(capsys, "duplicates", "arm-a", "arm-b", "--json", *where)[1])[0]["kind"] == "same"
    assert run(capsys, "duplicates", "arm-a", *where)[0] == 0
    for seed in range(6):
        path = home.folder / f"split-{seed}.toml"
        flags = ("--share", "0.4", "--seed", str(seed), "--out", str(path))
        assert run(capsys, "split", "arm-a", "arm-b", *flags, *where)[0] == 0
        held = load_split(path).held
        assert (("arm-a", "arm/case/000003") in held) == (("arm-b", "arm/copy/000000") in held)
    code, _, err = run(capsys, "split", "arm-a", "--share", "0.4", "--seed", "3", "--out", str(path), *where)
    assert code == 1 and "exists and is not overwritten" in err


@pytest.mark.parametrize("to", ["lerobot", "parquet"])
def test_export_says_what_left(home: Home, capsys: pytest.CaptureFixture[str], to: str) -> None:
    out_folder = home.folder / "out"
    code, out, _ = run(capsys, "export", "arm-a", "--to", to, "--out", str(out_folder), "--home", str(home.folder))
    assert code == 0 and "contract of member-robots" in out and "until 2099-12-31" in out
    assert (out_folder / "croissant.json").exists() and (out_folder / "contract.toml.sig").exists()


def test_ls_lists_the_others_beside_a_damaged_set(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    path = home.folder / "catalog" / "sets" / "arm-b" / "hagane" / "embodiment.toml"
    path.write_bytes(path.read_bytes() + b"#")
    code, out, _ = run(capsys, "ls", "--json", "--home", str(home.folder))
    told = json.loads(out)
    assert code == 1 and [d["name"] for d in told["datasets"]] == ["arm-a", "road-demo"]
    assert str(path) in told["problems"]["arm-b"]


def test_nothing_of_a_set_is_told_without_its_contract(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--home", str(home.folder))
    code, out, err = run(capsys, "show", "road-demo", *where)
    assert code == 1 and "purpose 'view' is not granted" in err and "outcomes" not in out
    path = home.folder / "split.toml"  # it names episodes
    code, _, err = run(capsys, "split", "arm-a", "road-demo", "--no-copies", "--out", str(path), *where)
    assert code == 1 and "purpose 'view' is not granted" in err and not path.exists()


def test_sizes_of_a_folder_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache is being built by another process while `ls` sums: files go between listing and looking."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "stays").write_bytes(b"123")
    (tmp_path / "a" / "goes").write_bytes(b"12345")
    real = os.walk

    def walk(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for found in real(top):
            (tmp_path / "a" / "goes").unlink(missing_ok=True)
            yield found

    monkeypatch.setattr(os, "walk", walk)
    assert disk_bytes(tmp_path) == 3 and disk_bytes(tmp_path / "none") == 0


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    verb = [sys.executable, "-m", "hagane", "catalog", "--help"]
    child = subprocess.Popen(verb, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    said = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 141 and said == ""


def test_what_the_system_refuses_is_one_message(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.exists

    def refuses(self: Path) -> bool:
        if self.name == "kept.jsonl":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "exists", refuses)
    code, _, err = run(capsys, "sample", "arm-a", "--out", "kept.jsonl", "--home", str(home.folder))
    assert code == 1 and "kept.jsonl: Permission denied" in err and "next:" in err
