"""The last steps of the process that becomes the command: every door is shut before its first instruction."""

from __future__ import annotations

import os

from hagane.jail import landlock, mounts, privileges, seccomp
from hagane.jail.order import Order
from hagane.jail.report import follow

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would cost 10 ms of the start
    from typing import NoReturn

    from hagane.jail.report import Step


def become(order: Order, status: int) -> NoReturn:
    """Shut the doors of the order and execute its command; a step that fails is told and nothing is executed."""
    follow(_doors(order), status)
    os._exit(1)  # not reached: the last step executes


def _doors(order: Order) -> list[Step]:
    layers = order.layers
    steps: list[Step] = []
    if "session" in layers:
        steps.append(("session without a terminal", os.setsid))
    else:
        steps.append(("process group", os.setpgrp))
    if "keyring" in layers:
        steps.append(("session keyring", privileges.new_keyring))
    steps.append(("working folder", lambda: os.chdir(order.cwd)))
    if "no_new_privs" in layers:
        steps.append(("no new privileges", privileges.no_new_privileges))
    if "fds" in layers:
        steps.append(("closing descriptors", privileges.close_descriptors))
    if layers & {"landlock", "landlock_scope"}:
        writable = (*mounts.SHARED, *order.works, *(f"/dev/{d}" for d in mounts.DEVICES))
        steps.append(
            ("Landlock", lambda: landlock.restrict(writable, "landlock" in layers, "landlock_scope" in layers))
        )
    if layers & seccomp.RULES.keys():
        steps.append(("seccomp filter", lambda: seccomp.install(layers)))
    if "caps" in layers:
        steps.append(("dropping capabilities", privileges.drop_capabilities))
    steps.append(("signals", privileges.default_signals))
    steps.append(("executing the command", lambda: _execute(order)))
    return steps


def _execute(order: Order) -> None:
    program = order.command[0]
    try:
        os.execve(program, order.command, order.env)
    except OSError as e:
        raise OSError(e.errno, e.strerror, program) from None
