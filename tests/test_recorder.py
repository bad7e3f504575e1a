"""What is recorded comes back through intake, and a disk that fills never stops the machine."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hagane.intake import read_logs, recorder
from hagane.intake.recorder import McapRecorder
from hagane.terms import Channel, Embodiment, Reading, StoreError

pytest.importorskip("mcap", reason="mcap is not installed")
CAR = Embodiment(
    "car", "vehicle", "member-cars", 10.0, 4,
    (Channel("ego", shape=(3,), delay_s=0.05), Channel("agents", "set", (2, 3)), Channel("eye", "image", (4, 4, 3))),
    (Channel("drive", shape=(2,)), Channel("horn")),
)  # fmt: skip


def readings(t: int) -> dict[str, Reading]:
    one = np.ones(1, bool)
    return {
        "ego": Reading(np.full((1, 3), 0.1 * t, np.float32), one, np.array([0.05], np.float32)),
        # a slower sensor: every second step shows the sample of the step before
        "agents": Reading(
            np.full((1, 2, 3), t // 2, np.float32), np.array([[True, False]]), np.array([0.1 * (t % 2)], np.float32)
        ),
        "eye": Reading(np.zeros((1, 4, 4, 3), np.uint8), one, np.zeros(1, np.float32)),
    }


def record(path: Path, steps: int = 20, **options: Any) -> McapRecorder:
    with McapRecorder(path, CAR, "keep the lane", "weights-1", wait=True, **options) as made:
        for t in range(steps):
            now = t * CAR.step_ns
            made.readings(now, readings(t))
            made.actions(now, np.array([t, -t, 1], np.float32))
            made.actions(now, np.array([t + 0.5, -t, 1], np.float32), applied=True)
            made.event("/guard", now, {"state": "NOMINAL", "interventions": []})
        made.close("success")
    return made


def test_a_recording_comes_back_through_intake(tmp_path: Path) -> None:
    record(tmp_path / "run.mcap", episode="car/7")
    assert [p.name for p in tmp_path.iterdir()] == ["run.mcap"]
    (episode,) = read_logs(tmp_path / "run.mcap", CAR)
    assert (episode.id, episode.task, episode.outcome) == ("car/7", "keep the lane", "success")
    assert set(episode.streams) == {"ego", "agents", "drive", "drive.applied", "horn", "horn.applied"}
    assert len(episode.streams["ego"]) == 20 and len(episode.streams["agents"]) == 10
    np.testing.assert_allclose(episode.streams["ego"].values[:, 0], 0.1 * np.arange(20), rtol=1e-6)
    # the known delay is no age: the stamp is the arrival
    assert episode.streams["ego"].times_ns.tolist() == [t * CAR.step_ns for t in range(20)]
    assert episode.streams["agents"].valid.tolist() == [[True, False]] * 10
    assert episode.streams["drive.applied"].values[3].tolist() == [3.5, -3.0]
    assert episode.streams["horn"].values[3].tolist() == [1.0]


def test_a_machine_whose_logs_have_another_form_is_recorded_too(tmp_path: Path) -> None:
    """The demo's arm: its sources name features of a LeRobot set, which a recording does not have."""
    record(tmp_path / "run.mcap")
    ego = replace(CAR.observe[0], source=("observation.ego",))
    drive = replace(CAR.act[0], source=("action",))
    machine = replace(CAR, observe=(ego, *CAR.observe[1:]), act=(drive, CAR.act[1]))
    (episode,) = read_logs(tmp_path / "run.mcap", machine)
    assert len(episode.streams["ego"]) == 20 and len(episode.streams["drive"]) == 20


def test_the_file_is_plain_mcap_with_checksums(tmp_path: Path) -> None:
    from mcap.reader import make_reader

    record(tmp_path / "run.mcap")
    with (tmp_path / "run.mcap").open("rb") as f:
        reader = make_reader(f, validate_crcs=True)
        topics = [c.topic for _, c, _ in reader.iter_messages()]
        about = [m.metadata for m in reader.iter_metadata() if m.name == "hagane"]
    assert topics.count("/guard") == 20
    assert about[-1]["checkpoint_id"] == "weights-1" and about[-1]["dropped"] == "0"
    assert about[-1]["skipped"] == "eye"


def test_not_a_number_becomes_an_invalid_sample(tmp_path: Path) -> None:
    with McapRecorder(tmp_path / "run.mcap", CAR, wait=True) as made:
        made.write("ego", 0, np.array([1.0, 2.0, 3.0]))
        made.write("ego", CAR.step_ns, np.array([1.0, np.nan, 3.0]))
    (episode,) = read_logs(tmp_path / "run.mcap", CAR)
    assert episode.streams["ego"].valid.tolist() == [True, False]


def test_a_full_queue_drops_and_counts_and_never_waits(tmp_path: Path, monkeypatch: Any) -> None:
    import threading

    hold = threading.Event()
    real = McapRecorder._write

    def slow(self: McapRecorder, *item: Any) -> None:
        hold.wait(10)
        real(self, *item)

    monkeypatch.setattr(McapRecorder, "_write", slow)
    made = McapRecorder(tmp_path / "run.mcap", CAR, queue_size=8)
    for t in range(100):
        made.write("ego", t, np.zeros(3))
    assert 100 - 8 - 1 <= made.dropped <= 100 - 8
    hold.set()
    made.close()
    assert made.about["dropped"] == str(made.dropped)


class FullDisk:
    """A file on a disk that takes some bytes and then no more."""

    def __init__(self, path: Path, room: int) -> None:
        self.file, self.room = path.open("wb"), room

    def write(self, data: bytes) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [600, 4000])
def test_a_full_disk_is_told_at_the_end_and_nothing_has_the_final_name(
    tmp_path: Path, monkeypatch: Any, room: int
) -> None:
    monkeypatch.setattr(recorder, "_open", lambda path: FullDisk(path, room))
    made = McapRecorder(tmp_path / "run.mcap", CAR, wait=True, queue_size=8)
    rng = np.random.default_rng(0)
    for t in range(500):  # the machine goes on: no write raises or waits for ever
        made.write("ego", t, rng.standard_normal(3))
    with pytest.raises(StoreError, match="No space left") as e:
        made.close()
    assert ".run.mcap.part" in str(e.value) and "free space" in str(e.value)
    assert not (tmp_path / "run.mcap").exists()


def test_a_disk_that_is_full_from_the_start_is_told_at_once(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(recorder, "_open", lambda path: FullDisk(path, 0))
    with pytest.raises(StoreError, match="No space left"):
        McapRecorder(tmp_path / "run.mcap", CAR)


def test_a_recording_is_never_written_over(tmp_path: Path) -> None:
    record(tmp_path / "run.mcap", 2)
    with pytest.raises(StoreError, match="exists"):
        McapRecorder(tmp_path / "run.mcap", CAR)


def test_a_fault_in_the_drive_is_not_hidden_by_the_recorder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="drive"), McapRecorder(tmp_path / "run.mcap", CAR):
        raise RuntimeError("drive")
    assert (tmp_path / "run.mcap").exists()
