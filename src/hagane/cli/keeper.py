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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from hagane.cli.collect import Collector
from hagane.cli.house import House, open_house
from hagane.cli.opens import BROKER, Opens, in_jail
from hagane.cli.tells import Teller
from hagane.cli.text import Text
from hagane.jail import Bind, Jailed, Plan, python_env, python_reads, record_of, start_whole
from hagane.seal.broker import Rules, serve
from hagane.terms import JailError

SOCKET = Path("/run/hagane/broker.sock")
"""Where the broker is reached in a jail."""
SIZE = "HAGANE_JAIL_MIB"
"""Variable with the limit of a jail's memory for files, MiB; without it half of this machine's memory."""
PASSED = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TORCH_CPP_LOG_LEVEL", "COLUMNS", "TZ")
"""Variables that go in as they are; all others stay outside, where they may name secrets."""


class Beside(Protocol):
    """What the keeper does itself while a verb runs in the jail: the gateway of a policy server."""

    @property
    def sockets(self) -> tuple[Bind, ...]:
        """Sockets of ours that the jail may connect to, beside the broker's."""
        ...

    def __call__(self, house: House, jailed: Jailed) -> int:
        """Go on until the verb has ended; returns the exit code."""
        ...


def kept(argv: Sequence[str], opens: Callable[[], Opens | None], beside: Beside | None = None) -> int | None:
    """Run a verb under a keeper where a contract asks for it; None where none does, or where one is at work already.

    Args:
        argv: verb and flags, as they were given.
        opens: says what the verb opens and makes, None for nothing of members; called outside of jails only.
        beside: what is done out here meanwhile; without it the keeper waits.

    Returns:
        The exit code, 0 or 1; None: go on in this process.

    Raises:
        Refused: a contract does not permit it; nothing was started.
        JailError: this machine cannot make the jail that the contract asks for.
    """
    if in_jail():
        return None
    told = opens()
    house = open_house(told) if told is not None else None
    if house is None or not house.jailed:
        return None
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise JailError(
            "ranks that torchrun starts would each have a jail of their own, and not reach each other",
            next_step="hagane train --nproc N starts them in one jail; for several nodes see docs/jail.md",
        )
    house.ask_all()
    size_bytes = int(os.environ.get(SIZE, 0)) << 20 or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    collector = Collector(house, size_bytes)
    with (
        collector.alone(),
        tempfile.TemporaryDirectory(prefix="hagane-") as place,
        Teller.of(argv[0], house, collector.saved) as teller,
        Text(shown=house.shows) as text,
        listening(Path(place) / "broker.sock") as listener,
    ):
        rules = Rules(house.decide, house.folders, house.notes, teller.hear)
        granted = [(name, house.opens.purpose) for name in house.opens.datasets]
        with serve(listener, rules, house.keyring, house.ledger, granted):
            sockets = (Bind(Path(place) / "broker.sock", SOCKET), *(beside.sockets if beside else ()))
            plan = plan_of(argv, house, sockets, size_bytes)
            code = _run(plan, text, collector, house, beside)
        if text.shown and text.bytes:
            house.note_text(text.bytes)
        teller.end(0 if text.shown else text.bytes)
    return code


def kept_view(
    argv: Sequence[str], home: Path, names: Sequence[str], gives: Sequence[Path] = (), purpose: str = "view"
) -> int | None:
    """As `kept`, for verbs that show data sets, or write pages and copies of them."""
    gone = [p for p in gives if p.exists() and purpose == "export"]
    return None if gone else kept(argv, lambda: Opens(home, purpose, tuple(names), gives=tuple(gives)))


def plan_of(argv: Sequence[str], house: House, sockets: tuple[Bind, ...], size_bytes: int) -> Plan:
    """The jail of a verb: what it was granted, read-only, and private memory where it writes."""
    opens, catalog = house.opens, house.catalog
    own = [opens.home / name for name in ("site.toml", "site.toml.sig", "trust")]
    contracts = [p for _, path in opens.brings for p in (path, path.with_name(path.name + ".sig"))]
    # data sets behind weights are asked for, but nothing reads them
    names = (*opens.datasets, *house.brings)
    sets = [p for n in names for p in (catalog.root / "sets" / n, *(catalog.root / "cache").glob(f"{n}-*"))]
    reads = dict.fromkeys(p.absolute() for p in (*own, *contracts, *sets, *opens.reads) if p.exists())
    runs = (*opens.runs, *opens.makes, *(p.parent for p in opens.gives))
    works = dict.fromkeys(p.absolute() for p in (catalog.root, *runs))
    env = {**python_env(), **{n: os.environ[n] for n in PASSED if n in os.environ}, BROKER: str(SOCKET)}
    return Plan(
        (sys.executable, "-m", "hagane", *argv),
        env,
        (*python_reads(), *(Bind.at(p) for p in reads)),
        tuple(works),
        sockets,
        Path.cwd() if _inside(Path.cwd(), [*reads, *works]) else Path("/"),
        size_bytes,
    )


def _run(plan: Plan, text: Text, collector: Collector, house: House, beside: Beside | None) -> int:
    with text.pipes() as (out, err):
        jailed = start_whole(plan, out, err, fill=collector.fill)
    with jailed:
        house.note_jail(record_of(plan, jailed))
        with _forwarded(jailed), collector.watching(jailed.root):
            code = jailed.wait() if beside is None else beside(house, jailed)
        text.drain()
        collector.collect(jailed.root, {n: bytes(b) for n, b in text.kept.items()}, code)
        jailed.release()
    return code


@contextmanager
def _forwarded(jailed: Jailed) -> Iterator[None]:
    """A signal to the keeper is one to the verb: it saves and stops, and the keeper still collects."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.signal(n, lambda *_: jailed.terminate()) for n in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A unix socket that a jail may connect to, until the end of the block."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        # the folder is ours alone; whoever runs in the jail may connect
        path.chmod(0o666)
        listener.listen(64)
        yield listener


def _inside(path: Path, places: Sequence[Path]) -> bool:
    """Whether a folder is there in a jail that holds these places."""
    return any(path.is_relative_to(p) or p.is_relative_to(path) for p in places)
