"""LeRobot v3.0 both ways: sets that hagane wrote open in the peer's own loader, and the peer's open here.

    make bench-lerobot        (makes an environment with lerobot 0.4.4 and runs this file in it)

Every value is compared. Prints one line a check; exits 1 when one fails. Known of the peer: with NumPy 2.4 its
writer fails on features of shape (1,) (its loader reads them), so it is given none.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from hagane.catalog import Catalog
from hagane.intake.lerobot import read
from hagane.intake.lerobot_rows import write_episodes
from hagane.intake.picture import plain_pictures
from hagane.seal import Site, TrustStore, generate_key, load_contract, public_of, sign_contract
from hagane.terms import APPLIED, Channel, Contract, Embodiment, Episode, Stream, dump_toml

STEPS, EPISODES, SIZE = 24, 5, (48, 64, 3)
ARM = Embodiment(
    "arm",
    "robot",
    "member-robots",
    20.0,
    8,
    (
        Channel("state", shape=(6,), unit=("rad",)),
        Channel("force", unit=("N",)),
        Channel("parts", kind="set", shape=(4, 3), unit=("m",)),
        Channel("cam", kind="image", shape=SIZE, role="camera"),
    ),
    (Channel("hand", shape=(3,)), Channel("grip")),
)
JOINTS = tuple(f"joint_{k}" for k in range(6))
# what the peer records: one state of seven columns, as robots there have it, which our channels name by column
THEIR_ARM = replace(
    ARM,
    observe=(
        replace(ARM.observe[0], source=tuple(f"observation.state.{name}" for name in JOINTS)),
        replace(ARM.observe[1], source=("observation.state.force",)),
        *ARM.observe[2:],
    ),
)


def made() -> Iterator[Episode]:
    """Episodes of random values; pictures are smooth, so that video can hold them."""
    rng = np.random.default_rng(0)
    y, x, _ = np.meshgrid(*(np.arange(n) for n in SIZE), indexing="ij")
    for number in range(EPISODES):
        steps = STEPS + number
        times = np.arange(steps, dtype=np.int64) * ARM.step_ns
        streams = {}
        for c in ARM.observe:
            if c.kind == "image":
                frames = [(x * 2 + y + 5 * t + 30 * number) % 256 * [1.0, 0.5, 0.25] for t in range(steps)]
                values = np.stack(frames).astype(np.uint8)
            else:
                values = rng.normal(size=(steps, *c.shape)).astype(np.float32)
            valid = rng.random((steps, c.places)) > 0.3 if c.kind == "set" else np.ones(steps, bool)
            streams[c.name] = Stream(times, values, valid, c.unit)
        for c in ARM.act:
            for name in (c.name, c.name + APPLIED):
                streams[name] = Stream(
                    times, rng.normal(size=(steps, *c.shape)).astype(np.float32), np.ones(steps, bool)
                )
        yield Episode(f"arm/{number:06d}", "arm", streams, f"put part {number % 2} away")


def equal(got: Any, want: Any, what: str, tolerance: float = 0.0) -> None:
    """Raise when two arrays differ by more than the tolerance."""
    a, b = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert a.shape == b.shape, f"{what}: shape {a.shape}, not {b.shape}"
    worst = np.abs(a - b).max(initial=0)
    assert worst <= tolerance, f"{what}: differs by {worst:g}"


def peer_dataset(root: Path, **more: Any) -> Any:
    """The peer's own loader on a local folder."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset(f"member/{root.name}", root=root, **more)


def compare_in_peer(root: Path) -> None:
    """Open a set in the peer's loader and compare every frame with what was recorded."""
    ds = peer_dataset(root)
    episodes = list(made())
    assert ds.num_episodes == EPISODES and ds.fps == 20
    assert len(ds) == sum(len(e.streams["state"]) for e in episodes)
    at = 0
    for number, e in enumerate(episodes):
        s = e.streams
        parts = np.where(s["parts"].valid[..., None], s["parts"].values, 0).reshape(len(s["parts"]), -1)
        action = np.concatenate([s["hand"].values, s["grip"].values], 1)
        applied = np.concatenate([s["hand" + APPLIED].values, s["grip" + APPLIED].values], 1)
        for k in range(len(s["state"])):
            item = ds[at]
            equal(item["observation.state"], s["state"].values[k], "observation.state")
            equal(item["observation.force"], s["force"].values[k, 0], "observation.force")
            equal(item["observation.parts"], parts[k], "observation.parts")
            equal(item["observation.parts.valid"], s["parts"].valid[k], "observation.parts.valid")
            equal(item["observation.cam"], s["cam"].values[k].transpose(2, 0, 1) / 255, "observation.cam", 1e-6)
            equal(item["action"], action[k], "action")
            equal(item["action.applied"], applied[k], "action.applied")
            equal(item["timestamp"], k / 20, "timestamp", 1e-6)
            assert int(item["episode_index"]) == number and int(item["frame_index"]) == k and int(item["index"]) == at
            assert item["task"] == e.task
            at += 1


def statistics_in_peer(root: Path) -> None:
    """The peer reads our statistics, and they are right."""
    stats = peer_dataset(root).meta.stats
    rows = np.concatenate([e.streams["state"].values for e in made()]).astype(np.float64)
    equal(stats["observation.state"]["mean"], rows.mean(0), "mean", 1e-6)
    equal(stats["observation.state"]["std"], rows.std(0), "std", 1e-6)
    equal(stats["observation.state"]["q99"], np.quantile(rows, 0.99, axis=0), "q99", 0.05)
    pixels = np.concatenate([e.streams["cam"].values for e in made()]).reshape(-1, 3) / 255
    equal(np.ravel(stats["observation.cam"]["std"]), pixels.std(0), "picture std", 1e-6)


