"""LeRobot v3.0 sets: written, read back, laid out as the peer lays them out, and safe in a crash."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hagane.intake import read_logs
from hagane.intake.lerobot import read, sniff
from hagane.intake.lerobot_journal import Journal
from hagane.intake.lerobot_layout import Feature
from hagane.intake.lerobot_rows import write_episodes
from hagane.intake.lerobot_write import LeRobotWriter
from hagane.intake.picture import PNG, plain_pictures
from hagane.terms import APPLIED, Channel, ConfigError, CorruptError, Embodiment, LogError, StoreError
from tests.catalog_fixture import ARM, MILL, ROAD, episode, episodes

STATE = {"observation.state": Feature("float32", (2,), ("x", "y")), "action": Feature("float32", (1,))}


def rows(steps: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "observation.state": rng.normal(size=(steps, 2)).astype("f4"),
        "action": rng.normal(size=steps).astype("f4"),
    }


@pytest.mark.parametrize("machine", [ARM, ROAD, MILL], ids=lambda m: m.name)
def test_written_and_read_back(tmp_path: Path, machine: Embodiment) -> None:
    made = list(episodes(machine, 4))
    write_episodes(tmp_path / "set", machine, made)
    assert sniff(tmp_path / "set") and not sniff(tmp_path)
    back = list(read_logs(tmp_path / "set", machine))
    assert [e.id for e in back] == [f"set/{n:06d}" for n in range(4)]
    assert len({e.digest for e in back}) == 4 and all(len(e.digest) == 64 for e in back)
    for a, b in zip(made, back, strict=True):
        assert b.task == a.task
        for name, s in b.streams.items():
            t = a.streams[name]
            mask = t.valid.reshape(t.valid.shape + (1,) * (t.values.ndim - t.valid.ndim))
            np.testing.assert_array_equal(s.times_ns, t.times_ns)
            np.testing.assert_array_equal(s.valid, t.valid)
            np.testing.assert_array_equal(s.values, np.where(mask, t.values, 0))
        assert set(b.streams) == {n for n in a.streams if n != "word"}


def test_layout_is_the_peers(tmp_path: Path) -> None:
    made = list(episodes(ARM, 3))
    root = write_episodes(tmp_path / "set", ARM, made)
    info = json.loads((root / "meta" / "info.json").read_text())
    lengths = [len(e.streams["hand"]) for e in made]
    assert info["codebase_version"] == "v3.0" and info["fps"] == 20 and info["splits"] == {"train": "0:3"}
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, sum(lengths), 2)
    assert info["data_path"] == "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    assert info["features"]["action"]["shape"] == [3] and info["features"]["timestamp"]["shape"] == [1]
    assert info["features"]["action"]["names"] == ["hand.0", "hand.1", "grip"]
    data = pq.ParquetFile(root / "data" / "chunk-000" / "file-000.parquet")
    assert [data.metadata.row_group(i).num_rows for i in range(data.num_row_groups)] == lengths
    assert data.metadata.row_group(0).column(0).compression == "SNAPPY"
    features = json.loads(data.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert features["index"] == {"dtype": "int64", "_type": "Value"}
    assert features["action"] == {"feature": {"dtype": "float32", "_type": "Value"}, "length": 3, "_type": "List"}
    table = data.read()
    assert table.column("index").to_pylist() == list(range(sum(lengths)))
    np.testing.assert_allclose(
        table.column("timestamp").to_numpy(), table.column("frame_index").to_numpy() / 20, atol=1e-6
    )
    tasks = pq.read_table(root / "meta" / "tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]
    assert dict(zip(tasks.column(1).to_pylist(), tasks.column(0).to_pylist(), strict=True)) == {
        "task 0": 0,
        "task 1": 1,
    }
    meta = pq.read_table(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    assert [m["length"] for m in meta] == lengths and meta[1]["dataset_from_index"] == lengths[0]
    first = made[0].streams["joints"].values
    for stat, want in {"mean": first.mean(0), "q99": np.quantile(first, 0.99, axis=0), "max": first.max(0)}.items():
        np.testing.assert_allclose(meta[0][f"stats/observation.joints/{stat}"], want, rtol=1e-5)


def test_statistics_of_a_set_count_valid_rows_only(tmp_path: Path) -> None:
    made = list(episodes(ROAD, 40))
    root = write_episodes(tmp_path / "set", ROAD, made)
    stats = json.loads((root / "meta" / "stats.json").read_text())["observation.agents"]
    values = np.concatenate([e.streams["agents"].values.reshape(-1, 15) for e in made])
    valid = np.concatenate([e.streams["agents"].valid for e in made]).repeat(3, 1)
    for k in range(15):
        column = values[valid[:, k], k]
        assert stats["mean"][k] == pytest.approx(column.mean(), abs=1e-5)
        assert stats["std"][k] == pytest.approx(column.std(), rel=1e-4)
        assert stats["q99"][k] == pytest.approx(np.quantile(column, 0.99), rel=0.03)
    assert len(stats["count"]) == 1


def test_columns_are_found_by_their_source(tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path / "set", STATE, 10)
    given = rows(6)
    writer.add_episode(given, "go")
    writer.finish()

    def machine(*sources: str, act: tuple[str, ...] = ()) -> Embodiment:
        seen = Channel("pos", shape=(2,), source=sources)
        return Embodiment("m", "robot", "member-robots", 10.0, 4, (seen,), (Channel("u", source=act),))

    for sources in (("observation.state",), ("observation.state.x", "observation.state.1")):
        (e,) = read(tmp_path / "set", machine(*sources))
        np.testing.assert_array_equal(e.streams["pos"].values, given["observation.state"])
        np.testing.assert_array_equal(e.streams["u"].values[:, 0], given["action"])
        assert e.streams["pos"].times_ns.tolist() == [i * 100_000_000 for i in range(6)] and e.task == "go"
    (e,) = read(tmp_path / "set", machine("observation.state.y", "observation.state.x", act=("observation.state.y",)))
    np.testing.assert_array_equal(e.streams["pos"].values, given["observation.state"][:, ::-1])
    np.testing.assert_array_equal(e.streams["u"].values[:, 0], given["observation.state"][:, 1])
    with pytest.raises(LogError, match=r"no feature for channel 'pos'(.|\n)*did you mean observation.state"):
        list(read(tmp_path / "set", machine("observation.sate")))
    with pytest.raises(LogError, match="correct `shape` or `source`"):
        list(read(tmp_path / "set", machine("observation.state.x")))


def test_stale_samples_are_recorded_once(tmp_path: Path) -> None:
    """A sensor slower than the control rate: its ages come back as times, not as repeated samples."""
    slow = episode(ARM, 0, 12)
    joints = slow.streams["joints"]
    pick = slice(0, None, 4)
    cut = replace(joints, times_ns=joints.times_ns[pick], values=joints.values[pick], valid=joints.valid[pick])
    made = replace(slow, streams={**slow.streams, "joints": cut})
    write_episodes(tmp_path / "set", ARM, [made])
    (back,) = read(tmp_path / "set", ARM)
    np.testing.assert_array_equal(back.streams["joints"].times_ns, cut.times_ns)
    np.testing.assert_array_equal(back.streams["joints"].values, cut.values)


def test_pictures_come_back(tmp_path: Path) -> None:
    import av

    features = {"observation.cam": Feature("image", (16, 24, 3)), "action": Feature("float32", (2,))}
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), np.uint8)
    writer = LeRobotWriter(tmp_path / "set", features, 10)
    writer.add_episode({"observation.cam": images, "action": np.zeros((5, 2), "f4")}, "look")
    writer.finish()
    cam = Channel("cam", kind="image", shape=(16, 24, 3), role="camera")
    machine = Embodiment("m", "robot", "member-robots", 10.0, 4, (cam,), (Channel("u", shape=(2,)),))
    (e,) = read(tmp_path / "set", machine)
    kept = e.streams["cam"].values
    assert all(isinstance(p, bytes) and p.startswith(PNG) for p in kept)  # as they lie in the file
    np.testing.assert_array_equal(plain_pictures(kept), images)
    stats = json.loads((tmp_path / "set" / "meta" / "stats.json").read_text())["observation.cam"]
    np.testing.assert_allclose(np.ravel(stats["mean"]), images.reshape(-1, 3).mean(0) / 255)
    assert np.shape(stats["std"]) == (3, 1, 1)

    # the same set with a video: what the peer writes
    smooth = np.stack([np.full((16, 24, 3), 40 * i, np.uint8) for i in range(5)])
    path = tmp_path / "set" / "videos" / "observation.cam" / "chunk-000" / "file-000.mp4"
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 24, 16, "yuv420p"
        for image in np.concatenate([smooth[:2], smooth]):  # this episode begins at 0.2 s of the file
            out.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(video.encode(None))
    as_video(tmp_path / "set", 0.2)
    (e,) = read(tmp_path / "set", machine)
    assert np.abs(e.streams["cam"].values.astype(int) - smooth).max() < 12
    as_video(tmp_path / "set", 3.0)
    with pytest.raises(LogError, match="no frame"):
        list(read(tmp_path / "set", machine))


def as_video(root: Path, start_s: float) -> None:
    """Rewrite the metadata so that the camera is a video that begins at start_s."""
    info = json.loads((root / "meta" / "info.json").read_text())
    info["features"]["observation.cam"]["dtype"] = "video"
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    (root / "meta" / "info.json").write_text(json.dumps(info))
    path = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path).to_pylist()
    key = "videos/observation.cam/"
    for row in table:
        row |= {key + "chunk_index": 0, key + "file_index": 0, key + "from_timestamp": start_s}
    pq.write_table(pa.Table.from_pylist(table), path)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda r: (r / "meta" / "info.json").write_text("{"), "info.json cannot be read"),
        (lambda r: swap(r / "meta" / "info.json", '"v3.0"', '"v1.6"'), "LeRobot v1.6(.|\n)*convert"),
        (lambda r: swap(r / "meta" / "info.json", "data/chunk", "../data/chunk"), "path template"),
        (lambda r: swap(r / "meta" / "info.json", '"total_frames": ', '"total_frames": 1'), "rows, the metadata says"),
        (lambda r: cut(r / "data" / "chunk-000" / "file-000.parquet"), "file-000.parquet: a Parquet file is truncated"),
        (lambda r: (r / "data" / "chunk-000" / "file-000.parquet").unlink(), "a Parquet file is missing"),
        (lambda r: cut(r / "meta" / "tasks.parquet"), "tasks.parquet: a Parquet file is truncated"),
        (lambda r: (r / "meta" / "episodes" / "chunk-000" / "file-000.parquet").unlink(), "not finished"),
        (lambda r: swap(r / "meta" / "info.json", '"float32"', '"float16"'), "not as LeRobot describes"),
    ],
)
def test_damaged_sets_get_one_message(tmp_path: Path, break_it: object, message: str) -> None:
    root = write_episodes(tmp_path / "set", ARM, episodes(ARM, 2))
    break_it(root)  # type: ignore[operator]
    with pytest.raises(LogError, match=message):
        next(read(root, ARM))


def swap(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


KILLED = """
import os, signal, sys
from pathlib import Path
from hagane.intake import lerobot_write
from hagane.intake.lerobot_write import LeRobotWriter
from tests.test_lerobot import STATE, rows
writer = LeRobotWriter(Path(sys.argv[1]), STATE, 10)
for n in range(writer.episodes, 5):
    writer.add_episode(rows(4 + n, n), f"task {n}")
    if sys.argv[2] == str(n):
        os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "finish":
    lerobot_write.sync_folder = lambda path: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "meta":
    lerobot_write.replace_file = lambda path, data: os.kill(os.getpid(), signal.SIGKILL)
