"""Which clock a topic's samples live on: the message's own header stamp where it is sane, else the log's time.

The rule, for each topic (late = log time - header stamp):

- no header, or more than half of the stamps not set (0): the log's times;
- stamps usually (median) more than 10 s off the log's times: another clock (simulated time, a host without NTP, 1970);
  streams could not be laid side by side, so the log's times;
- else the stamps. Single stamps that are not set or 10 s away from the usual lateness give way to their log time.

A finding says so wherever stamps were put aside, and where they are usually more than 0.5 s late or 0.05 s early.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagane.intake.ros_types import Types, full_name
from hagane.intake.topic_fields import Column
from hagane.intake.topic_log import FieldPath, Topic

SECONDS: FieldPath = ("header", "stamp", "sec")
NANOSECONDS: FieldPath = ("header", "stamp", "nanosec")
_OTHER_CLOCK_S = 10.0
_LATE_S, _EARLY_S = 0.5, 0.05


@dataclass(frozen=True, eq=False)
class Times:
    """When the messages of a topic are from."""

    times_ns: NDArray[np.int64]
    """[N] nanoseconds, on the clock of the log."""
    remark: str = ""
    """What is odd about its stamps, in words; "" when nothing is."""
    row: int = 0
    """The message where that begins."""
    count: int = 0
    """Messages concerned."""
    latency_ns: int = 0
    """Median time from the stamps to the log's times; 0 where these are taken."""


def stamp_paths(topic: Topic, types: Types) -> tuple[FieldPath, ...]:
    """Paths of a type's header stamp; none when it has no header."""
    fields = dict(types.get(full_name(topic.schema), ()))
    header = fields.get("header")
    if header is None or header.name != "std_msgs/msg/Header" or header.many is not None:
        return ()
    stamp = dict(types[header.name]).get("stamp")
    kinds = {name: kind.name for name, kind in types.get(stamp.name, ())} if stamp is not None else {}
    whole = {"int32", "uint32"}
    return (SECONDS, NANOSECONDS) if whole >= {kinds.get("sec", ""), kinds.get("nanosec", "")} else ()


def times_of(log_ns: NDArray[np.int64], fields: dict[FieldPath, Column]) -> Times:
    """Times of a topic's messages.

    Args:
        log_ns: [N] when the log got each.
        fields: columns of the topic; the header's among them, where it has one.
    """
    if SECONDS not in fields or not len(log_ns):
        return Times(log_ns)
    nanoseconds = fields[NANOSECONDS].values.astype(np.int64)
    stamps_ns = fields[SECONDS].values.astype(np.int64) * 10**9 + nanoseconds
    unset = (stamps_ns <= 0) | (nanoseconds >= 10**9)
    if unset.mean() > 0.5:
        text = f"{unset.sum()} of {len(unset)} header stamps are not set: the log's times are taken"
        return Times(log_ns, text, int(np.argmax(unset)), int(unset.sum()))
    late_s = (log_ns - stamps_ns) / 1e9
    usual_s = float(np.median(late_s[~unset]))
    if abs(usual_s) > _OTHER_CLOCK_S:
        text = f"header stamps are usually {_words(usual_s)} the log's times, on another clock: those are taken"
        return Times(log_ns, text, 0, len(log_ns))
    latency_ns = round(usual_s * 1e9)
    off = unset | (np.abs(late_s - usual_s) > _OTHER_CLOCK_S)
    times_ns = np.where(off, log_ns, stamps_ns)
    if off.any():
        text = f"{off.sum()} header stamps are not set or far off: the log's times are taken for them"
        return Times(times_ns, text, int(np.argmax(off)), int(off.sum()), latency_ns)
    if usual_s > _LATE_S or usual_s < -_EARLY_S:
        text = f"header stamps are usually {_words(usual_s)} the log's times, at most {np.abs(late_s).max():.3f} s"
        return Times(times_ns, text, 0, len(log_ns), latency_ns)
    return Times(times_ns, latency_ns=latency_ns)


def _words(late_s: float) -> str:
    return f"{abs(late_s):.3f} s {'before' if late_s >= 0 else 'after'}"
