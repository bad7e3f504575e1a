"""`hagane intake`: bring logs in under a contract; every finding is printed."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

import tyro

from hagane.cli.inside import tell
from hagane.cli.keeper import kept
from hagane.cli.opens import Opens
from hagane.intake.options import Options, parse_options
from hagane.terms import APPLIED, ConfigError, Embodiment, Finding, load_toml
from hagane.terms.episode import FindingKind

if TYPE_CHECKING:
    from hagane.catalog import Workers

_SMALL_BYTES = 64_000_000


@dataclass(frozen=True)
class Intake:
    """Read logs, check them, and add them to the catalog under their owner's signed contract."""

    path: Annotated[Path, tyro.conf.Positional]
    """The log: a file, or a folder (CAN arrays, a LeRobot set, or several logs). The format is found by content."""
    embodiment: Path
    """The machine (TOML): channels, and what the log calls them."""
    contract: Path | None = None
    """The owner's contract, signed; its .sig lies beside it. Needed unless --dry-run."""
    name: str = ""
    """Name of the data set; empty means the embodiment's name."""
    task: str = ""
    """Instruction in words, where the log has none."""
    dbc: Path | None = None
    """CAN definitions; empty takes the only .dbc beside the log."""
    read: tuple[str, ...] = ()
    """How the log is to be read where it does not say, as key=value: time=HEADER and episode=HEADER (tables),
    encoding=cp932 and day-first=yes (CSV), timezone=Asia/Tokyo (stamps without a zone), bus=1 (CAN), gap-s=10 (a
    longer silence divides), messages=FOLDER (ROS .msg definitions), split=train (LeRobot, RLDS, robomimic)."""
    keep_whole: bool = False
    """Take what is whole of a truncated log; without it such a log is refused."""
    jobs: int = 0
    """Processes that read and convert side by side, the result being the same bytes; 0 takes one a core, or this one
    alone for logs of less than 64 MB."""
    engine: Literal["pool", "ray"] = "pool"
    """Where they run: on this machine, or on a Ray cluster (the extra "ray")."""
    dry_run: bool = False
    """Read and check only: print the findings, store nothing, need no contract."""
    home: Path = Path()
    """Folder with the site's own files: site.toml, trust/, ledger.jsonl, catalog/."""


def main(argv: list[str]) -> int:
    """Run `hagane intake`.

    Raises:
        HaganeError: anything that is refused; nothing is stored then.
    """
    o = tyro.cli(Intake, args=argv, prog="hagane intake")
    embodiment = load_toml(o.embodiment, Embodiment)
    if o.contract is None and not o.dry_run:
        raise ConfigError(
            "no contract given", where="--contract", next_step="pass one, or --dry-run to only look at the logs"
        )
    if o.dry_run:
        return _look(o, embodiment)
    code = kept(["intake", *argv], lambda: opens_of(o, embodiment))
    return _store(o, embodiment) if code is None else code


def opens_of(o: Intake, embodiment: Embodiment) -> Opens:
    """What comes in, and what is read for it."""
    assert o.contract is not None
    reads = [o.path, o.embodiment, *([o.dbc] if o.dbc else [])]
    options = parse_options(o.read)
    reads += [Path(v) for v in options.values() if isinstance(v, str | Path) and Path(v).exists()]
    brings = ((o.name or embodiment.name, o.contract),)
    return Opens(
        o.home, "intake", brings=brings, reads=tuple(reads), words=frozenset({embodiment.name, *get_args(FindingKind)})
    )


def _look(o: Intake, embodiment: Embodiment) -> int:
    """Read and check, store nothing."""
    from hagane.catalog.episode_io import told_facts
    from hagane.intake.detect import find_logs, read_logs

    for log, kind in find_logs(o.path):
        print(f"  {log}: {kind}")
    report = _Report()
    with _Progress() as progress:
        for number, episode in enumerate(read_logs(o.path, embodiment, **asdict(_options(o))), 1):
            report.see(told_facts(episode))
            progress("read", number)
    report.print_sums(embodiment, f"{o.path}, read for {embodiment.name!r}; nothing is stored (--dry-run)")
    return 0


