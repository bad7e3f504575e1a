"""Three members' machines write their logs: each in the format that such machines really write.

member-robots   arm    LeRobot v3 set
member-cars     road   candump text log + DBC
member-steel    mill   historian CSV, one column a tag
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hagane.terms import ConfigError, Embodiment, Episode
from hagane.worlds import World, collect, make


@dataclass(frozen=True)
class Member:
    """One member of the consortium and the machine it brings."""

    name: str
    """Owner of the machine and its logs."""
    world: str
    """The simulated machine."""
    format: str
    """What its logs are written in."""
    episodes: int
    """Runs in its log, over all cases."""

    @property
    def dataset(self) -> str:
        """Name of its data set."""
        return f"{self.world}-demo"


MEMBERS = (
    Member("member-robots", "arm", "LeRobot v3", 300),
    Member("member-cars", "road", "CAN (candump) + DBC", 700),
    Member("member-steel", "mill", "historian CSV", 700),
)


def member_of(world: str) -> Member:
    """The member that brings a world.

    Raises:
        ConfigError: none does.
    """
    for m in MEMBERS:
        if m.world == world:
            return m
    raise ConfigError(f"no member brings {world!r}", next_step=f"use one of {', '.join(m.world for m in MEMBERS)}")


def write_logs(world_name: str, folder: Path, episodes: int = 0) -> Path:
    """Let a member's machine run and log: demonstrations with noise on what is executed, clean commands.

    Args:
        world_name: arm, road or mill.
        folder: made if absent.
        episodes: runs over all cases; 0 takes the demo's number.

    Returns:
        the log: the path that `hagane intake` takes.
    """
    member = member_of(world_name)
    world = make(world_name)
    folder.mkdir(parents=True, exist_ok=True)
    runs = demonstrations(world, episodes or member.episodes)
    return write_format(world.embodiment, runs, folder)


def demonstrations(world: World, episodes: int) -> Iterator[Episode]:
    """Expert runs in equal shares of the world's cases; every run has a seed of its own. Failures are left out."""
    each = -(-episodes // len(world.cases))
    for number, case in enumerate(world.cases):
        seeds = range(number * each, (number + 1) * each)
        for run in collect(world, case, seeds, world.pilots["expert"](), first_id=number * each):
            if run.outcome != "failure":
                yield run


def write_format(embodiment: Embodiment, runs: Iterator[Episode], folder: Path) -> Path:
    """Write runs as the machine's domain does: robots LeRobot v3, vehicles CAN, plants a historian CSV."""
    if embodiment.domain == "robot":
        from hagane.intake.lerobot_rows import write_episodes

        return write_episodes(folder / "lerobot", embodiment, runs)
    if embodiment.domain == "vehicle":
        from hagane.intake.can_write import encode_can

        return encode_can(runs, embodiment, folder)[0]
    from hagane.intake.historian_write import write_historian

    return write_historian(runs, embodiment, folder / "historian.csv")
