"""`hagane drive arm --at ws://127.0.0.1:8000`: run a world against a policy server, through the guard."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from hagane.cli.asking import Asker, Background, Lockstep
from hagane.cli.noted import note_deployment, note_recording
from hagane.guard import Envelope, Guard, GuardedAction, State, load_envelope, start_of
from hagane.intake.recorder import McapRecorder
from hagane.terms import ConfigError, HaganeError, HistoryBuffer, Policy, StoreError
from hagane.wire import RemotePolicy
from hagane.worlds import World, make

SETTLED_S = 10.0
"""A drive goes on for this long at the safe command: time for a car to come to rest."""


@dataclass(frozen=True, eq=False)
class DriveResult:
    """How one drive went."""

    case: str
    """Task or world variant."""
    seed: int
    """Seed of the world."""
    score: float
    """See `World.measure`."""
    steps: int
    """Control steps driven."""
    state: State
    """The guard's state at the end."""
    interventions: Mapping[str, int]
    """What the guard changed or refused, by kind."""
    latency_ms: NDArray[np.float64]
    """Time of every answer of the policy."""
    misses: int
    """Control steps without a usable action after the first, or begun more than half a step late."""
    failed: str = ""
    """Why the drive ended early; "" when it did not."""
    details: Mapping[str, float] = field(default_factory=dict)
    """Terms of the score."""


def drive(
    world: World,
    case: str,
    seed: int,
    policy: Policy,
    envelope: Envelope,
    recorder: McapRecorder | None = None,
    *,
    realtime: bool = False,
) -> DriveResult:
    """Drive one copy of a world with a policy, through a guard.

    In lockstep (the default) the guard runs on simulated time and the world waits for the policy, so the result
    depends on nothing but case, seed and policy. In real time the world goes on at its rate, and late answers are
    spliced in by actions consumed.

    When the policy fails, it is not asked again: the guard holds, stops, and the drive ends after
    `SETTLED_S` at the safe command.

    Args:
        world: the world; one copy is reset here.
        case: one of `world.cases`.
        seed: of the copy.
        policy: usually a RemotePolicy; asked for N = 1.
        envelope: the guard's limits.
        recorder: takes what is observed and done; the caller closes it.
        realtime: run at the embodiment's rate on the wall clock.

    Raises:
        ConfigError: unknown case, or the policy does not know this machine.
        GuardError: the envelope does not fit the machine.
        WireError: the policy server cannot be reached before the start.
    """
    if case not in world.cases:
        raise ConfigError(f"no case {case!r}", next_step=f"use one of {', '.join(world.cases)}")
    e = world.embodiment
    world.reset(case, [seed])
    tasks = world.tasks()
    policy.reset(e, tasks[0])
    guard = Guard(envelope, e, start_A=start_of(envelope, e, world.observe()))
    buffer, counts = HistoryBuffer(e, 1), Counter[str]()
    asker: Asker = Background(policy) if realtime else Lockstep(policy)
    if realtime:
        # the first answer of a policy takes longer (compilation, connection): not the machine's time
        buffer.push(world.observe(), np.array([time.monotonic_ns()], np.int64))
        asker.ask(buffer.observation(tasks), 0)
        asker.settle()
        buffer = HistoryBuffer(e, 1)
    start_ns = time.monotonic_ns() if realtime else 0
    misses, steps, settled, begun = 0, 0, 0, False
    last = guard.bounds.start_A.astype(np.float32)
    for step in range(world.step_limit):
        if not world.alive()[0]:
            break
        due_ns = start_ns + step * e.step_ns
        now_ns = _wait_until(due_ns) if realtime else due_ns
        readings = world.observe()
        buffer.push(readings, np.array([now_ns], np.int64))
        if guard.consumed >= e.execute_steps:
            asker.ask(buffer.observation(tasks), guard.ticks)
        for chunk, observed_tick in asker.answers():
            begun |= guard.offer(chunk, observed_tick=observed_tick, now_ns=now_ns)
        action = guard.tick(now_ns)
        applied_NA = world.step(action.values_A[None])
        buffer.push_action(applied_NA)
        steps += 1
        counts.update(i.kind for i in action.interventions)
        misses += (begun and action.state is State.HOLD) or now_ns - due_ns > e.step_ns // 2
        if recorder is not None:
            recorder.readings(now_ns - start_ns, readings)
            recorder.actions(now_ns - start_ns, action.values_A)
            recorder.actions(now_ns - start_ns, applied_NA[0], applied=True)
            recorder.event("/guard", now_ns - start_ns, _event(action))
        settled = settled + 1 if action.state is State.SAFE_STOP and np.array_equal(action.values_A, last) else 0
        if settled >= SETTLED_S * e.rate_hz:
            break
        last = action.values_A
    failed = asker.error
    if not failed and guard.state in (State.SAFE_STOP, State.ESTOP):
        failed = f"the guard stopped the machine: {', '.join(f'{k} {n}' for k, n in counts.items())}"
    details = {k: float(v[0]) for k, v in world.details().items()}
    latency_ms, score = np.array(asker.latency_ms, np.float64), float(world.scores()[0])
    if recorder is not None:
        recorder.about["task"] = tasks[0]
        recorder.about["checkpoint_id"] = asker.checkpoint_id
        recorder.about["outcome"] = _outcome(world, score, failed)
    return DriveResult(case, seed, score, steps, guard.state, dict(counts), latency_ms, misses, failed, details)


