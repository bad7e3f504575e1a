"""LeRobot v2.1 and v2.0 sets: a file an episode; their videos and pictures; sets that are damaged or lead astray."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hagane.intake import Options, picture, read_logs
from hagane.intake.lerobot import read, sniff
from hagane.intake.picture import JPEG, count_frames, encode_jpeg, plain_pictures, read_video
from hagane.terms import Channel, Embodiment, LogError

H, W, FPS = 32, 48, 10
ARM = Embodiment(
    "m",
    "robot",
    "member-robots",
    FPS,
    4,
    (
        Channel("state", shape=(2,), source=("observation.state",)),
        Channel("top", kind="image", shape=(H, W, 3), role="camera", source=("observation.images.top",)),
    ),
    (Channel("u", shape=(2,)),),
)


def shades(steps: int, seed: int) -> np.ndarray:
    """[steps, H, W, 3] smooth pictures, each of another brightness."""
    base = np.linspace(0, 60, W)[None, :, None] + np.zeros((H, 1, 3)) + 10 * seed
    return np.stack([np.clip(base + 12 * k, 0, 255) for k in range(steps)]).astype(np.uint8)


def write_video(path: Path, images: np.ndarray) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
        for image in images:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))


def numbers(steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(steps, 2)).astype("f4"), rng.normal(size=(steps, 2)).astype("f4")


def write_v21(root: Path, lengths: tuple[int, ...] = (9, 6), camera: str = "video", version: str = "v2.1") -> Path:
    """A set as lerobot 0.3 lays it out, with statistics that are wrong."""
    (root / "meta").mkdir(parents=True)
    key, index = "observation.images.top", 0
    for number, steps in enumerate(lengths):
        state, action = numbers(steps, number)
        columns: dict[str, object] = {
            "observation.state": pa.FixedSizeListArray.from_arrays(state.reshape(-1), 2),
            "action": pa.FixedSizeListArray.from_arrays(action.reshape(-1), 2),
            "timestamp": (np.arange(steps) / FPS).astype("f4"),
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, number),
            "index": np.arange(index, index + steps),
            "task_index": np.full(steps, number % 2),
        }
        if camera == "video":
            write_video(root / f"videos/chunk-000/{key}/episode_{number:06d}.mp4", shades(steps, number))
        else:
            cells = [{"bytes": encode_jpeg(p), "path": f"frame_{k}.jpg"} for k, p in enumerate(shades(steps, number))]
            columns[key] = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        path = root / f"data/chunk-000/episode_{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        index += steps
    scalar = {n: {"dtype": "int64", "shape": [1]} for n in ("frame_index", "episode_index", "index", "task_index")}
    info = {
        "codebase_version": version,
        "total_episodes": len(lengths),
        "total_frames": index,
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": "0:1", "test": f"1:{len(lengths)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["pan", "lift"]}},
            "action": {"dtype": "float32", "shape": [2], "names": None},
            key: {"dtype": camera, "shape": [H, W, 3], "names": ["height", "width", "channels"]},
            "timestamp": {"dtype": "float32", "shape": [1]},
            **scalar,
        },
    }
    (root / "meta" / "info.json").write_text(json.dumps(info))
    episodes = [{"episode_index": n, "tasks": [f"task {n % 2}"], "length": k} for n, k in enumerate(lengths)]
    tasks = [{"task_index": n, "task": f"task {n}"} for n in range(2)]
    wrong = [{"episode_index": n, "stats": {"action": {"mean": [99.0, 99.0]}}} for n in range(len(lengths))]
    names = {"episodes": episodes, "tasks": tasks, "episodes_stats": wrong}
    for name, rows in names.items():
        (root / "meta" / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return root


@pytest.mark.parametrize("version", ["v2.1", "v2.0"])
@pytest.mark.parametrize("camera", ["video", "image"])
def test_a_set_comes_in(tmp_path: Path, camera: str, version: str) -> None:
    root = write_v21(tmp_path / "set", camera=camera, version=version)
    assert sniff(root)
    back = list(read_logs(root, ARM))
    assert [(e.id, e.task, len(e.findings)) for e in back] == [("set/000000", "task 0", 0), ("set/000001", "task 1", 0)]
    assert [e.digest for e in back] == [e.digest for e in read_logs(root, ARM)]
    for n, e in enumerate(back):
        state, action = numbers(len(e.streams["u"]), n)
        np.testing.assert_array_equal(e.streams["state"].values, state)
        np.testing.assert_array_equal(e.streams["u"].values, action)
        assert e.streams["top"].times_ns.tolist() == [k * 100_000_000 for k in range(len(state))]
        images = plain_pictures(e.streams["top"].values)
        assert np.abs(images.astype(int) - shades(len(state), n)).max() < 12  # shades are 12 apart: none is mixed up
        assert (e.streams["top"].values.dtype == object) == (camera == "image")
    (only,) = read_logs(root, ARM, split="test")
    assert only.id == "set/000001"
    with pytest.raises(LogError, match="no split 'val'"):
        list(read_logs(root, ARM, split="val"))


def test_long_videos_are_kept_as_jpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit an episode's frames are JPEG, near to the plain ones, and no more than a few lie in memory."""
    steps = 60
    noise = np.random.default_rng(0).integers(0, 32, (1, 120, 160, 3), np.uint8)
    images = noise + np.arange(0, 3 * steps, 3, dtype=np.uint8).reshape(-1, 1, 1, 1)
    write_video(tmp_path / "v.mp4", images)
    times_s = np.arange(steps) / FPS
    plain = read_video(tmp_path / "v.mp4", times_s, 0.05)
    assert plain.shape == images.shape and plain.dtype == np.uint8
    monkeypatch.setattr(picture, "PLAIN_BYTES", images.nbytes // 2)
    tracemalloc.start()
    kept = read_video(tmp_path / "v.mp4", times_s, 0.05)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept.dtype == object and all(p.startswith(JPEG) for p in kept)
    assert peak < sum(map(len, kept)) + 12 * images[0].nbytes < images.nbytes * 0.6
    assert np.abs(plain_pictures(kept).astype(int) - plain).mean() < 3
    back = read_video(tmp_path / "v.mp4", times_s[::-1].copy(), 0.05)  # unsorted stamps get their own frames
    assert back[0] == kept[-1] and back[-1] == kept[0]


def test_frames_are_found_by_time(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", shades(9, 0))
    assert count_frames(tmp_path / "v.mp4") == 9
    plain = read_video(tmp_path / "v.mp4", np.arange(9) / FPS, 0.05)
    seen = read_video(tmp_path / "v.mp4", np.array([0.51, 0.53, 0.7, 0.78]), 0.05)
    np.testing.assert_array_equal(seen, plain[[5, 5, 7, 8]])
    with pytest.raises(LogError, match=r"no frame at 0\.8700 s \(tolerance 0\.05 s\), the nearest is at 0\.8000 s"):
        read_video(tmp_path / "v.mp4", np.array([0.5, 0.87]), 0.05)


def edit(root: Path, name: str, old: str, new: str) -> None:
    path = root / "meta" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def link_out(root: Path, name: str) -> None:
    path = root / name
    outside = root.parent / f"outside{path.suffix}"
    path.rename(outside)
    path.symlink_to(outside)


VIDEO = "videos/chunk-000/observation.images.top/episode_000001.mp4"
ROWS = "data/chunk-000/episode_000001.parquet"


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda r: (r / "meta" / "episodes.jsonl").unlink(), r"episodes\.jsonl: no such file"),
        (lambda r: (r / "meta" / "episodes.jsonl").write_text(""), r"episodes\.jsonl: the file is empty"),
        (lambda r: edit(r, "episodes.jsonl", '"length": 6}', '"len'), r"episodes\.jsonl:2: is no JSON"),
        (lambda r: edit(r, "episodes.jsonl", '"length": 6', '"length": -6'), r":2: length is -6, not a count"),
        (
            lambda r: edit(r, "episodes.jsonl", '"length": 6', '"length": 7'),
            "the video holds 6 frames, 7 rows refer to it",
        ),
        (lambda r: edit(r, "info.json", '"total_frames": 15', '"total_frames": 16'), "hold 15 rows, the metadata says"),
        (lambda r: edit(r, "info.json", '"total_frames": 15', '"total_frames": 1e400'), "info.json cannot be read"),
        (lambda r: edit(r, "info.json", '"shape": [', '"shape": [1e400, '), "features are not as LeRobot describes"),
        (lambda r: edit(r, "info.json", "data/chunk-", "data\\u0000/chunk-"), "is no path"),
        (lambda r: edit(r, "info.json", "data/chunk-", "../data/chunk-"), "path template"),
        (lambda r: edit(r, "info.json", "{episode_chunk:03d}/e", "{episode_chunk:0999999999d}/e"), "path template"),
        (lambda r: edit(r, "info.json", "{episode_index:06d}.p", "{root}.p"), "path template"),
        (lambda r: (r / ROWS).unlink(), "a Parquet file is missing"),
        (lambda r: (r / ROWS).write_bytes((r / ROWS).read_bytes()[:-30]), "a Parquet file is truncated"),
        (lambda r: link_out(r, ROWS), r"leads out of the folder, to .*outside\.parquet"),
        (lambda r: link_out(r, VIDEO), r"leads out of the folder, to .*outside\.mp4"),
        (lambda r: (r / VIDEO).unlink(), "the video is missing"),
        (lambda r: (r / VIDEO).write_bytes(b"no video"), "the video cannot be decoded"),
        (lambda r: write_video(r / VIDEO, shades(4, 1)), "the video holds 4 frames, 6 rows refer to it"),
        (lambda r: write_video(r / VIDEO, shades(6, 1)[:, :16]), r"the log gives \(16, 48, 3\) a frame, channel 'top'"),
    ],
)
def test_damaged_sets_get_one_message(tmp_path: Path, break_it: Callable[[Path], object], message: str) -> None:
    root = write_v21(tmp_path / "set")
    break_it(root)
    with pytest.raises(LogError, match=message):
        list(read_logs(root, ARM))


