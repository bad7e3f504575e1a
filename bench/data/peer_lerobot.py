"""LeRobotDataset as its documentation uses it: `delta_timestamps` for the chunk, torch's DataLoader, shuffle.

Modes: av1 (its default), h264, image. Its videos have a key frame every second frame (its default).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from source import CAMERAS, CHUNK, FPS, SIZE, WIDTH, Source
from worker import Loaded, compare, serve, torch_batches

sys.path.append(str(Path(__file__).parents[1]))
KEYS = tuple(f"observation.images.{c}" for c in CAMERAS)
KEPT_OPEN = "pyav kept open"
CODECS = {"av1": "libsvtav1", "h264": "h264"}


class LeRobot:
    """One of the peer's ways to keep pictures."""

    packages = ("lerobot", "torch", "torchcodec", "av", "datasets", "numpy")
    random_access = True

    def __init__(self, mode: str) -> None:
        self._module, self._mode = peer_module(), mode
        self.floor_db = 99.0 if mode == "image" else 28.0
        self._decoders: dict[str, Any] = {}

    def write(self, source: Source, folder: Path) -> None:
        vectors = {k: {"dtype": "float32", "shape": (WIDTH,), "names": None} for k in ("observation.state", "action")}
        names = ["height", "width", "channels"]
        kind = "image" if self._mode == "image" else "video"
        pictures = {k: {"dtype": kind, "shape": (SIZE, SIZE, 3), "names": names} for k in KEYS}
        codec: dict[str, Any] = {}
        if kind == "video":
            # its streaming encoder drops frames when its queue is full, and says so only in a warning
            codec = {"vcodec": CODECS[self._mode], "streaming_encoding": True}
            codec["encoder_queue_maxsize"] = 2 * source.spec.steps
        made = self._module.LeRobotDataset.create(
            "bench/set", FPS, vectors | pictures, root=folder / "set", use_videos=kind == "video", **codec
        )
        for row in range(len(source)):
            frame = {k: source.picture(row, c) for c, k in enumerate(KEYS)}
            frame |= {"observation.state": source.state[row], "action": source.action[row], "task": "go"}
            made.add_frame(frame)
            if (row + 1) % source.spec.steps == 0:
                made.save_episode()
        made.finalize()

    def open(self, source: Source, folder: Path, decode: Mapping[str, Any]) -> None:
        self._folder = folder / "set"
        self._set = open_set(self._folder, "pyav")
        if self._mode != "image":
            self._choose_decoder(source)

    def batches(self, count: int, seed: int, workers: int) -> Iterator[Any]:
        if workers:
            # its decoders do not survive a fork: workers start afresh and open the set themselves
            fresh = Fresh(self._folder, self._set.video_backend, len(self._set))
            return torch_batches(fresh, count, seed, workers, "spawn")
        return torch_batches(self._set, count, seed, 0)

    def loaded(self, batch: Any) -> Loaded:
        pictures = np.stack([batch[k].numpy() for k in KEYS], 1).transpose(0, 1, 3, 4, 2)
        return Loaded(
            batch["index"].numpy(),
            np.rint(pictures * 255).astype(np.uint8),
            batch["observation.state"].numpy(),
            batch["action"].numpy(),
        )

    def facts(self) -> dict[str, Any]:
        dtype = str(self._set[0][KEYS[0]].dtype).removeprefix("torch.")
        return {"dtype": dtype, "video_backend": self._set.video_backend, "decoders": self._decoders}

    def _choose_decoder(self, source: Source) -> None:
        """Time the peer's two decoders, and one of ours in their place; take the fastest that gives right frames."""
        for backend in ("torchcodec", "pyav", KEPT_OPEN):
            self._set = open_set(self._folder, backend)
            try:
                loaded = self.loaded(next(self.batches(1, 0, 0)))
                for k in range(len(loaded.rows)):
                    compare(source, loaded, k, self.floor_db)
                began = time.process_time()
                samples = sum(len(b["index"]) for b in self.batches(4, 1, 0))
                self._decoders[backend] = round(samples / (time.process_time() - began), 1)
            except Exception as e:
                self._decoders[backend] = f"{type(e).__name__}: {str(e).splitlines()[0]}"[:200]
        worked = {k: v for k, v in self._decoders.items() if isinstance(v, float)}
        if not worked:
            raise RuntimeError(f"no decoder of the peer works here: {self._decoders}")
        self._set = open_set(self._folder, max(worked, key=worked.__getitem__))


def peer_module() -> Any:
    """The peer's module, imported with what it lacks here, on one thread."""
    from lerobot_peer import define_missing_operators

    if "lerobot" not in sys.modules:
        define_missing_operators()
    import datasets
    import torch
    from lerobot.datasets import lerobot_dataset

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    return lerobot_dataset


def open_set(folder: Path, backend: str) -> Any:
    """The peer's data set with the chunk asked for as its documentation does."""
    module = peer_module()
    if not hasattr(module, "their_decode"):
        module.their_decode = module.decode_video_frames
    module.decode_video_frames = decode_kept_open if backend == KEPT_OPEN else module.their_decode
    chunk = {"action": [k / FPS for k in range(CHUNK)]}
    return module.LeRobotDataset("bench/set", root=folder, delta_timestamps=chunk, video_backend=backend)


class Fresh:
    """The peer's data set for a worker process that was started afresh."""

    def __init__(self, folder: Path, backend: str, rows: int) -> None:
        self.folder, self.backend, self.rows = folder, backend, rows
        self._set: Any = None

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Any:
        if self._set is None:
            self._set = open_set(self.folder, self.backend)
        return self._set[index]


_open: dict[str, Any] = {}


def decode_kept_open(path: Path, times_s: list[float], tolerance_s: float, backend: str | None = None) -> Any:
    """[K, 3, H, W] float32 in 0..1, as the peer's own decoders give it, by PyAV with files kept open.

    For machines where torchcodec finds no FFmpeg: the peer's own PyAV path needs a part that torchvision has dropped.
    """
    import av
    import torch

    container = _open.get(str(path)) or _open.setdefault(str(path), av.open(str(path)))
    stream = container.streams.video[0]
    frames = []
    for time_s in times_s:
        container.seek(round(time_s / stream.time_base), stream=stream, backward=True)
        frame = next(f for f in container.decode(stream) if f.time > time_s - 0.5 / FPS)
        if abs(frame.time - time_s) > tolerance_s:
            raise ValueError(f"no frame at {time_s} s of {path}")
        frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1))
    return torch.stack(frames).to(torch.float32) / 255


if __name__ == "__main__":
    raise SystemExit(serve(LeRobot))