def _store(o: Intake, embodiment: Embodiment) -> int:
    from hagane.cli.site import open_catalog
    from hagane.seal import load_contract

    assert o.contract is not None
    catalog = open_catalog(o.home)
    signed = load_contract(o.contract, catalog.trust)
    report = _Report()
    name, workers = o.name or embodiment.name, workers_for(o)
    if name in catalog.unfinished():
        print(f"  going on with {name!r}, which was interrupted")
    with _Progress() as progress:
        record = catalog.add_logs(
            name, embodiment, signed, o.path, _options(o), seen=report.see, progress=progress, workers=workers
        )
    report.print_sums(embodiment, f"{o.path}, as data set {record.name!r} of {record.owner} in {catalog.root}")
    print(f"  digest {record.digest[:16]}, contract {record.contract_digest[:16]}")
    return 0


def workers_for(o: Intake) -> Workers:
    """Who reads and converts: processes cost a second or two to start, which small logs are not worth."""
    from hagane.catalog import Workers

    files = o.path.rglob("*") if o.path.is_dir() else [o.path]
    small = o.engine == "pool" and sum(f.stat().st_size for f in files if f.is_file()) < _SMALL_BYTES
    return Workers(o.jobs or (1 if small else 0), o.engine)


def _options(o: Intake) -> Options:
    return Options(task=o.task, dbc=o.dbc, keep_whole=o.keep_whole, **parse_options(o.read))


class _Progress:
    """How far a long intake is: a line that moves on a terminal, one now and then elsewhere."""

    _EVERY_S = (0.2, 15.0)
    _WORDS: ClassVar[dict[str, str]] = {"read": "episodes read", "store": "episodes stored", "statistics": "episodes"}

    def __enter__(self) -> _Progress:
        self._live = sys.stderr.isatty()
        self._last = time.monotonic()
        return self

    def __call__(self, what: str, count: int) -> None:
        if time.monotonic() - self._last > self._EVERY_S[0 if self._live else 1]:
            self._last = time.monotonic()
            end = "\r" if self._live else "\n"
            print(f"  {count} {self._WORDS.get(what, what)}", end=end, file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._live:
            print("\x1b[2K", end="\r", file=sys.stderr, flush=True)


class _Report:
    """Prints findings as episodes pass, and counts them."""

    def __init__(self) -> None:
        self.episodes, self.seconds = 0, 0.0
        self.samples: Counter[str] = Counter()
        self.valid: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()

    def see(self, facts: Mapping[str, Any]) -> None:
        """Take the facts of one episode."""
        for finding in (Finding(**f) for f in facts["findings"]):
            print(f"  finding: {finding}", flush=True)
            self.kinds[finding.kind] += 1
        self.episodes += 1
        self.seconds += (facts["span_ns"][1] - facts["span_ns"][0]) / 1e9
        for name, (count, valid) in facts["samples"].items():
            self.samples[name] += count
            self.valid[name] += valid

    def print_sums(self, embodiment: Embodiment, title: str) -> None:
        """Sums over all episodes, in the order of the machine's channels."""
        print(f"{title}\n  {self.episodes} episodes, {self.seconds:.1f} s")
        width = max((len(n) for n in self.samples), default=0)
        names = [n for c in embodiment.channels() for n in (c.name, c.name + APPLIED)]
        for name in sorted(self.samples, key=lambda n: names.index(n) if n in names else len(names)):
            count = self.samples[name]
            print(f"  {name:<{width}}  {count:>9} samples, {100 * self.valid[name] / max(count, 1):.2f}% valid")
        tell("episodes", {"count": self.episodes})
        for kind, count in sorted(self.kinds.items()):
            tell("findings", {"kind": kind, "count": count})
        sums = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        print(f"  findings: {sums or 'none'}")
