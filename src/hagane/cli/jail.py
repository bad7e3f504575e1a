"""`hagane jail`: run a command behind the kernel's walls, and try whether they hold on this host."""

from __future__ import annotations

import dataclasses
import os
import selectors
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hagane.jail import Bind, Jailed, JailRecord, Plan, Seen, collect, python_env, python_reads, record_of, start_whole
from hagane.terms import ConfigError, canonical_json
from hagane.terms.files import write_whole

USAGE = """usage: hagane jail run [options] -- CMD ...
       hagane jail test [options]
       hagane jail log RUN [options]   (--help after one of them)"""


@dataclass(frozen=True)
class Run:
    """Run a command that reads what is named, writes to memory alone, and reaches no network."""

    read: tuple[Path, ...] = ()
    """Files and folders that it can read, at their own places."""
    work: tuple[Path, ...] = ()
    """Folders that it can write; they lie in memory and end with it."""
    size: Annotated[int, tyro.conf.arg(metavar="MIB")] = 1024
    """Limit of the works, /tmp and /dev/shm together, MiB of memory."""
    env: tuple[str, ...] = ()
    """NAME=VALUE, or NAME to hand on our own value; nothing else is inherited."""
    keep: Path | None = None
    """Folder outside that the works are copied into after the end; it must not exist. Plain files: for trying out."""
    json: Path | None = None
    """File that the jail's record is written to."""
    peer: tuple[str, ...] = ()
    """SITE=ADDRESS@HOST:PORT of every jail on another node that it may reach by TCP: the site that vouches for it, its
    address, and where its keeper listens. As root. Records are exchanged before anything runs."""
    address: str = ""
    """This jail's own address among them, IPv4."""
    card: str = ""
    """Network device of this node towards the others."""
    listen: str = "0.0.0.0"
    """Where this keeper listens for the others', HOST or HOST:PORT (7468)."""
    site: Path = Path()
    """Folder with the site's own files: site.toml, which the consortium's root signed, and trust/."""
    host_key: Path | None = None
    """Private key that the site's record names."""
    wait: Annotated[float, tyro.conf.arg(metavar="S")] = 60.0
    """Until all peers must have come, seconds."""


def run(argv: list[str]) -> int:
    """Run `hagane jail run [options] -- CMD ...`."""
    options, command = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    o = tyro.cli(Run, args=options, prog="hagane jail run")
    if not command:
        raise ConfigError("no command", where="hagane jail run", next_step="write it after --, as in: -- python x.py")
    if o.keep and o.keep.exists():
        raise ConfigError("exists already", where=str(o.keep), next_step="name a folder that is not there")
    plan = _plan(o, command)
    if not o.peer:
        return _run(o, plan)
    from hagane.cli.jail_peers import away

    there = away(o.peer, o.address, o.card, o.listen, o.site, o.host_key, o.wait)
    with there.wired() as wire:
        return _run(o, plan, there.peers, wire, there.meet)


def _run(
    o: Run,
    plan: Plan,
    peers: tuple[str, ...] = (),
    wire: Callable[[int], None] | None = None,
    meet: Callable[[JailRecord], tuple[Seen, ...]] | None = None,
) -> int:
    seen: list[Seen] = []

    def fill(root: Path) -> None:
        """Nothing runs before every peer was accepted."""
        if meet:
            seen.extend(meet(record_of(plan, root, peers)))

    out, err = os.pipe(), os.pipe()
    try:
        jailed = start_whole(plan, out[1], err[1], fill, wire)
    finally:
        os.close(out[1])
        os.close(err[1])
    with jailed:
        record = record_of(plan, jailed, peers)
        _pass_on({out[0]: sys.stdout.fileno(), err[0]: sys.stderr.fileno()})
        code = jailed.wait()
        if o.keep:
            _copy_works(jailed, plan.works, o.keep)
        jailed.release()
    if o.json:
        facts = {**dataclasses.asdict(record), "digest": record.digest, "exit": code, "seen": seen}
        write_whole(o.json, [canonical_json(facts) + b"\n"])
    return code


def main(argv: list[str]) -> int:
    """Run `hagane jail VERB ...`."""
    if argv[:1] == ["run"]:
        return run(argv[1:])
    if argv[:1] in (["test"], ["log"]):
        from importlib import import_module

        return int(import_module(f"hagane.cli.jail_{argv[0]}").main(argv[1:]))
    asked = argv[:1] in ([], ["-h"], ["--help"])
    print(USAGE if asked else f"hagane jail: no verb {argv[0]!r}\n{USAGE}", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def _plan(o: Run, command: Sequence[str]) -> Plan:
    program = shutil.which(command[0])
    if not program:
        raise ConfigError("no such program", where=command[0], next_step="see that it is installed, and may be run")
    reads = (*python_reads(), *(Bind.at(p) for p in o.read))
    works = tuple(Bind.at(p).target for p in o.work)
    here = Path.cwd()
    inside = any(here.is_relative_to(p) for p in (*(b.target for b in reads), *works))
    return Plan(
        (str(Bind.at(program).target), *command[1:]),
        {**python_env(), **_environment(o.env)},
        reads,
        works,
        cwd=here if inside else Path("/"),
        size_bytes=o.size << 20,
    )


def _environment(words: tuple[str, ...]) -> dict[str, str]:
    named: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and name not in os.environ:
            raise ConfigError(f"no variable {name!r} to hand on", where="--env", next_step="write NAME=VALUE")
        named[name] = value if equals else os.environ[name]
    return named


def _pass_on(pairs: dict[int, int]) -> None:
    """Copy what the jail says to our own output until it has said all."""
    with selectors.DefaultSelector() as ready:
        for source, to in pairs.items():
            ready.register(source, selectors.EVENT_READ, to)
        while ready.get_map():
            for key, _ in ready.select():
                data = os.read(key.fd, 65536)
                if not data:
                    ready.unregister(key.fd)
                    os.close(key.fd)
                while data:
                    data = data[os.write(key.data, data) :]


def _copy_works(jailed: Jailed, works: tuple[Path, ...], to: Path) -> None:
    for work in works:
        for path, fd in collect(jailed, work):
            copy = to / work.relative_to("/") / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            with open(fd, "rb", closefd=False) as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target)