def test_stamps_and_values_that_are_wrong(tmp_path: Path) -> None:
    """Rows out of order, and numbers that are none, become findings; what cannot be rows is refused."""
    root = write_v21(tmp_path / "set", (6,), camera="image")
    path = root / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)

    def put(name: str, values: object) -> None:
        pq.write_table(table.set_column(table.schema.get_field_index(name), name, values), path)

    put("timestamp", pa.array([0.0, 0.5, 0.2, 0.7, 0.8, 0.9], pa.float32()))
    (e,) = read_logs(root, ARM)
    assert "clock-jump" in {f.kind for f in e.findings if f.stream == "state"}
    state = np.arange(12, dtype="f4")
    state[4] = np.nan
    put("observation.state", pa.FixedSizeListArray.from_arrays(state, 2))
    (e,) = read_logs(root, ARM)
    assert e.streams["state"].valid.tolist() == [True, True, False, True, True, True]
    put("timestamp", pa.array([0.0, np.nan, 0.2, 0.3, 0.4, 0.5], pa.float32()))
    with pytest.raises(LogError, match="episode 0, row 1: a time stamp is not a number"):
        list(read_logs(root, ARM))
    put("timestamp", pa.array(["now"] * 6))
    with pytest.raises(LogError, match="frame_index or timestamp holds no numbers"):
        list(read_logs(root, ARM))
    put("observation.state", pa.array([[1.0, 2.0]] * 5 + [[1.0]], pa.list_(pa.float32())))
    with pytest.raises(LogError, match=r"observation\.state holds 11 values in 6 rows, not 2 a row"):
        list(read_logs(root, ARM))
    put("action", pa.array(["go"] * 6))
    with pytest.raises(LogError, match="action holds 6 values in 6 rows"):
        list(read_logs(root, ARM))
    pq.write_table(table.drop_columns(["action"]), path)
    with pytest.raises(LogError, match="has no column action"):
        list(read_logs(root, ARM))