def chunks_in_peer(root: Path) -> None:
    """The peer cuts action chunks out of our set, with its own padding, through a torch DataLoader."""
    import torch

    ds = peer_dataset(root, delta_timestamps={"action": [k / 20 for k in range(8)], "observation.state": [-0.05, 0.0]})
    item, first = ds[STEPS - 3], next(made())
    action = np.concatenate([first.streams["hand"].values, first.streams["grip"].values], 1)
    equal(item["action"][:3], action[-3:], "chunk")
    assert item["action_is_pad"].tolist() == [False] * 3 + [True] * 5
    batch = next(iter(torch.utils.data.DataLoader(ds, batch_size=16, shuffle=True)))
    assert tuple(batch["action"].shape) == (16, 8, 4) and tuple(batch["observation.state"].shape) == (16, 2, 6)


def peer_writes(root: Path, *, video: bool) -> None:
    """The peer records the same episodes with its own writer."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        "observation.state": {"dtype": "float32", "shape": (7,), "names": [*JOINTS, "force"]},
        "observation.parts": {"dtype": "float32", "shape": (12,), "names": None},
        "observation.cam": {
            "dtype": "video" if video else "image", "shape": SIZE, "names": ["height", "width", "channels"]
        },
        "action": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "grip"]},
    }  # fmt: skip
    ds = LeRobotDataset.create(f"member/{root.name}", 20, features, root=root, use_videos=video)
    for e in made():
        s = e.streams
        for k in range(len(s["state"])):
            ds.add_frame(
                {
                    "observation.state": np.concatenate([s["state"].values[k], s["force"].values[k]]),
                    "observation.parts": s["parts"].values[k].reshape(-1),
                    "observation.cam": s["cam"].values[k],
                    "action": np.concatenate([s["hand"].values[k], s["grip"].values[k]]),
                    "task": e.task,
                }
            )
        ds.save_episode()
    ds.finalize()


def compare_here(root: Path, picture_tolerance: float) -> None:
    """Read the peer's set here and compare every value with what was recorded."""
    back = list(read(root, THEIR_ARM))
    assert len(back) == EPISODES, f"{len(back)} episodes"
    for e, b in zip(made(), back, strict=True):
        assert b.task == e.task
        for name in ("state", "force", "parts", "hand", "grip"):
            equal(b.streams[name].values, e.streams[name].values, name)
            equal(b.streams[name].times_ns, e.streams[name].times_ns, f"{name} times")
        off = np.abs(plain_pictures(b.streams["cam"].values).astype(float) - e.streams["cam"].values)
        assert off.mean() <= picture_tolerance, f"pictures differ by {off.mean():.2f} of 255 on average"


def canonical(folder: Path) -> Path:
    """The canonical set that a catalog keeps, contract and all."""
    stored(folder, "view")
    return folder / "catalog" / "sets" / "arm-demo"


def stored(folder: Path, purpose: str) -> Catalog:
    """A catalog that holds the set "arm-demo" under a contract for one purpose."""
    key = generate_key(folder / "key.pem")
    trust = TrustStore(folder / "trust")
    trust.add(ARM.owner, public_of(key))
    terms = Contract(
        ARM.owner,
        ("arm-demo",),
        ("JP",),
        ("plant-7",),
        (purpose,),
        date(2099, 12, 31),
        date(2026, 1, 1),
        1,
        protection="process",
    )
    path = folder / "contract.toml"
    path.write_text(dump_toml(terms), "utf-8")
    sign_contract(path, key)
    catalog = Catalog.open(folder / "catalog", Site("plant-7", "JP", "consortium"), trust)
    catalog.add("arm-demo", ARM, load_contract(path, trust), made())
    return catalog


def define_missing_operators() -> None:
    """The peer imports torchvision, whose compiled operators need CUDA: give it their names only."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    define_missing_operators.keep = library  # type: ignore[attr-defined]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    try:
        define_missing_operators()
        import datasets
        import lerobot

        datasets.disable_progress_bars()
        print(f"peer: lerobot {lerobot.__version__}")
    except ImportError as e:
        print(f"the peer cannot be imported ({e}); run: make bench-lerobot", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = write_episodes(folder / "ours", ARM, made())
        kept = canonical(folder)
        checks: list[tuple[str, Callable[[], None]]] = [
            ("ours in the peer's loader, every value", lambda: compare_in_peer(ours)),
            ("a catalog's canonical set in the peer's loader, every value", lambda: compare_in_peer(kept)),
            ("our statistics as the peer reads them", lambda: statistics_in_peer(ours)),
            ("action chunks and batches by the peer", lambda: chunks_in_peer(ours)),
            ("the peer records with pictures", lambda: peer_writes(folder / "theirs", video=False)),
            ("the peer's set here, every value", lambda: compare_here(folder / "theirs", 0.0)),
            ("the peer records with video", lambda: peer_writes(folder / "theirs-video", video=True)),
            ("the peer's video set here", lambda: compare_here(folder / "theirs-video", 8.0)),
        ]
        bad = 0
        for title, check in checks:
            began = time.perf_counter()
            try:
                check()
                print(f"  right  {title} ({time.perf_counter() - began:.1f} s)", flush=True)
            except Exception as e:
                bad += 1
                print(f"  WRONG  {title}: {type(e).__name__}: {e}", flush=True)
                traceback.print_exc(limit=-3)
    print(f"{len(checks) - bad} of {len(checks)} checks are right")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
