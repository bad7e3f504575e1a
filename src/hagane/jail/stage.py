"""The stage: a small process that the parent executes, with one thread, which makes the walls and forks the init.

    python -I -S stage.py STATUS LIFE     an order on standard input; descriptors of two pipes

It stays, outside the new process namespace, only to be the init's parent and to end with it. It imports the files of
this room without the room's __init__, whose nouns would cost more than the whole start.
"""

from __future__ import annotations

import os
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hagane.jail.report import Step


def _lean_packages() -> None:
    """`hagane` and `hagane.jail` as folders to import from, without running their __init__."""
    here = os.path.dirname(os.path.abspath(__file__))
    for name, folder in (("hagane", os.path.dirname(here)), ("hagane.jail", here)):
        module = types.ModuleType(name)
        module.__path__ = [folder]
        sys.modules[name] = module


def main(status: int, life: int) -> int:
    """Make one jail from the order on standard input; returns when the init has ended."""
    from hagane.jail import init, mounts, namespaces, privileges
    from hagane.jail.order import Order
    from hagane.jail.report import INIT, follow, tell

    with open(0, "rb", closefd=False) as pipe:
        order = Order.load(pipe.read())
    os.umask(0o077)
    area: list[int] = []
    steps: list[Step] = [("standard input", privileges.plain_stdin)]
    if order.parent:
        steps.append(("dying with the parent", privileges.die_with_parent))
    if "core" in order.layers:
        steps.append(("core dumps", privileges.no_core))
    if "mountns" in order.layers and mounts.may_forbid_swap():
        steps.append(("private work area", lambda: area.append(mounts.work_area(order.size_bytes, noswap=True))))
    if "userns" in order.layers:
        steps.append(("user namespace", namespaces.new_user))
    if "pidns" in order.layers:
        steps.append(("process namespace", lambda: namespaces.enter("pidns")))
    follow(steps, status)
    if order.parent and os.getppid() != order.parent:
        return 1  # it died before the signal was asked for
    child = os.fork()
    if child == 0:
        init.main(order, area[0] if area else -1, status, life)
    tell(status, INIT, child)
    os.close(status)
    os.close(life)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 1


if __name__ == "__main__":
    _lean_packages()
    os._exit(main(int(sys.argv[1]), int(sys.argv[2])))