def test_frames_without_rows_are_told(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set")
    write_video(root / VIDEO, shades(8, 1))
    first, second = read_logs(root, ARM)
    assert not first.findings
    assert [f.detail for f in second.findings] == ["episode_000001.mp4 holds 2 frames that no row refers to"]


def test_pictures_beside_the_rows(tmp_path: Path) -> None:
    """A cell may name a file of the set; never one outside."""
    root = write_v21(tmp_path / "set", (3,), camera="image")
    path = root / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    for where, message in (
        ("images/a.jpg", ""),
        ("../a.jpg", "leads out"),
        ("images/b.jpg", "no such file"),
        (None, ""),
    ):
        (root / "images").mkdir(exist_ok=True)
        for place in (root / "images" / "a.jpg", tmp_path / "a.jpg"):
            place.write_bytes(encode_jpeg(shades(1, 0)[0]))
        cells = pa.array([{"bytes": None, "path": where}] * 3, table.schema.field("observation.images.top").type)
        at = table.schema.get_field_index("observation.images.top")
        pq.write_table(table.set_column(at, "observation.images.top", cells), path)
        if where == "images/a.jpg":
            (e,) = read(root, ARM, Options())
            assert len(e.streams["top"]) == 3
        else:
            with pytest.raises(LogError, match=message or "a row has no picture"):
                list(read(root, ARM, Options()))


def test_a_flipped_byte_never_ends_in_a_traceback(tmp_path: Path) -> None:
    """Parquet does not notice each flip; what it does notice becomes one message."""
    root = write_v21(tmp_path / "set", (9,), camera="image")
    path = root / "data/chunk-000/episode_000000.parquet"
    whole = path.read_bytes()
    refused = 0
    for at in np.random.default_rng(1).integers(0, len(whole), 120).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            list(read_logs(root, ARM))
        except LogError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint8()])
def test_narrow_frame_numbers_do_not_overflow_the_times(tmp_path: Path, kind: pa.DataType) -> None:
    root = write_v21(tmp_path / "set", (200,), camera="image")
    path = root / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("frame_index")
    (wide,) = read_logs(root, ARM)
    pq.write_table(table.set_column(at, "frame_index", table.column("frame_index").cast(kind)), path)
    (narrow,) = read_logs(root, ARM)
    assert np.array_equal(narrow.streams["state"].times_ns, wide.streams["state"].times_ns)
    assert narrow.streams["state"].times_ns[-1] > 1 << 33


def test_text_with_holes_where_numbers_should_be_is_refused(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", (6,), camera="image")
    path = root / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("action")
    pq.write_table(table.set_column(at, "action", pa.array(["go", None] * 3)), path)
    with pytest.raises(LogError, match="action holds 6 values in 6 rows"):
        list(read_logs(root, ARM))
