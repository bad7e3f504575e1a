"""McapRecorder: what a machine saw and did, as an MCAP file that comes back through intake (`mcap_log`).

Messages are JSON: topic "/" + stream name, schema "hagane.Stream", {"values": [...], "valid": true or [...]},
`log_time` in ns on the episode's clock. Other topics (like /guard) hold JSON objects of schema "hagane.Event".
A metadata record "hagane" names embodiment, task, episode, checkpoint and outcome. The control path only puts
into a bounded queue: a 1 MB write to disk can take tens of milliseconds. MCAP: https://mcap.dev/spec
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from hagane.terms import APPLIED, Channel, Embodiment, LogError, Reading, StoreError

_Item = tuple[str, str, int, Any]
_SCHEMAS = {
    "hagane.Stream": b'{"type":"object","properties":{"values":{"type":"array"},"valid":{}}}',
    "hagane.Event": b'{"type":"object"}',
}


class McapRecorder:
    """Records one episode of one machine. Use it as a context manager; the file appears when it is closed.

    Args:
        path: the file to make; it must not exist.
        embodiment: the machine.
        task: its instruction.
        checkpoint_id: digest of the weights that decide.
        episode: id of the episode; "" takes the file's name.
        wait: True makes writers wait for a full queue (a simulation may); False drops and counts.
        queue_size: messages that may wait for the disk.

    Raises:
        StoreError: the file exists or cannot be made.
    """

    def __init__(
        self,
        path: Path,
        embodiment: Embodiment,
        task: str = "",
        checkpoint_id: str = "",
        *,
        episode: str = "",
        wait: bool = False,
        queue_size: int = 4096,
    ) -> None:
        self.path, self.embodiment = path, embodiment
        self.about = {"embodiment": embodiment.name, "task": task, "episode": episode or path.stem}
        self.about |= {"checkpoint_id": checkpoint_id, "outcome": ""}
        self.dropped = 0
        """Messages that found the queue full."""
        self.skipped = tuple(c.name for c in embodiment.observe if c.kind == "image")
        """Channels that are not recorded yet: images."""
        self._wait, self._queue = wait, queue.Queue[_Item | None](queue_size)
        self._last_ns: dict[str, int] = {}
        self._error: Exception | None = None
        self._closed = False
        self._part = path.with_name(f".{path.name}.part")
        if path.exists():
            raise StoreError("the recording exists", where=str(path), next_step="record under another name")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file, self._writer = self._start()
        except OSError as e:
            self._part.unlink(missing_ok=True)
            raise StoreError(f"cannot record: {e}", where=str(path), next_step="free space or choose a folder") from e
        self._topics: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        self._thread = threading.Thread(target=self._work, name="hagane-recorder", daemon=True)
        self._thread.start()

    def readings(self, time_ns: int, readings: Mapping[str, Reading]) -> None:
        """Record what a machine (N = 1) observed at a control time: each sample once, stamped when it was taken."""
        for channel in self.embodiment.observe:
            if channel.name in readings and channel.kind not in ("text", "image"):
                reading = readings[channel.name]
                stamp_ns = _stamp(time_ns, float(reading.age_s[0]), channel)
                if self._last_ns.get(channel.name) != stamp_ns:
                    self._last_ns[channel.name] = stamp_ns
                    self.write(channel.name, stamp_ns, reading.values[0], reading.valid[0])

    def actions(self, time_ns: int, values_A: NDArray[np.float32], *, applied: bool = False) -> None:
        """Record the command of a control step, or what the actuators did; [A], split by action channel."""
        at = 0
        for channel in self.embodiment.act:
            name = channel.name + (APPLIED if applied else "")
            self.write(name, time_ns, values_A[at : at + channel.columns])
            at += channel.columns

    def write(self, stream: str, time_ns: int, values: NDArray[Any], valid: Any = True) -> None:
        """Record one sample of a stream; never waits (unless told to), never raises."""
        self._put(("hagane.Stream", "/" + stream, time_ns, (np.array(values), np.array(valid))))

    def event(self, topic: str, time_ns: int, body: Mapping[str, Any]) -> None:
        """Record a JSON object under a topic of its own, like "/guard"."""
        self._put(("hagane.Event", topic, time_ns, dict(body)))

    def close(self, outcome: str = "") -> Path:
        """Write what is queued, close the file and give it its name.

        Args:
            outcome: "success", "failure" or "" when unknown.

        Raises:
            StoreError: the disk did not take all of it; what it took stays under its temporary name.
        """
        if self._closed:
            return self.path
        self._closed = True
        self.about["outcome"] = outcome or self.about["outcome"]
        self._queue.put(None)
        self._thread.join()
        try:
            if self._error is None:
                self._finish()
        except OSError as e:
            self._error = e
        finally:
            # the file's own buffer may be what the disk refused
            try:
                self._file.close()
            except OSError as e:
                self._error = self._error or e
        if self._error is not None:
            raise StoreError(
                f"the recording is not complete: {self._error}",
                where=str(self.path),
                next_step=f"free space; what was recorded until then is in {self._part}",
            ) from self._error
        self._part.replace(self.path)
        return self.path

    def __enter__(self) -> McapRecorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.close()
        except StoreError as e:
            if error is None:
                raise
            error.add_note(str(e))

    def _start(self) -> tuple[BinaryIO, Any]:
        try:
            from mcap.writer import Writer
        except ImportError:
            raise LogError("recording needs mcap", next_step='pip install "hagane[intake]"') from None
        file = _open(self._part)
        writer = Writer(file, enable_data_crcs=True)
        writer.start(profile="", library="hagane")
        # once at the start, for a recording that is cut; again at the end with the outcome
        writer.add_metadata("hagane", self.about)
        return file, writer

    def _put(self, item: _Item) -> None:
        if self._closed:
            return
        try:
            self._queue.put(item, block=self._wait)
        except queue.Full:
            self.dropped += 1

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._write(*item)
                except Exception as e:
                    # the machine goes on; the person hears of it at the end
                    self._error = e

    def _write(self, schema: str, topic: str, time_ns: int, body: Any) -> None:
        if schema not in self._schemas:
            self._schemas[schema] = self._writer.register_schema(schema, "jsonschema", _SCHEMAS[schema])
        if topic not in self._topics:
            self._topics[topic] = self._writer.register_channel(topic, "json", self._schemas[schema])
        if schema == "hagane.Stream":
            values, valid = body
            # JSON has no NaN: msgspec writes null
            body = {"values": values.tolist(), "valid": valid.tolist()}
        # MCAP knows no times before 0
        at_ns = max(0, int(time_ns))
        self._writer.add_message(self._topics[topic], at_ns, msgspec.json.encode(body), at_ns)

    def _finish(self) -> None:
        self.about["dropped"] = str(self.dropped)
        if self.skipped:
            self.about["skipped"] = ", ".join(self.skipped)
        self._writer.add_metadata("hagane", self.about)
        self._writer.finish()
        self._file.flush()
        os.fsync(self._file.fileno())


def _open(path: Path) -> BinaryIO:
    return path.open("wb")


def _stamp(time_ns: int, age_s: float, channel: Channel) -> int:
    """When a sample was taken: the control time less its age; a known delay is no age, since a log stamps arrivals."""
    # whole microseconds: float32 ages would otherwise jitter the stamps
    late_us = round((age_s - channel.delay_s) * 1e6)
    return time_ns - 1000 * max(late_us, 0)
