"""What a replay of the arm needs: joints, fingers, boxes and the goal as numbers; no OpenGL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hagane.worlds.base import Drawing

if TYPE_CHECKING:
    from hagane.worlds.arm_cell import Cell

CHAIN = (
    *("right_arm_base_link", "right_l0", "right_l1", "right_l2", "right_l3", "right_l4", "right_l5", "right_l6"),
    "hand",
)
"""Bodies of the Sawyer arm from the pedestal to the hand."""
PLANE = 0
"""MuJoCo's geom type of an infinite plane, which has no box."""


def draw(cell: Cell) -> Drawing:
    """One copy's present state, metres; x to the right, y away from the arm's base, z up.

    Keys: `links` [9, 3] joints from base to hand; `fingers` [2, 3]; `boxes` [k, 12] things that move, each a
    centre and three half-edge vectors (corners are centre +-u +-v +-w); `goal` [3]; `success` 0 or 1. The first
    frame has `static`: `table` [12] and `boxes` [m, 12] that stand still, with `names` of both lists' bodies.
    """
    model, data = cell.task.model, cell.data
    links = [data.body(name).xpos for name in CHAIN]
    fingers = [data.xpos[cell.task.right], data.xpos[cell.task.left]]
    shown = _shown(model)
    moving = [g for g in shown if model.body_weldid[model.geom_bodyid[g]] != 0]
    values: dict[str, Any] = {
        "links": _plain(np.array(links)),
        "fingers": _plain(np.array(fingers)),
        "boxes": [_plain(_box(model, data, g)) for g in moving],
        "goal": _plain(cell.goal),
        "success": int(cell.success),
    }
    if cell.steps == 0:
        still = [g for g in shown if g not in moving]
        table = next(g for g in range(model.ngeom) if model.body(model.geom_bodyid[g]).name == "tablelink")
        values["static"] = {
            "table": _plain(_box(model, data, table)),
            "boxes": [_plain(_box(model, data, g)) for g in still],
            "names": {"boxes": _names(model, moving), "static": _names(model, still)},
        }
    return Drawing("arm", values)


def _shown(model: Any) -> list[int]:
    """Geoms of the task's own things that are seen (groups 0 and 1; others are for contacts only)."""
    first = model.body("mocap").id + 1
    return [
        g
        for g in range(model.ngeom)
        if model.geom_bodyid[g] >= first and model.geom_group[g] <= 1 and model.geom_type[g] != PLANE
    ]


def _box(model: Any, data: Any, geom: int) -> NDArray[np.float64]:
    """[12] centre and three half-edge vectors of a geom's bounding box, turned as the geom is."""
    turn = data.geom_xmat[geom].reshape(3, 3)
    centre = data.geom_xpos[geom] + turn @ model.geom_aabb[geom, :3]
    edges = turn * model.geom_aabb[geom, 3:]
    return np.concatenate([centre, edges.T.ravel()])


def _names(model: Any, geoms: list[int]) -> list[str]:
    return [model.body(model.geom_bodyid[g]).name or "part" for g in geoms]


def _plain(values: NDArray[np.float64]) -> Any:
    """Lists with tenths of a millimetre."""
    return np.round(values, 4).tolist()
