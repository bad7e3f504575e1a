"""The registry: worlds by name, found through entry points, so that a new machine needs no edit of hagane."""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points

from hagane.terms import ConfigError, Embodiment
from hagane.worlds.base import World

GROUP = "hagane.worlds"
"""Entry point group: name = "package.module:factory", a factory without arguments that gives a World."""
PARTS: tuple[str, ...] = (
    *("embodiment", "cases", "measure", "step_limit", "pilots"),
    *("reset", "observe", "step", "tasks", "alive", "scores", "details", "draw"),
)
"""What a World must have."""


def names() -> tuple[str, ...]:
    """Names of all installed worlds, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def make(name: str) -> World:
    """A new world of that name.

    Raises:
        ConfigError: no such world, two packages that offer different ones, a package that it needs is not
            installed, or a factory that gives something else than a World.
    """
    point = _find(name)
    where = f"world {name!r} ({point.value})"
    try:
        world = point.load()()
    except ModuleNotFoundError as e:
        raise ConfigError(f"needs the Python module {e.name!r}", where=where, next_step=_install(point, e)) from e
    except (ImportError, AttributeError) as e:
        raise ConfigError(f"cannot be loaded: {e}", where=where, next_step="repair the package that offers it") from e
    return _checked(world, where)


def _find(name: str) -> EntryPoint:
    points = {p.value: p for p in entry_points(group=GROUP) if p.name == name}
    if not points:
        near = difflib.get_close_matches(name, names(), 3)
        known = ", ".join(names()) or "none"
        step = f"did you mean {' or '.join(near)}?" if near else f"installed worlds: {known}"
        raise ConfigError(f"no world {name!r}", where=f"entry points {GROUP!r}", next_step=step)
    if len(points) > 1:
        raise ConfigError(
            f"several packages offer a world {name!r}: {', '.join(sorted(points))}",
            where=f"entry points {GROUP!r}",
            next_step="uninstall all but one, or rename theirs",
        )
    return next(iter(points.values()))


def _install(point: EntryPoint, error: ModuleNotFoundError) -> str:
    own = point.value.startswith("hagane.") and not str(error.name).startswith("hagane")
    return 'pip install "hagane[worlds]"' if own else f"install the package that holds {error.name!r}"


def _checked(world: object, where: str) -> World:
    lacking = [part for part in PARTS if not hasattr(world, part)]
    if lacking:
        raise ConfigError(
            f"its factory gave a {type(world).__name__} without {', '.join(lacking)}",
            where=where,
            next_step="see World in hagane/worlds/base.py and docs/your-machine.md",
        )
    given: World = world  # type: ignore[assignment]
    if not isinstance(given.embodiment, Embodiment) or not given.cases:
        raise ConfigError("a world needs an Embodiment and at least one case", where=where)
    return given
