"""`hagane doctor` as a person runs it: data sets under permit, logs before intake, JSON, exit codes; and metadata
against rows and videos, each count planted wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hagane.catalog.counts import count_set
from hagane.catalog.doctor import examine_set
from hagane.catalog.symptoms import ADVICE
from hagane.cli import main
from hagane.cli.doctor import DoctorOptions
from hagane.intake import check_episode
from hagane.intake.historian_write import write_historian
from hagane.intake.lerobot_rows import write_episodes
from hagane.terms import Finding, digest_file, digest_value, dump_toml
from hagane.terms.episode import FindingKind
from tests.catalog_fixture import ARM, Home, episodes, make_home
from tests.conftest import shared_data
from tests.doctor_cases import PICKER, clean, cut, diagnose, edit, picker
from tests.intake_cases import LINE, noise


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main(["doctor", *map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = make_home(tmp_path / "site")
    sick = edit(clean("mill")[1], "coating", lambda s: cut(s, np.r_[0:200, 260:600]))
    come_in = [check_episode(e, LINE) for e in (clean("mill")[0], sick)]
    home.catalog().add("line", LINE, home.contract(LINE, "line"), come_in)
    return home


def test_a_data_set(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "d.json"
    code, out, _ = run(capsys, "line", "--home", home.folder, "--json", report, "--each")
    assert code == 1  # 60 of 1140 samples are missing: more than 5%
    assert "2 episodes" in out and "serious" in out and "missing" in out and "mill/000001 at 199.000 s" in out
    assert "finding: mill/000001 coating" in out and "not identifiable" in out
    told = json.loads(report.read_text())
    assert told["version"] == 1 and told["serious"] is True and told["source"] == "line" and len(told["digest"]) == 64
    (symptom,) = told["symptoms"]
    assert list(symptom) == [
        "severity", "kind", "channel", "episodes", "count", "share", "episode", "time_ns", "detail", "advice",
    ]  # fmt: skip
    assert (symptom["kind"], symptom["count"], symptom["time_ns"]) == ("missing", 60, 199 * 10**9)
    assert {"channels", "lags", "lengths_s", "outcomes", "findings", "findings_left_out"} <= set(told)
    assert [f["count"] for f in told["findings"]] == [60]


def test_a_clean_set_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = make_home(tmp_path)
    home.catalog().add("line", LINE, home.contract(LINE, "line"), clean("mill"))
    code, out, _ = run(capsys, "line", "--home", tmp_path)
    assert code == 0 and "nothing found" in out


def test_the_contract_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = make_home(tmp_path)
    home.catalog().add("arm-demo", ARM, home.contract(ARM, purposes=("anchor",)), episodes(ARM, 2))
    page = tmp_path / "p.html"
    for verb in (["doctor", "arm-demo"], ["catalog", "show", "arm-demo"]):
        code = main([*verb, "--home", str(tmp_path), "--html", str(page)])
        assert code == 1 and "purpose 'view' is not granted" in capsys.readouterr().err and not page.exists()


def test_a_log_before_it_comes_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = tmp_path / "line.toml"
    machine.write_text(dump_toml(LINE))
    log = write_historian(iter([noise(LINE, 1, 300)]), LINE, tmp_path / "h.csv")
    code, out, _ = run(capsys, log, "--embodiment", machine)
    assert code == 0 and "1 episode" in out and "nothing found" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["h.csv", "line.toml"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nope"], "no data set 'nope'"),
        (["line", "--keep-whole"], "are for a log"),
        (["absent.csv", "--embodiment", "{machine}"], "no such file or folder"),
        (["{machine}", "--home", "{away}"], "say with --embodiment"),
        (["line", "--json", "/nowhere/x.json"], "cannot be written"),
        (["line", "--html", "/nowhere/x.html"], "cannot write the page"),
    ],
)
def test_one_message_for_bad_input(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    machine = tmp_path / "line.toml"
    machine.write_text(dump_toml(LINE))
    filled = [a.format(machine=machine, away=tmp_path) for a in args]
    where = [] if "--home" in filled else ["--home", str(home.folder)]
    code, _, err = run(capsys, *filled, *where)
    assert code == 1 and words in err and "next:" in err and "Traceback" not in err


def test_at_most_twelve_flags_and_advice_for_all() -> None:
    assert len(fields(DoctorOptions)) <= 12
    assert all(text and not text.endswith(".") for text in ADVICE.values())
    assert set(get_args(FindingKind)) - {"unmapped"} <= set(ADVICE)  # that one is told as absent streams


def test_notes_and_bad_quality_have_rows_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = make_home(tmp_path)
    told = [
        e.with_findings(
            Finding("note", e.id, "*", 0, 0, "stamps carry no zone"),
            Finding("bad-quality", e.id, "coating", 5 * 10**9, 2, "2 of 600 have the status Bad"),
        )
        for e in clean("mill")
    ]
    home.catalog().add("line", LINE, home.contract(LINE, "line"), told)
    code, out, _ = run(capsys, "line", "--home", tmp_path)
    assert code == 0 and "1 warning, 1 note" in out
    assert "no fault: see that it is meant so" in out and "why the source doubts them" in out


# metadata: a LeRobot folder, with one description wrong at a time


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_episodes(tmp_path / "set", ARM, episodes(ARM, 4))


def info(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        path = root / "meta" / "info.json"
        told = json.loads(path.read_text())
        change(told)
        path.write_text(json.dumps(told))

    return plant


def listed(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        (path,) = (root / "meta" / "episodes").glob("*/*.parquet")
        pq.write_table(change(pq.read_table(path)), path)

    return plant


def rows(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        (path,) = (root / "data").glob("*/*.parquet")
        pq.write_table(change(pq.read_table(path)), path)

    return plant


def longer(table: pa.Table) -> pa.Table:
    lengths = table.column("length").to_pylist()
    lengths[1] += 2
    return table.set_column(table.column_names.index("length"), "length", pa.array(lengths))


def slower(table: pa.Table) -> pa.Table:
    stamps = pa.array((2 * table.column("timestamp").to_numpy()).astype(np.float32))
    return table.set_column(table.column_names.index("timestamp"), "timestamp", stamps)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (info(lambda t: t.update(total_episodes=5)), "info.json says 5 episodes, meta/episodes lists 4"),
        (info(lambda t: t.update(total_frames=1)), "info.json says 1 frames"),
        (info(lambda t: t.update(total_tasks=9)), "info.json says 9 tasks"),
        (info(lambda t: t.update(fps=10)), "does not fit 10 a second"),
        (info(lambda t: t.pop("data_path")), "cannot be followed"),
        (info(lambda t: t.update(features=[])), "cannot be followed"),
        (info(lambda t: t.update(fps=0)), "cannot be followed"),
        (info(lambda t: t.update(total_frames="many")), "cannot be followed"),
        (info(lambda t: t.update(data_path=t["data_path"].replace("data/", "out/"))), "leads out of the folder"),
        (listed(longer), "episode 1: 23 told, 21 there"),
        (rows(lambda t: t.slice(0, t.num_rows - 3)), "episode 3: 23 told, 20 there"),
        (rows(slower), "0.100 s does not fit 20 a second"),
    ],
)
def test_metadata_that_does_not_agree(folder: Path, tmp_path: Path, plant: Callable[[Path], None], words: str) -> None:
    assert count_set(folder) == []
    (folder / "out").symlink_to(tmp_path)
    plant(folder)
    found = count_set(folder)
    assert found and {(s.kind, s.severity) for s in found} == {("metadata", "serious")}
    assert any(words in s.detail for s in found), [s.detail for s in found]


def test_a_data_file_that_is_missing_and_folders_of_other_kinds(folder: Path, tmp_path: Path) -> None:
    (path,) = (folder / "data").glob("*/*.parquet")
    path.unlink()
    assert ["is missing: 4 episodes" in s.detail for s in count_set(folder)] == [True]
    assert count_set(tmp_path) == []


def test_frames_of_a_video(folder: Path) -> None:
    key = "observation.cam"
    video = folder / f"videos/{key}/chunk-000/file-000.mp4"
    frames = sum(len(e.streams["hand"]) for e in episodes(ARM, 4))

    def described(table: pa.Table) -> pa.Table:
        for name in ("chunk_index", "file_index"):
            table = table.append_column(f"videos/{key}/{name}", pa.array([0] * len(table)))
        return table

    listed(described)(folder)
    path = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    feature = {"dtype": "video", "shape": [32, 32, 3], "names": None}
    info(lambda t: (t.update(video_path=path), t["features"].update({key: feature})))(folder)
    assert any(f"has 0 frames, its 4 episodes have {frames}" in s.detail for s in count_set(folder))
    write_video(video, frames)
    assert count_set(folder) == []
    write_video(video, frames - 2)
    (s,) = count_set(folder)
    assert f"has {frames - 2} frames" in s.detail and s.count == 2


def write_video(path: Path, frames: int) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=Fraction(20))
        stream.width = stream.height = 32
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), k % 200, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_folder_that_is_refused_is_told_with_what_does_not_agree(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = tmp_path / "arm.toml"
    machine.write_text(dump_toml(ARM))
    info(lambda t: t.update(total_frames=1))(folder)
    code, out, _ = run(capsys, folder, "--embodiment", machine)
    assert code == 1 and "metadata" in out and "refused" in out and "0 episodes" in out


def test_a_stored_set_whose_view_lost_rows(home: Home) -> None:
    assert [s.kind for s in examine_set(home.catalog(), "line").symptoms] == ["missing"]
    root = home.folder / "catalog" / "sets" / "line"
    rows(lambda t: t.slice(0, t.num_rows - 7))(root)
    manifest = root / "hagane" / "manifest.json"  # as a fault of the writer would have it: digests agree
    told = json.loads(manifest.read_text())
    told.pop("sha256")
    for path in (p for p in told["files"] if p.startswith("data/")):
        told["files"][path] = {"sha256": digest_file(root / path), "bytes": (root / path).stat().st_size}
    manifest.write_text(json.dumps({**told, "sha256": digest_value(told)}))
    found = [s for s in examine_set(home.catalog(), "line").symptoms if s.kind == "metadata"]
    assert len(found) == 1 and "593 there" in found[0].detail


@pytest.mark.parametrize("pattern", ["meta/info.json", "meta/episodes/*/*.parquet", "data/*/*.parquet"])
@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"PAR1 no more"), Path.unlink])
def test_a_stored_set_whose_view_is_damaged(
    home: Home, pattern: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = (home.folder / "catalog" / "sets" / "line").glob(pattern)
    damage(path)
    code, out, _ = run(capsys, "line", "--home", home.folder)
    assert code == 1 and "metadata" in out and "2 episodes" in out


def test_pictures_of_a_stored_set_are_checked_again(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    frozen = picker(0, encoded=False)
    values = frozen.streams["wrist"].values.copy()
    values[41:80] = values[40]
    sick = edit(frozen, "wrist", lambda s: type(s)(s.times_ns, values, s.valid))
    catalog = home.catalog()
    catalog.add("picker", PICKER, home.contract(PICKER, "picker"), [sick])  # no check on the way in
    (symptom,) = examine_set(catalog, "picker").symptoms
    assert (symptom.kind, symptom.count) == ("frozen", 39)
    assert [s.kind for s in diagnose(PICKER, [sick]).symptoms] == ["frozen"]


# real logs


def test_the_ladle_heats_energy_is_a_meter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = shared_data("plant", "ladle_heat", "7654321.csv")
    toml = Path(__file__).parents[1] / "examples" / "ladle-heat.toml"
    code, out, _ = run(capsys, log, "--embodiment", toml)
    assert code == 0 and "total" in out and "787 times" in out
    assert "1 warning" in out and "serious" not in out
    # taken for an action, as its header invites one to, it is serious
    text = toml.read_text("utf-8")
    head, meter = text.split('[[observe]]\nname = "energy"')
    meter, rest = meter.split("[[act]]")
    taken = meter.replace('role = "pv"', 'role = "mv"')
    (tmp_path / "taken.toml").write_text(f'{head}[[act]]{rest}\n[[act]]\nname = "energy"{taken}')
    code, out, _ = run(capsys, log, "--embodiment", tmp_path / "taken.toml")
    assert code == 1 and "1 serious" in out and "total" in out


def test_the_drive_is_clean_and_its_yaw_follows_the_wheel(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cantools")
    log = shared_data("can", "comma2k19_segment")
    dbc = shared_data("can", "dbc", "toyota_nodsu_pt.dbc")
    toml = Path(__file__).parents[1] / "examples" / "toyota-drive.toml"
    code, out, _ = run(capsys, log, "--embodiment", toml, "--dbc", dbc)
    assert code == 0 and "nothing found" in out and "KINEMATICS.YAW_RATE" in out and "85 ms" in out
