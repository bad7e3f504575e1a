"""Observations, chunks and metadata as openpi maps.

One machine a message. A request is a flat map:

    observation/<channel>         [S, *shape], newest first, or [*shape]: the current value only
    observation/<channel>/valid   [S] or [S, n] bool; absent: all valid
    observation/<channel>/age_s   [S] seconds; absent: as the control grid says
    prompt, embodiment, time_ns   instruction, name, control time on the sender's clock

Observed channels must be there; past actions (under the action channels' names) may be absent, since an
unmodified openpi client knows nothing of them. The reply is {"actions": [H, A] float32, "policy_timing",
"server_timing", "checkpoint_id", "time_ns"}. The server's first message is `metadata_of`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.terms import ActionChunk, Channel, Embodiment, Observation, Window, WireError, lags

PREFIX = "observation/"
_OTHERS = ("prompt", "embodiment", "time_ns")
_SUFFIXES = ("", "/valid", "/age_s")


def request_of(observation: Observation, machine: int = 0) -> dict[str, Any]:
    """The request map of one of an observation's N machines."""
    request: dict[str, Any] = {}
    for name, window in observation.channels.items():
        request[PREFIX + name] = window.values[machine]
        request[f"{PREFIX}{name}/valid"] = window.valid[machine]
        request[f"{PREFIX}{name}/age_s"] = window.age_s[machine]
    request["prompt"] = observation.tasks[machine]
    request["embodiment"] = observation.embodiment
    request["time_ns"] = int(observation.time_ns[machine])
    return request


def observation_of(request: Any, embodiments: Mapping[str, Embodiment]) -> Observation:
    """The observation (N = 1) that a request describes, checked against its embodiment.

    Raises:
        WireError: not a map, unknown embodiment or key, missing channel, wrong shape or type, a value that is
            valid but not finite; the message names it.
    """
    if not isinstance(request, dict):
        raise WireError(f"a request must be a map, not {type(request).__name__}")
    embodiment = _embodiment(request, embodiments)
    acts = {c.name for c in embodiment.act}
    channels = [c for c in embodiment.channels() if c.kind != "text"]
    _check_keys(request, channels, embodiment.name)
    windows = {c.name: _window(request, c, c.name in acts, embodiment) for c in channels}
    task, time_ns = request.get("prompt", ""), request.get("time_ns", 0)
    if not isinstance(task, str):
        raise WireError(f"prompt must be a text, not {type(task).__name__}")
    if isinstance(time_ns, bool) or not isinstance(time_ns, int | np.integer) or not -(2**63) <= time_ns < 2**63:
        raise WireError("time_ns must be a whole number of 64 bits")
    return Observation(embodiment.name, np.array([int(time_ns)], np.int64), windows, (task,))


def reply_of(
    chunk: ActionChunk, embodiment: Embodiment, infer_ms: float, prev_total_ms: float | None
) -> dict[str, Any]:
    """The reply map of a chunk (N = 1).

    Raises:
        WireError: the policy gave another shape than [1, H, A], or values that are not finite.
    """
    actions_NHA = np.asarray(chunk.actions_NHA, np.float32)
    wanted = (1, embodiment.horizon, embodiment.action_width)
    if actions_NHA.shape != wanted or not np.isfinite(actions_NHA).all():
        why = "not finite" if actions_NHA.shape == wanted else f"of shape {actions_NHA.shape}, not {wanted}"
        raise WireError(f"the policy gave actions {why}", next_step="stop using this checkpoint on this machine")
    server_timing = {"infer_ms": infer_ms}
    if prev_total_ms is not None:
        server_timing["prev_total_ms"] = prev_total_ms
    return {
        "actions": actions_NHA[0],
        "policy_timing": {"infer_ms": infer_ms},
        "server_timing": server_timing,
        "checkpoint_id": chunk.checkpoint_id,
        "time_ns": int(chunk.start_ns[0]),
    }


def chunk_of(reply: Any, embodiment: Embodiment, time_ns: int) -> ActionChunk:
    """The chunk (N = 1) of a reply; it starts at `time_ns` of the asker's own clock.

    Values that are not finite pass: it is the guard that judges them, and records that it did.

    Raises:
        WireError: no "actions", another shape than [H, A], or an answer to another request.
    """
    if not isinstance(reply, dict) or not isinstance(reply.get("actions"), np.ndarray):
        raise WireError("the reply holds no array `actions`", next_step="check that the address is a policy server")
    actions_HA, wanted = reply["actions"], (embodiment.horizon, embodiment.action_width)
    if actions_HA.shape != wanted:
        raise WireError(f"actions of shape {actions_HA.shape}, not {wanted}", where=f"embodiment {embodiment.name!r}")
    if reply.get("time_ns", time_ns) != time_ns:
        raise WireError(f"the reply answers the request of {reply['time_ns']}, not of {time_ns}")
    checkpoint_id = reply.get("checkpoint_id", "")
    if not isinstance(checkpoint_id, str):
        raise WireError("checkpoint_id must be a text")
    start_ns = np.array([time_ns], np.int64)
    return ActionChunk(actions_HA[None].astype(np.float32), start_ns, embodiment.step_ns, checkpoint_id)


def interface_of(embodiment: Embodiment) -> dict[str, Any]:
    """What client and server must agree on: rate, horizon, every channel's shape, unit and history."""
    channels = {
        c.name: {"kind": c.kind, "shape": list(c.shape), "unit": list(c.unit)}
        | {"history": [c.history.steps, c.history.stride]}
        for c in embodiment.channels()
    }
    return {
        "rate_hz": float(embodiment.rate_hz),
        "horizon": embodiment.horizon,
        "action_width": embodiment.action_width,
        "convention": embodiment.convention,
        "act": [c.name for c in embodiment.act],
        "channels": channels,
    }


