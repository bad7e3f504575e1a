"""The data set that every format is given: made once from a seed, kept as the JPEG bytes a camera would have logged.

Two cameras look at a textured background that pans, with three textured things moving before it, slow light and a
little sensor noise: pictures that a JPEG of quality 92 holds in 8 to 16 KB. NumPy and simplejpeg only, so that the
environment of every peer can read it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CAMERAS = ("cam0", "cam1")
SIZE, WIDTH, CHUNK, FPS = 224, 14, 16, 30
"""Pixels a side, columns of state and action, actions in a chunk, control steps a second."""
_BANK, _TEXTURE, _THING = 6, 640, 72


@dataclass(frozen=True)
class Spec:
    """What decides the content."""

    episodes: int = 40
    steps: int = 150
    seed: int = 0
    quality: int = 92

    @property
    def key(self) -> str:
        """Names the folder of this content."""
        text = json.dumps(asdict(self), sort_keys=True) + hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
        return f"{self.episodes}x{self.steps}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, eq=False)
class Source:
    """The content, opened. Control step t of episode e is row e * steps + t."""

    spec: Spec
    jpegs: NDArray[np.uint8]
    """All pictures' bytes end to end, memory-mapped."""
    offsets: NDArray[np.int64]
    """[rows * cameras + 1] where each begins: of a row, first cam0, then cam1."""
    state: NDArray[np.float32]
    """[rows, WIDTH]."""
    action: NDArray[np.float32]
    """[rows, WIDTH]."""

    def __len__(self) -> int:
        return len(self.state)

    def jpeg(self, row: int, camera: int) -> bytes:
        """One picture as logged."""
        at = row * len(CAMERAS) + camera
        return self.jpegs[self.offsets[at] : self.offsets[at + 1]].tobytes()

    def picture(self, row: int, camera: int) -> NDArray[np.uint8]:
        """[SIZE, SIZE, 3], decoded with the decoder's most exact settings: the truth of every comparison."""
        import simplejpeg

        image: NDArray[np.uint8] = simplejpeg.decode_jpeg(self.jpeg(row, camera))
        return image

    def chunk(self, row: int) -> tuple[NDArray[np.float32], int]:
        """[CHUNK, WIDTH] actions from a row on, and how many of them lie inside its episode."""
        end = (row // self.spec.steps + 1) * self.spec.steps
        inside = min(CHUNK, end - row)
        rows = np.minimum(np.arange(row, row + CHUNK), end - 1)
        return self.action[rows], inside


def open_source(folder: Path) -> Source:
    """Memory-map what `make_source` wrote."""
    spec = Spec(**json.loads((folder / "spec.json").read_text("utf-8")))
    offsets, state, action = (np.load(folder / f"{n}.npy") for n in ("offsets", "state", "action"))
    jpegs = np.memmap(folder / "jpegs.bin", np.uint8, "r").view(np.ndarray)
    return Source(spec, jpegs, offsets, state, action)


def make_source(folder: Path, spec: Spec) -> Source:
    """Write the content into a folder, unless it is there."""
    if not (folder / "spec.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([spec.seed, 1])
        bank = np.stack([_texture(rng) for _ in range(_BANK)])
        noise = rng.normal(0, 1.2, (2 * SIZE, 2 * SIZE, 3)).astype(np.float32)
        sizes, states, actions = [], [], []
        with (folder / "jpegs.bin").open("wb") as file:
            for episode in range(spec.episodes):
                state, action = _motion(spec, episode)
                states.append(state)
                actions.append(action)
                scenes = [_Scene(bank, noise, [spec.seed, 2, episode, camera]) for camera in range(len(CAMERAS))]
                for t in range(spec.steps):
                    for scene in scenes:
                        sizes.append(file.write(_encode(scene.frame(t), spec.quality)))
        np.save(folder / "offsets.npy", np.cumsum([0, *sizes], dtype=np.int64))
        np.save(folder / "state.npy", np.concatenate(states))
        np.save(folder / "action.npy", np.concatenate(actions))
        (folder / "spec.json").write_text(json.dumps(asdict(spec)), "utf-8")
    return open_source(folder)


def psnr_db(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal to noise ratio of two pictures; 99 when they are equal."""
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def _encode(image: NDArray[np.uint8], quality: int) -> bytes:
    import simplejpeg

    data: bytes = simplejpeg.encode_jpeg(image, quality=quality, colorsubsampling="420")
    return data


def _texture(rng: np.random.Generator) -> NDArray[np.float32]:
    """[_TEXTURE, _TEXTURE, 3] in 20..235: a 1/f field, as natural pictures have, mostly grey with some colour."""
    f = np.fft.fftfreq(_TEXTURE)
    fall = 1 / np.maximum(np.hypot(f[:, None], f[None, : _TEXTURE // 2 + 1]), 1 / _TEXTURE) ** 1.55
    fields = []
    for _ in range(3):
        phase = np.exp(2j * np.pi * rng.random(fall.shape))
        field = np.fft.irfft2(fall * phase, (_TEXTURE, _TEXTURE))
        fields.append(field / field.std())
    grey, red, blue = fields
    colours = np.stack([grey + 0.35 * red, grey, grey + 0.35 * blue], -1)
    return np.clip(127 + 45 * colours, 20, 235).astype(np.float32)


def _motion(spec: Spec, episode: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Smooth joint angles, and commands a little ahead of them. No two rows are alike."""
    rng = np.random.default_rng([spec.seed, 3, episode])
    t = np.arange(spec.steps + 4)[:, None] / FPS
    speed, phase, reach = (rng.uniform(a, b, (3, WIDTH)) for a, b in ((0.2, 2.5), (0, 6.3), (0.1, 0.7)))
    angle = sum(r * np.sin(w * t + p) for w, p, r in zip(speed, phase, reach, strict=True))
    angle += rng.normal(0, 1e-3, angle.shape)
    return angle[: spec.steps].astype(np.float32), angle[4:].astype(np.float32)


class _Scene:
    """What one camera sees in one episode."""

    def __init__(self, bank: NDArray[np.float32], noise: NDArray[np.float32], seed: list[int]) -> None:
        rng = np.random.default_rng(seed)
        self._noise, self._rng = noise, rng
        back, *self._things = bank[rng.permutation(len(bank))[:4]]
        self._back = np.pad(back, ((0, SIZE), (0, SIZE), (0, 0)), "wrap")
        self._start, self._pan = rng.integers(0, _TEXTURE, 2), rng.choice([-3, -2, 2, 3], 2)
        self._wave = rng.uniform(0.5, 1.5, (3, 2)), rng.uniform(0, 6.3, (3, 2))
        y, x = np.mgrid[:_THING, :_THING] / (_THING / 2) - 1
        self._inside = (x**2 + (1.3 * y) ** 2 < 1)[..., None]
        self._light = np.linspace(0.85, 1.1, SIZE, dtype=np.float32)[:, None, None]

    def frame(self, t: int) -> NDArray[np.uint8]:
        """[SIZE, SIZE, 3] at control step t; to be called with t ascending."""
        y, x = (self._start + self._pan * t) % _TEXTURE
        image = self._back[y : y + SIZE, x : x + SIZE].copy()
        for texture, speed, phase in zip(self._things, *self._wave, strict=True):
            place = (SIZE - _THING) / 2 * (1 + np.sin(2 * speed * t / FPS + phase))
            y, x = place.astype(int)
            spot = image[y : y + _THING, x : x + _THING]
            spot[:] = np.where(self._inside, texture[:_THING, :_THING], spot)
        image *= self._light * np.float32(1 + 0.05 * np.sin(t / 40))
        y, x = self._rng.integers(0, SIZE, 2)
        image += self._noise[y : y + SIZE, x : x + SIZE]
        return np.clip(image, 0, 255, out=image).astype(np.uint8)
