"""The keeper: the process outside that holds the keys, starts the jail, and seals what comes out of it. No torch.

    permit       every data set that the verb opens is asked for, before anything is mounted
    jail         the same verb runs inside, with those data sets and private memory, no disk, no network
    broker       answers its requests for keys, notes in the ledger, and prints what it may tell
    collect      what it made is read out of its memory, sealed here, and laid on the disk, whole or not at all
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hagane.cli.collect import Collector
from hagane.cli.house import House, open_house
from hagane.cli.mounts import plan_of
from hagane.cli.opens import Opens, in_jail
from hagane.cli.tells import Teller
from hagane.cli.text import Text
from hagane.jail import Jailed, Plan, start
from hagane.seal import Handlers, serve_broker


def kept(argv: Sequence[str], opens: Opens) -> int | None:
    """Run a verb under a keeper where a contract asks for it; None where none does, or where one is at work already.

    Args:
        argv: verb and flags, as they were given.
        opens: what the verb opens and makes.

    Returns:
        The exit code, or None: go on in this process.

    Raises:
        Refused: a contract does not permit it; nothing was started.
        JailError: this machine cannot make the jail that the contract asks for.
    """
    if in_jail():
        return None
    house = open_house(opens)
    if not house.jailed:
        return None
    house.ask_all()
    with tempfile.TemporaryDirectory(prefix="hagane-") as place, Text(house) as text:
        collector, teller = Collector(house), Teller(argv[0], house)
        listener = _listen(Path(place) / "broker.sock")
        handlers = Handlers(house.decide, house.note, teller.hear)
        with listener, serve_broker(listener, handlers, house.keyring, house.shelves()):
            plan = plan_of(argv, opens, house, Path(place))
            code = _run(plan, text, collector, teller, house)
    teller.end(code, text)
    return code


def _run(plan: Plan, text: Text, collector: Collector, teller: Teller, house: House) -> int:
    with text.pipes() as (out, err):
        jailed = start(plan, stdout=out, stderr=err)
    house.note_jail(jailed.record)
    try:
        with _forwarded(jailed), collector.watching(jailed.root, teller.saved):
            code = jailed.wait()
        text.drain()
        collector.collect(jailed.root, whole=code == 0)
    finally:
        jailed.kill()
    return code


@contextmanager
def _forwarded(jailed: Jailed) -> Iterator[None]:
    """A signal to the keeper is one to the verb: it saves and stops, and the keeper still collects."""

    def forward(number: int, _: object) -> None:
        jailed.signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(n, forward) for n in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(64)
    return listener