def metadata_of(embodiments: Mapping[str, Embodiment], checkpoint_id: str, version: str) -> dict[str, Any]:
    """The server's first message."""
    machines = {name: interface_of(e) for name, e in sorted(embodiments.items())}
    return {"hagane_version": version, "checkpoint_id": checkpoint_id, "embodiments": machines}


def _embodiment(request: dict[str, Any], embodiments: Mapping[str, Embodiment]) -> Embodiment:
    name = request.get("embodiment")
    known = ", ".join(sorted(embodiments))
    if name is None and len(embodiments) == 1:
        return next(iter(embodiments.values()))
    if name is None:
        raise WireError("the request names no embodiment", next_step=f"send `embodiment`: one of {known}")
    if not isinstance(name, str) or name not in embodiments:
        raise WireError(f"unknown embodiment {str(name)[:60]!r}", next_step=f"this server knows: {known}")
    return embodiments[name]


def _check_keys(request: dict[str, Any], channels: list[Channel], name: str) -> None:
    known = {f"{PREFIX}{c.name}{suffix}" for c in channels for suffix in _SUFFIXES} | set(_OTHERS)
    for key in request.keys() - known:
        near = difflib.get_close_matches(key, sorted(known), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"channels: {', '.join(c.name for c in channels)}"
        raise WireError(f"unknown key {key[:80]!r}", where=f"embodiment {name!r}", next_step=hint)


def _window(request: dict[str, Any], channel: Channel, is_action: bool, embodiment: Embodiment) -> Window:
    """One channel's window with N = 1: current values become a history of one sample, the rest invalid."""
    key, steps = PREFIX + channel.name, channel.history.steps
    flags = (channel.places,) if channel.kind == "set" else ()
    if key not in request:
        if not is_action:
            raise WireError(f"channel {channel.name!r} is missing", next_step=f"send {key!r} of shape {channel.shape}")
        dtype = np.uint8 if channel.kind == "image" else np.float32
        unknown = np.zeros((1, steps, *channel.shape), dtype), np.zeros((1, steps, *flags), np.bool_)
        return Window(*unknown, _grid_ages(channel, is_action, embodiment)[None])
    given = _typed(key, request[key], channel)
    if given.shape == channel.shape:
        given = given[None]
    n = len(given)
    if n not in (1, steps) or given.shape[1:] != channel.shape:
        full = (steps, *channel.shape)
        raise WireError(f"{key} has shape {request[key].shape}, not {full} or {channel.shape}")
    valid = _side(request, f"{key}/valid", (n, *flags), np.bool_)
    valid = np.ones((n, *flags), np.bool_) if valid is None else valid
    if not valid.all():
        mask = valid.reshape(valid.shape + (1,) * (given.ndim - valid.ndim))
        given = np.where(mask, given, np.zeros((), given.dtype))
    if channel.kind != "image" and not np.isfinite(given).all():
        raise WireError(f"{key} holds values that are not finite", next_step="send valid = false for those samples")
    age_s = _side(request, f"{key}/age_s", (n,), np.float32)
    # written so that NaN fails too
    if age_s is not None and not (age_s.min() >= 0 and age_s.max() < np.inf):
        raise WireError(f"{key}/age_s must hold finite seconds, at least 0")
    if age_s is None or n < steps:
        ages = _grid_ages(channel, is_action, embodiment)
        ages[:n] = ages[:n] if age_s is None else age_s
        age_s = ages
    if n < steps:
        given, valid = _padded(given, steps), _padded(valid, steps)
    return Window(_own(given)[None], _own(valid)[None], _own(age_s)[None])


def _own(array: NDArray[Any]) -> NDArray[Any]:
    """Aligned memory of its own: what comes from the wire is a read-only view at any byte."""
    return array if array.flags.writeable else array.copy()


def _grid_ages(channel: Channel, is_action: bool, embodiment: Embodiment) -> NDArray[np.float32]:
    """[S] ages of a window as the control grid says."""
    return (lags(channel.history, is_action=is_action) / embodiment.rate_hz).astype(np.float32)


def _padded(rows: NDArray[Any], steps: int) -> NDArray[Any]:
    """The rows, then zeros (False) up to `steps`."""
    full = np.zeros((steps, *rows.shape[1:]), rows.dtype)
    full[: len(rows)] = rows
    return full


def _typed(key: str, value: Any, channel: Channel) -> NDArray[Any]:
    if not isinstance(value, np.ndarray):
        raise WireError(f"{key} must be an array, not {type(value).__name__}")
    if channel.kind == "image" and value.dtype != np.uint8:
        raise WireError(f"{key} must be uint8, not {value.dtype}")
    return value if channel.kind == "image" else _as(value, np.float32)


def _as(value: NDArray[Any], dtype: type) -> NDArray[Any]:
    if value.dtype == dtype:
        return value
    with np.errstate(over="ignore"):
        return value.astype(dtype)


def _side(request: dict[str, Any], key: str, shape: tuple[int, ...], dtype: type) -> NDArray[Any] | None:
    """The array beside a channel's values; None when the request has none."""
    value = request.get(key)
    if value is None:
        return None
    if (
        not isinstance(value, np.ndarray)
        or value.shape != shape
        or (value.dtype == np.bool_) is not (dtype is np.bool_)
    ):
        raise WireError(f"{key} must be an array of {dtype.__name__} and shape {shape}")
    return _as(value, dtype)