def _wait_until(due_ns: int) -> int:
    """Sleep until a time of the monotonic clock; the time that it is then."""
    left_ns = due_ns - time.monotonic_ns()
    if left_ns > 0:
        time.sleep(left_ns / 1e9)
    return time.monotonic_ns()


def _event(action: GuardedAction) -> dict[str, object]:
    changed = [{"kind": i.kind, "column": i.column, "asked": i.asked, "given": i.given} for i in action.interventions]
    return {"state": action.state.value, "interventions": changed}


def _outcome(world: World, score: float, failed: str) -> str:
    if failed:
        return "failure"
    if not world.measure.startswith("success"):
        return ""
    return "success" if score >= 0.5 else "failure"


@dataclass(frozen=True)
class DriveArgs:
    """Run a world against a policy server, through the guard, and print how it went. Exit code 1 if it failed."""

    embodiment: Annotated[str, tyro.conf.Positional]
    """Name of an installed world: arm, road, mill."""
    at: str = "ws://127.0.0.1:8000"
    """Address of the policy server (any openpi-compatible one)."""
    episodes: int = 1
    """Drives; they take the world's cases in turn."""
    seed: int = 1_000_000
    """Seed of the first; the others follow."""
    case: str = ""
    """Drive this case only."""
    record: Path | None = None
    """Folder for one MCAP file a drive."""
    realtime: bool = False
    """Run at the machine's rate on the wall clock, instead of in lockstep on simulated time."""
    envelope: Path | None = None
    """The guard's limits; without it, those that come with hagane for this embodiment."""
    api_key_file: Path | None = None
    """File with the server's key."""
    json: Path | None = None
    """File for the results, one object a drive."""
    timeout_s: float = 5.0
    """Longest wait for an answer, seconds."""
    home: Path = Path()
    """The site's folder; its ledger notes weights, limits and recordings of the machine."""


