"""Pictures of the arm, where OpenGL is present; one clear message where it is not."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from hagane.terms import ConfigError
from hagane.worlds import make

pytest.importorskip("mujoco", reason="MuJoCo is not installed: pip install hagane[worlds]")
pytest.importorskip("metaworld", reason="Meta-World is not installed: pip install hagane[worlds]")

from hagane.worlds.arm import ArmWorld
from hagane.worlds.arm_render import Camera


@pytest.fixture(scope="module")
def world() -> ArmWorld:
    made = make("arm")
    assert isinstance(made, ArmWorld)
    made.reset("pick-place-v3", [1, 2])
    return made


def test_pictures_show_the_state(world: ArmWorld) -> None:
    try:
        camera = Camera(world, px=64)
    except ConfigError as e:
        pytest.skip(f"no OpenGL: {e.what}")
    first, other = camera.picture(0), camera.picture(1)
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert first.std() > 10 and (first != other).any()
    np.testing.assert_array_equal(first, camera.picture(0))
    for _ in range(10):
        world.step(np.ones((2, 4), np.float32))
    assert (camera.picture(0) != first).any()
    world.reset("reach-v3", [1])
    with pytest.raises(ConfigError, match="another task"):
        camera.picture(0)
    camera.close()


def test_without_opengl_there_is_one_clear_message(world: ArmWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in ("mujoco.egl", "mujoco.osmesa"):
        monkeypatch.setitem(sys.modules, backend, None)
    world.reset("reach-v3", [1])
    with pytest.raises(ConfigError, match="no off-screen OpenGL") as caught:
        Camera(world)
    assert "libegl1 or libosmesa6" in caught.value.next_step


def test_wrong_camera_and_unready_world(world: ArmWorld) -> None:
    world.reset("reach-v3", [1])
    with pytest.raises(ConfigError, match="no camera 'moon'"):
        Camera(world, camera="moon")
    with pytest.raises(ConfigError, match="no copies yet"):
        Camera(ArmWorld())
