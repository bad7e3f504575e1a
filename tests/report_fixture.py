"""A made-up run folder, as the demo leaves one: for the tests of the report page."""

# ruff: noqa: E501
# tables of made-up values are easier to read as rows

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from hagane.console.figures import wilson
from hagane.terms import Row, RunRecord, Scorecard, digest_bytes

OWNERS = {"arm": "member-robots", "road": "member-cars", "mill": "member-steel"}
DATASETS = {"arm-demo": "arm", "road-demo": "road", "mill-demo": "mill"}
TASKS = ("reach-v3", "drawer-open-v3", "button-press-topdown-v3", "window-open-v3", "pick-place-v3")


def sha(text: str) -> str:
    """A digest that looks real."""
    return digest_bytes(text.encode())


def make_run(root: Path, *, steps: int = 1200) -> Path:
    """runs/made-up under `root`, every part present."""
    run = root / "runs" / "made-up"
    for name in ("scorecards", "replays", "checkpoints/step-001200"):
        (run / name).mkdir(parents=True)
    (run / "config.toml").write_text('datasets = ["arm-demo", "road-demo", "mill-demo"]\nsize = "1m"\nseed = 0\n')
    (run / "checkpoints/step-001200/model.toml").write_text(_model_toml())
    write(run / "record.json", record(steps))
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in metrics(steps)) + "\n")
    for card in cards():
        write(run / "scorecards" / f"{card.embodiment}.json", card)
    for name, replay in (("arm", arm_replay()), ("road", road_replay()), ("mill", mill_replay())):
        write(run / "replays" / f"{name}.json", replay)
    write(run / "story.json", story())
    return run