writer.finish()
"""


@pytest.mark.parametrize(("when", "kept"), [("2", 3), ("meta", 5), ("finish", 5)])
def test_a_killed_recording_keeps_its_closed_episodes(tmp_path: Path, when: str, kept: int) -> None:
    root = tmp_path / "set"
    args = [sys.executable, "-c", KILLED, str(root), when]
    done = subprocess.run(args, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if when == "finish":  # everything was in place but for the tidying up
        assert json.loads((root / "meta" / "info.json").read_text())["total_episodes"] == 5
        return
    assert not (root / "meta").exists()
    writer = LeRobotWriter(root, STATE, 10)
    assert writer.episodes == kept
    for n in range(kept, 5):
        writer.add_episode(rows(4 + n, n), f"task {n}")
    writer.finish()
    table = pq.read_table(root / "data" / "chunk-000" / "file-000.parquet")
    np.testing.assert_array_equal(
        table.column("action").to_numpy(), np.concatenate([rows(4 + n, n)["action"] for n in range(5)])
    )
    with pytest.raises(StoreError, match="finished LeRobot set lies here"):
        LeRobotWriter(root, STATE, 10)


def test_a_torn_record_is_cut_off_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    for n in range(4):
        journal.append(bytes([n]) * 100)
    journal.close()
    whole = path.read_bytes()
    for torn in range(len(whole) - 111, len(whole)):
        path.write_bytes(whole[:torn])
        again = Journal(path)
        assert list(again.records()) == [bytes([n]) * 100 for n in range(3)]
        again.append(b"new")
        again.close()
        assert list(Journal(path).records())[-1] == b"new"
    path.write_bytes(whole[:60] + b"\xff" + whole[61:])
    with pytest.raises(CorruptError, match="record 0"):
        Journal(path)
    path.write_bytes(b"something else entirely")
    with pytest.raises(CorruptError, match="no journal"):
        Journal(path)


def test_what_the_writer_refuses(tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path / "set", STATE, 10)
    for bad, message in [
        ({"action": np.zeros(3)}, "no feature 'observation.state'"),
        ({**rows(3), "action": np.zeros(4, "f4")}, "differ in length"),
        ({**rows(3), "observation.state": np.zeros((3, 5), "f4")}, r"shape \(5,\), not \(2,\)"),
    ]:
        with pytest.raises(ConfigError, match=message):
            writer.add_episode(bad, "t")
    assert writer.episodes == 0
    with pytest.raises(StoreError, match="no episode"):
        writer.finish()
    for features in ({}, {"a/b": Feature("float32")}, {"index": Feature("int64")}):
        with pytest.raises(ConfigError):
            LeRobotWriter(tmp_path / "other", features, 10)
    with pytest.raises(ConfigError, match="flatten"):
        Feature("float32", (2, 3))


def test_applied_actions_have_their_own_feature(tmp_path: Path) -> None:
    made = episode(ARM, 1)
    write_episodes(tmp_path / "set", ARM, [made])
    (back,) = read(tmp_path / "set", ARM)
    np.testing.assert_array_equal(back.streams["grip" + APPLIED].values, made.streams["grip" + APPLIED].values)
    assert {p.name for p in (tmp_path / "set").iterdir()} == {"data", "meta"}
