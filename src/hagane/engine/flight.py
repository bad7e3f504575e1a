"""What this process waits in, for a message about a run that hangs: torch's flight recorder, and Python's own frames.

torch notes every collective as it is queued and when its caller has it back, on gloo and on NCCL. Sends and receives of
a pipeline are not noted on gloo: there the innermost frame inside torch.distributed says what is waited for.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch._C._distributed_c10d as c10d

BYTES = {"Float": 4, "BFloat16": 2, "Half": 2, "Double": 8, "Long": 8, "Int": 4, "Short": 2, "Bool": 1, "Byte": 1}
"""Bytes of an element by torch's name of its type; others count as 1 (8-bit floats)."""


@dataclass(frozen=True)
class Waiting:
    """A collective that was entered and has not returned."""

    collective: str
    """all_reduce, all_to_all, recv ..."""
    axis: str = ""
    """Mesh axis; "all ranks" for the whole world, empty when not known."""
    size: str = ""
    """What goes in, as "33 Float (132 bytes)"; empty when not known."""

    def __str__(self) -> str:
        return f"{self.collective}{f' of {self.size}' if self.size else ''}{f' on {self.axis}' if self.axis else ''}"


def _dumps() -> list[Callable[..., bytes]]:
    """The recorders of this build: gloo's, and NCCL's own. JSON: the other form of a dump is pickled."""
    names = ("_dump_fr_trace_json", "_dump_nccl_trace_json")
    return [getattr(c10d, name) for name in names if hasattr(c10d, name)]


def progress() -> str:
    """A mark that changes whenever a collective is queued or done; about 5 us."""
    return "".join(str(json.loads(dump(includeCollectives=False)).get("pg_status")) for dump in _dumps())


def waiting() -> Waiting | None:
    """The collective that this process waits in: the oldest that was queued and has not come back."""
    entries = chain.from_iterable(json.loads(dump(includeCollectives=True)).get("entries", []) for dump in _dumps())
    held = [e for e in entries if not e["retired"] and e["state"] != "completed"]
    return _of_entry(min(held, key=lambda e: e["time_created_ns"])) if held else _of_frames()


def whereabouts() -> str:
    """Where the main thread is, as "sleep_for (data/slow.py:12), in train_step (engine/step.py:80)"."""
    frames = list(_frames(sys._current_frames().get(_main_thread())))
    if not frames:
        return "nowhere in Python"
    ours = [f for f in frames if "/hagane/" in f.f_code.co_filename]
    inner = _place(frames[0])
    return inner if not ours or ours[0] is frames[0] else f"{inner}, in {_place(ours[0])}"


def _of_entry(entry: dict[str, Any]) -> Waiting:
    _, description = entry["process_group"]
    axis = "all ranks" if description in ("default_pg", "") else f"axis {description.removeprefix('mesh_')}"
    pairs = list(zip(entry["input_sizes"], entry["input_dtypes"], strict=False))
    count, dtype = sum(math.prod(shape) for shape, _ in pairs), pairs[0][1] if pairs else ""
    size = sum(math.prod(shape) * BYTES.get(kind, 1) for shape, kind in pairs)
    # "gloo:all_reduce", "nccl:_all_gather_base"
    name = entry["profiling_name"].split(":")[-1].removeprefix("_")
    return Waiting(name, axis, f"{count} {dtype} ({size} bytes)" if pairs else "")


def _of_frames() -> Waiting | None:
    """A thread whose innermost frame is inside torch.distributed waits there; backward may have its own thread."""
    inside = str(Path(torch.__file__).parent / "distributed")
    for innermost in sys._current_frames().values():
        if innermost.f_code.co_filename.startswith(inside):
            entered = [f for f in _frames(innermost) if f.f_code.co_filename.startswith(inside)]
            names = [f.f_code.co_name for f in entered if f.f_code.co_name != "wrapper"]
            return Waiting(names[0] if names else "wait")
    return None


def _frames(innermost: FrameType | None) -> Iterator[FrameType]:
    while innermost is not None:
        yield innermost
        innermost = innermost.f_back


def _place(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return f"{frame.f_code.co_name} ({path.parent.name}/{path.name}:{frame.f_lineno})"


def _main_thread() -> int:
    import threading

    return threading.main_thread().ident or 0