def write(path: Path, value: Any) -> None:
    """JSON of a dataclass or plain values."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    path.write_text(json.dumps(plain, ensure_ascii=False))


def record(steps: int) -> RunRecord:
    """What a run says of itself."""
    return RunRecord(
        id="made-up",
        config_digest=sha("config"),
        code_digest=sha("code"),
        datasets={d: sha(d) for d in DATASETS},
        contracts={d: sha("contract of " + d) for d in DATASETS},
        owners={d: OWNERS[e] for d, e in DATASETS.items()},
        seed=0,
        steps=steps,
        checkpoint_id=sha("checkpoint"),
        environment={"python": "3.11", "torch": "2.13", "machine": "x86_64"},
    )


def metrics(steps: int) -> list[dict[str, Any]]:
    """Loss curves that fall, and expert loads that respect the gates."""
    rng = np.random.default_rng(1)
    owners = ["consortium"] * 2 + ["member-cars"] * 2 + ["member-robots"] * 2 + ["member-steel"] * 2
    lines = []
    for step in range(1, steps + 1):
        line: dict[str, Any] = {
            "step": step,
            "lr": 1e-3,
            "seconds": step * 0.18,
            "samples_per_s": 1050 + 40 * rng.normal(),
        }
        for k, name in enumerate(OWNERS):
            line[f"loss/{name}"] = (0.03 + 0.02 * k + 0.9 * math.exp(-step / (140 + 60 * k))) * math.exp(
                0.12 * rng.normal()
            )
            line[f"next/{name}"] = 0.02 + 0.5 * math.exp(-step / 200)
        line["loss"] = sum(line[f"loss/{n}"] for n in OWNERS) / 3
        if step % 100 == 0 or step == steps:
            for k, name in enumerate(OWNERS):
                line[f"held_out/{name}"] = (0.03 + 0.02 * k) * 1.25 + 0.95 * math.exp(-step / (150 + 60 * k))
                line[f"experts/{name}"] = [
                    _share(rng, [o in ("consortium", OWNERS[name]) for o in owners]) for _ in range(4)
                ]
        lines.append(line)
    return lines


def _share(rng: np.random.Generator, permitted: list[bool]) -> list[float]:
    raw = rng.gamma(3.0, size=len(permitted)) * np.array(permitted)
    return [float(v) for v in raw / raw.sum()]


def cards() -> list[Scorecard]:
    """Three cards with all rows; figures near those of the prototype."""
    arm = []
    for task, ours in zip(TASKS, (40, 39, 38, 37, 31), strict=True):
        for who, hits in (
            ("untrained", 0),
            ("constant: hold still", 0),
            ("classical: straight lines", 18),
            ("ours", ours),
            ("expert", 40),
        ):
            p = hits / 40
            half = 1.96 * math.sqrt(max(p * (1 - p), 0.02) / 40)
            arm.append(Row(task, who, p, max(0.0, p - half), min(1.0, p + half), 40))
    for who in dict.fromkeys(r.who for r in arm):
        hits = sum(r.score * r.n for r in arm if r.who == who)
        low, high = wilson(hits, 200)
        arm.append(Row("all", who, hits / 200, low, high, 200))
    terms = {"nc": 0.97, "dac": 0.99, "ep": 0.81, "ttc": 0.94, "comfort": 1.0}
    road = [
        Row(case, who, s + shift, s + shift - 0.03, s + shift + 0.03, 64, terms)
        for case, shift in (("right-hand", 0.0), ("left-hand", -0.012))
        for who, s in (
            ("untrained", 0.11), ("simplest: constant velocity", 0.55), ("simplest: lane + constant speed", 0.684),
            ("classical: IDM", 0.827), ("ours", 0.846), ("expert", 0.9),
        )
    ]  # fmt: skip
    mill = [
        Row("delay-25", who, s, s - e, s + e, 32, {"in_band": b})
        for who, s, e, b in (
            ("untrained", -41200.0, 2600.0, 0.02), ("constant: last pressure", -2876.0, 410.0, 0.31),
            ("classical: tuned PI", -33.0, 120.0, 0.62), ("classical: Smith predictor", 611.0, 96.0, 0.74),
            ("ours", 702.0, 88.0, 0.81), ("expert", 1668.0, 41.0, 0.97),
        )
    ]  # fmt: skip
    seeds = tuple(range(900_000, 900_040))
    return [
        Scorecard(
            "arm", "success rate within 200 steps (2.5 s), higher is better", tuple(arm), seeds, sha("checkpoint")
        ),
        Scorecard("road", "PDM-style driving score, 0..1, higher is better", tuple(road), seeds, sha("checkpoint")),
        Scorecard("mill", "return at sensor delay 25, higher is better", tuple(mill), seeds, sha("checkpoint")),
    ]


def arm_replay() -> dict[str, Any]:
    """A hand that sweeps over the table to a box."""
    table = [0, 0.6, -0.027, 0.7, 0, 0, 0, 0.4, 0, 0, 0, 0.027]
    episodes = []
    for who in ("ours", "expert", "classical: straight lines"):
        frames: list[dict[str, Any]] = []
        for k in range(100):
            u = k / 99
            hand = [0.3 * math.sin(3 * u), 0.5 + 0.2 * u, 0.3 - 0.15 * u]
            links = [
                [0, 0, 0],
                [0, 0, 0.08],
                [-0.07, 0.06, 0.32],
                [-0.25, 0.13, 0.39],
                [-0.28, 0.32, 0.56],
                [-0.1, 0.35, 0.59],
                [hand[0], hand[1] - 0.1, hand[2] + 0.2],
                hand,
            ]
            frame: dict[str, Any] = {
                "links": links, "fingers": [[hand[0] - 0.04, *hand[1:]], [hand[0] + 0.04, *hand[1:]]],
                "boxes": [[0.1, 0.7, 0.02, 0.02, 0, 0, 0, 0.02, 0, 0, 0, 0.02]], "goal": [0.05, 0.8, 0.2], "success": int(k > 90),
            }  # fmt: skip
            if k == 0:
                frame["static"] = {"table": table, "boxes": [[-0.2, 0.85, 0.1, 0.1, 0, 0, 0, 0.05, 0, 0, 0, 0.1]]}
            frames.append(frame)
        episodes.append({"case": "reach-v3", "who": who, "seed": 900_000, "score": 1.0, "frames": frames})
    return {"embodiment": "arm", "kind": "arm", "rate_hz": 80.0, "episodes": episodes}


def road_replay() -> dict[str, Any]:
    """A bend with a slower car ahead."""

    def point(s: float, d: float) -> list[float]:
        return [round(s, 2), round(d + 4 * math.sin(s / 60), 2)]

    lines = [
        [kind, [point(s, d) for s in range(-60, 260, 5)]]
        for kind, d in (("edge", -2.0), ("edge", 5.5), ("dash", 1.75), ("route", 0.0))
    ]
    episodes = []
    for who in ("ours", "expert", "classical: IDM"):
        frames: list[dict[str, Any]] = []
        for k in range(80):
            s = k * 1.2
            frame: dict[str, Any] = {
                "ego": [*point(s, 0), math.atan(4 / 60 * math.cos(s / 60)), 4.8, 1.9],
                "agents": [[*point(30 + k * 0.9, 0), 0.05, 4.6, 1.9], [*point(-20 + k * 1.5, 3.6), 0.05, 4.6, 1.9]],
                "objects": [], "speed": 12.0 - k * 0.03, "limit": 13.9,
                "terms": {"nc": 1.0, "dac": 1.0, "ep": 0.9, "ttc": 1.0, "comfort": 1.0, "progress_m": s},
            }  # fmt: skip
            if k == 0:
                frame["static"] = {"lines": lines, "side": "right"}
            frames.append(frame)
        episodes.append({"case": "right-hand", "who": who, "seed": 900_000, "score": 0.87, "frames": frames})
    return {"embodiment": "road", "kind": "road", "rate_hz": 10.0, "episodes": episodes}


def mill_replay() -> dict[str, Any]:
    """Set-point steps that the measured value sees late."""
    rng = np.random.default_rng(2)
    episodes = []
    for who, lag in (("ours", 9), ("classical: tuned PI", 40), ("expert", 4)):
        coating, frames, past = 130.0, [], [130.0] * 25
        for k in range(300):
            minimum = 120.0 + 22.0 * (k // 75 % 2)
            coating += (1.04 * minimum - coating) / lag + float(rng.normal()) * 0.6
            past.append(coating)
            frame = {
                "t": k, "minimum": minimum, "coating": round(coating, 2), "measured": round(past[-26] + float(rng.normal()) * 0.8, 2),
                "pressure": round(60 - 0.25 * coating, 2), "distance": 12.5, "speed": 2.1 + 0.3 * (k > 150), "return": 0.7 * k,
            }  # fmt: skip
            frames.append(frame if k else frame | {"static": {"delay": 25, "over_limit": 1.125}})
        episodes.append({"case": "delay-25", "who": who, "seed": 900_000, "score": 702.0, "frames": frames})
    return {"embodiment": "mill", "kind": "mill", "rate_hz": 1.0, "episodes": episodes}


def story() -> dict[str, Any]:
    """What the demo tells."""
    steps = (
        ("members' machines write logs", "hagane demo --only logs", 21.0), ("intake under contract", "hagane intake runs/logs/arm --embodiment arm --contract contracts/arm.toml", 9.5),
        ("train one model on all of it", "hagane train --data arm-demo road-demo mill-demo --size 1m", 231.0),
        ("judge it in closed loop", "hagane evaluate runs/made-up/checkpoints/step-001200", 122.0), ("serve, and drive through the guard", "hagane serve runs/made-up/checkpoints/step-001200", 14.0),
    )  # fmt: skip
    return {
        "title": "One network, three machines",
        "machine": {"processor": "2 cores, x86_64", "memory": "7.8 GiB", "accelerator": "none"},
        "started": "2026-03-01T09:30:00+09:00",
        "seconds": 421.3,
        "steps": [{"name": n, "command": c, "seconds": s, "lines": [f"{n}: line {k}" for k in range(4)]} for n, c, s in steps],
        "intake": [
            {"dataset": "arm-demo", "owner": "member-robots", "format": "LeRobot v3", "episodes": 400, "findings": []},
            {"dataset": "road-demo", "owner": "member-cars", "format": "candump + DBC", "episodes": 800,
             "findings": ["episode 12, ego: 3 missing samples at 4.1 s"]},
            {"dataset": "mill-demo", "owner": "member-steel", "format": "historian CSV", "episodes": 1000,
             "findings": ["episode 3, measured: stuck for 12 s from 40 s", "episode 9, pressure: 1 duplicate at 7 s", "episode 31: clock jumps back 0.8 s at 112 s"]},
        ],
        "refusals": [{"what": "read foreign-line", "who": "site kobe-1 (JP), purpose anchor",
                      "reason": "the contract allows DE only, and this site is in JP"}],
        "lineage": {
            "action": {"machine": "arm", "time": "2026-03-01T09:36:41+09:00", "values": [0.12, -0.4, 0.03, 1.0], "chunk": sha("chunk")},
            "checkpoint": sha("checkpoint"), "run": "made-up",
            "datasets": [{"name": d, "owner": OWNERS[e], "digest": sha(d), "contract_digest": sha("contract of " + d)} for d, e in DATASETS.items()],
            "ledger": {"size": 47, "root": sha("root")},
        },
        "drives": [
            {"embodiment": e, "score": s, "interventions": i, "latency_ms_p50": 7.1, "latency_ms_p99": 15.9, "recording": f"runs/made-up/drives/{e}.mcap", "came_back": 1}
            for e, s, i in (("arm", 1.0, 0), ("road", 0.88, 1), ("mill", 655.0, 0))
        ],
    }  # fmt: skip


def _model_toml() -> str:
    machines = "\n".join(
        f'[[embodiments]]\nname = "{e}"\nowner = "{o}"\n[[embodiments.act]]\nname = "a"\n' for e, o in OWNERS.items()
    )
    return f'size = "1m"\n{machines}\n[experts]\nconsortium = 2\n' + "".join(f"{o} = 2\n" for o in OWNERS.values())
