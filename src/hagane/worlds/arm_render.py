"""Pictures of the arm with OpenGL, where EGL or OSMesa is present; nothing else in hagane needs them."""

from __future__ import annotations

import atexit
import importlib
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from hagane.terms import ConfigError
from hagane.worlds.arm import ArmWorld

BACKENDS = ("mujoco.egl", "mujoco.osmesa")
"""Off-screen OpenGL, in the order that is tried."""


class Camera:
    """Takes pictures of the copies of one world, all at one task.

    Raises:
        ConfigError: no off-screen OpenGL on this machine, no such camera, or a world that was not reset.
    """

    def __init__(self, world: ArmWorld, px: int = 96, camera: str = "corner2") -> None:
        if not world.cells:
            raise ConfigError("the world has no copies yet", where="arm camera", next_step="call reset first")
        self.world, self.px = world, px
        self._upside_down = camera.startswith("corner")  # Meta-World mounted these so
        self.model = world.cells[0].task.model
        names = [self.model.camera(i).name for i in range(self.model.ncam)]
        if camera not in names:
            raise ConfigError(f"no camera {camera!r}", where="arm camera", next_step=f"use one of {', '.join(names)}")
        self.model.vis.quality.shadowsize = 1024  # a third of the default's time, a near-identical picture
        self.model.vis.quality.offsamples = 0
        self._gl = _context(px)
        atexit.register(self._gl.free)  # later, OpenGL's own library is gone and complains
        self._gl.make_current()
        self._context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(self.model, maxgeom=1000)
        self._view = mujoco.MjvCamera()
        self._view.type, self._view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, names.index(camera)

    def picture(self, copy: int) -> NDArray[np.uint8]:
        """[px, px, 3] the present state of one copy.

        Raises:
            ConfigError: the world went on to another task.
        """
        cell = self.world.cells[copy]
        if cell.task.model is not self.model:
            raise ConfigError("the world shows another task now", where="arm camera", next_step="make a new Camera")
        self._gl.make_current()
        option, every = mujoco.MjvOption(), mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self.model, cell.data, option, None, self._view, every, self._scene)
        frame = mujoco.MjrRect(0, 0, self.px, self.px)
        pixels = np.empty((self.px, self.px, 3), np.uint8)
        mujoco.mjr_render(frame, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, frame, self._context)
        pixels = pixels[::-1]  # OpenGL counts rows from below
        return (pixels[::-1, ::-1] if self._upside_down else pixels).copy()

    def close(self) -> None:
        """Give the OpenGL context back."""
        atexit.unregister(self._gl.free)
        self._context.free()
        self._gl.free()


def _context(px: int) -> Any:
    reasons = []
    for backend in BACKENDS:
        try:
            return importlib.import_module(backend).GLContext(px, px)
        except Exception as e:  # a missing library shows as any of a dozen errors, by platform
            reasons.append(f"{backend.split('.')[1]}: {str(e).splitlines()[0] if str(e) else type(e).__name__}")
    raise ConfigError(
        f"no off-screen OpenGL ({'; '.join(reasons)})",
        where="arm camera",
        next_step="install libegl1 or libosmesa6 for pictures; states and replays need neither",
    )
