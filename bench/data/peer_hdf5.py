"""HDF5 as ALOHA keeps it: one file an episode, JPEG bytes padded to the longest of the file, one row at a time.

Files stay open (the usual reader opens one a sample), and decoding is done as our loader does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from source import CAMERAS, CHUNK, Source
from worker import Loaded, decode_batch, serve, torch_batches


class Rows:
    """A map-style data set with batched reads; files are opened where they are read."""

    def __init__(self, folder: Path, steps: int, episodes: int, decode: Mapping[str, Any]) -> None:
        self.folder, self.steps, self.episodes, self.decode = folder, steps, episodes, dict(decode)
        self._files: dict[int, list[Any]] = {}

    def __len__(self) -> int:
        return self.steps * self.episodes

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        import torch

        jpegs, states, chunks = [], [], []
        for index in indices:
            episode, t = divmod(index, self.steps)
            *cameras, state, action = self._open(episode)
            jpegs.append([c[t] for c in cameras])
            states.append(state[t])
            chunk = action[t : t + CHUNK]
            chunks.append(np.concatenate([chunk, np.repeat(chunk[-1:], CHUNK - len(chunk), 0)]))
        batch = {"row": np.array(indices), "pictures": decode_batch(jpegs, self.decode)}
        batch |= {"state": np.stack(states), "chunk": np.stack(chunks)}
        return {k: torch.from_numpy(v) for k, v in batch.items()}

    def _open(self, episode: int) -> list[Any]:
        import h5py

        if episode not in self._files:
            file = h5py.File(self.folder / f"episode_{episode}.hdf5", "r")
            names = [*(f"observations/images/{c}" for c in CAMERAS), "observations/qpos", "action"]
            self._files[episode] = [file[n] for n in names]
        return self._files[episode]


class Hdf5:
    """The layout with h5py."""

    packages = ("h5py", "torch", "numpy", "simplejpeg")
    floor_db = 40.0
    random_access = True

    def __init__(self, mode: str) -> None:
        import torch

        torch.set_num_threads(1)

    def write(self, source: Source, folder: Path) -> None:
        import h5py

        steps = source.spec.steps
        for episode in range(source.spec.episodes):
            rows = slice(episode * steps, (episode + 1) * steps)
            with h5py.File(folder / f"episode_{episode}.hdf5", "w") as file:
                for camera, name in enumerate(CAMERAS):
                    jpegs = [source.jpeg(r, camera) for r in range(rows.start, rows.stop)]
                    padded = np.zeros((steps, max(map(len, jpegs))), np.uint8)
                    for place, data in zip(padded, jpegs, strict=True):
                        place[: len(data)] = np.frombuffer(data, np.uint8)
                    file.create_dataset(f"observations/images/{name}", data=padded, chunks=(1, padded.shape[1]))
                file["observations/qpos"], file["action"] = source.state[rows], source.action[rows]

    def open(self, source: Source, folder: Path, decode: Mapping[str, Any]) -> None:
        self._rows = Rows(folder, source.spec.steps, source.spec.episodes, decode)

    def batches(self, count: int, seed: int, workers: int) -> Iterator[Any]:
        return torch_batches(self._rows, count, seed, workers)

    def loaded(self, batch: Any) -> Loaded:
        b = {k: v.numpy() for k, v in batch.items()}
        return Loaded(b["row"], b["pictures"], b["state"], b["chunk"])

    def facts(self) -> dict[str, Any]:
        return {"dtype": "uint8"}


if __name__ == "__main__":
    raise SystemExit(serve(Hdf5))
