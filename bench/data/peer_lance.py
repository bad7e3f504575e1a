"""Lance: JPEG bytes in binary columns, the chunk written out in each row, random rows by one `take` a batch.

Lance stores bytes; decoding is its user's work. It is done here as our loader does it: the same decoder, settings and
one buffer a batch, so that the row differs from ours by access alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from source import CAMERAS, CHUNK, WIDTH, Source
from worker import Loaded, decode_batch, episode_chunks, serve, torch_batches


class Rows:
    """A map-style data set with batched reads; opens itself again in a worker process (Lance cannot be forked)."""

    def __init__(self, path: str, rows: int, decode: Mapping[str, Any]) -> None:
        self.path, self.rows, self.decode = path, rows, dict(decode)
        self._set: Any = None

    def __len__(self) -> int:
        return self.rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_set": None}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        import lance
        import torch

        if self._set is None:
            self._set = lance.dataset(self.path)
        table = self._set.take(indices)
        cameras = [[np.frombuffer(v.as_buffer(), np.uint8) for v in table.column(c)] for c in CAMERAS]
        pictures = decode_batch([list(pair) for pair in zip(*cameras, strict=True)], self.decode)
        vectors = {k: _floats(table.column(k)) for k in ("state", "chunk")}
        batch = {"row": table.column("row").to_numpy(), "pictures": pictures, **vectors}
        return {k: torch.from_numpy(v) for k, v in batch.items()}


class Lance:
    """The peer, in its present default file version."""

    packages = ("pylance", "pyarrow", "torch", "numpy", "simplejpeg")
    floor_db = 40.0
    random_access = True

    def __init__(self, mode: str) -> None:
        import torch

        torch.set_num_threads(1)

    def write(self, source: Source, folder: Path) -> None:
        import lance
        import pyarrow as pa

        def fixed(values: NDArray[np.float32]) -> Any:
            return pa.FixedSizeListArray.from_arrays(values.ravel(), values[0].size)

        rows = range(len(source))
        columns = {c: pa.array([source.jpeg(r, k) for r in rows], pa.large_binary()) for k, c in enumerate(CAMERAS)}
        columns |= {"state": fixed(source.state), "chunk": fixed(episode_chunks(source)), "row": pa.array(rows)}
        lance.write_dataset(pa.table(columns), str(folder / "set.lance"))

    def open(self, source: Source, folder: Path, decode: Mapping[str, Any]) -> None:
        self._rows = Rows(str(folder / "set.lance"), len(source), decode)

    def batches(self, count: int, seed: int, workers: int) -> Iterator[Any]:
        return torch_batches(self._rows, count, seed, workers, "spawn" if workers else None)

    def loaded(self, batch: Any) -> Loaded:
        b = {k: v.numpy() for k, v in batch.items()}
        return Loaded(b["row"], b["pictures"], b["state"], b["chunk"].reshape(-1, CHUNK, WIDTH))

    def facts(self) -> dict[str, Any]:
        return {"dtype": "uint8"}


def _floats(column: Any) -> NDArray[np.float32]:
    chunk = column.combine_chunks()
    values: NDArray[np.float32] = chunk.flatten().to_numpy().reshape(len(chunk), -1)
    return values.copy()  # Arrow's memory cannot be written to, which torch warns of


if __name__ == "__main__":
    raise SystemExit(serve(Lance))