def main(argv: list[str]) -> int:
    """Run `hagane drive`."""
    args = tyro.cli(DriveArgs, args=argv, prog="hagane drive")
    if args.episodes < 1 or args.timeout_s <= 0:
        raise ConfigError("needs at least one episode and a positive --timeout-s")
    world = make(args.embodiment)
    e = world.embodiment
    if args.case and args.case not in world.cases:
        raise ConfigError(f"no case {args.case!r}", next_step=f"use one of {', '.join(world.cases)}")
    cases = (args.case,) if args.case else world.cases
    envelope = load_envelope(e, args.envelope)
    problems: list[str] = []
    results: list[DriveResult] = []
    with RemotePolicy(args.at, read_key(args.api_key_file), args.timeout_s) as policy:
        policy.reset(e, "")
        note_deployment(args.home, policy.checkpoint_id, e.name, envelope)
        clock = "real time" if args.realtime else "lockstep"
        print(f"{e.name} at {args.at} ({clock}), score: {world.measure}\n{_head()}", flush=True)
        for k in range(args.episodes):
            case, seed = cases[k % len(cases)], args.seed + k
            recorder = None
            if args.record is not None:
                path = args.record / f"{e.name}-{case}-{seed}.mcap"
                recorder = McapRecorder(path, e, episode=f"{e.name}/{case}/{seed}", wait=not args.realtime)
            try:
                result = drive(world, case, seed, policy, envelope, recorder, realtime=args.realtime)
            finally:
                problems += _closed(recorder, args.home)
            results.append(result)
            print(_line(result), flush=True)
            if result.failed:
                kept = f"\n  kept: {recorder.path}" if recorder is not None and recorder.path.exists() else ""
                problems.append(f"seed {seed}: the drive ended in {result.state.value}: {result.failed}{kept}")
                break
    print(_summary(results))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps([_table(r) for r in results], indent=1), "utf-8")
    if problems:
        raise HaganeError("\n".join(problems))
    return 0


def read_key(path: Path | None) -> str:
    """The key in a file; "" without one.

    Raises:
        ConfigError: the file cannot be read or is empty.
    """
    if path is None:
        return ""
    try:
        key = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"the key cannot be read: {e}", where=str(path)) from None
    if not key:
        raise ConfigError("the key file is empty", where=str(path), next_step="write a long random key into it")
    return key


def _closed(recorder: McapRecorder | None, home: Path) -> list[str]:
    """Close a recording and note its root; why it is not complete, if so."""
    try:
        if recorder is not None:
            note_recording(home, recorder.close())
        return []
    except StoreError as e:
        return [str(e)]


def _head() -> str:
    return f"{'case':<26}{'seed':>9}{'score':>9}{'steps':>7}{'p50 ms':>8}{'p99 ms':>8}{'misses':>8}  interventions"


def _table(r: DriveResult) -> dict[str, object]:
    """A result as plain values."""
    p50, p99 = np.percentile(r.latency_ms, [50, 99]).tolist() if len(r.latency_ms) else (None, None)
    return {
        "case": r.case,
        "seed": r.seed,
        "score": r.score,
        "steps": r.steps,
        "state": r.state.value,
        "interventions": dict(r.interventions),
        "latency_ms_p50": p50,
        "latency_ms_p99": p99,
        "misses": r.misses,
        "failed": r.failed,
    }


def _line(r: DriveResult) -> str:
    p50, p99 = np.percentile(r.latency_ms, [50, 99]) if len(r.latency_ms) else (0.0, 0.0)
    what = ", ".join(f"{kind} {n}" for kind, n in sorted(r.interventions.items())) or "none"
    return f"{r.case:<26}{r.seed:>9}{r.score:>9.3f}{r.steps:>7}{p50:>8.1f}{p99:>8.1f}{r.misses:>8}  {what}"


def _summary(results: list[DriveResult]) -> str:
    total: Counter[str] = Counter()
    for r in results:
        total.update(r.interventions)
    latency_ms = np.concatenate([r.latency_ms for r in results])
    p50, p99 = np.percentile(latency_ms, [50, 99]) if len(latency_ms) else (0.0, 0.0)
    steps, mean = sum(r.steps for r in results), np.mean([r.score for r in results])
    what = ", ".join(f"{kind} {n}" for kind, n in sorted(total.items())) or "none"
    return (
        f"{len(results)} drives, {steps} steps: mean score {mean:.3f}; answers p50 {p50:.1f} ms, p99 {p99:.1f} ms; "
        f"misses {sum(r.misses for r in results)}; interventions: {what}"
    )
