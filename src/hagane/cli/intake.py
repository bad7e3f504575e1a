"""`hagane intake`: bring logs in under a contract; every finding is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hagane.terms import ConfigError, Embodiment, Episode, load_toml


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
    """How the log is to be read where it does not say, as key=value: time=HEADER, episode=HEADER, encoding=cp932,
    day-first=yes, timezone=Asia/Tokyo, bus=1, gap-s=10, messages=FOLDER (ROS .msg definitions), split=train."""
    keep_whole: bool = False
    """Take what is whole of a truncated log; without it such a log is refused."""
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
    if not o.dry_run:
        return _store(o, embodiment)
    report = _Report()
    for _ in report.watch(_episodes(o, embodiment)):
        pass
    report.print_sums(f"{o.path}, read for {embodiment.name!r}; nothing is stored (--dry-run)")
    return 0


def _store(o: Intake, embodiment: Embodiment) -> int:
    from hagane.cli.site import open_catalog
    from hagane.seal import load_contract

    assert o.contract is not None
    catalog = open_catalog(o.home)
    signed = load_contract(o.contract, catalog.trust)
    report = _Report()
    record = catalog.add(o.name or embodiment.name, embodiment, signed, report.watch(_episodes(o, embodiment)))
    report.print_sums(f"{o.path}, as data set {record.name!r} of {record.owner} in {catalog.root}")
    print(f"  digest {record.digest[:16]}, contract {record.contract_digest[:16]}")
    return 0


def _episodes(o: Intake, embodiment: Embodiment) -> Iterator[Episode]:
    from hagane.intake import read_logs
    from hagane.intake.options import parse_options

    # lazily, so that the contract is judged before a byte of the log is read
    options = parse_options(o.read)
    yield from read_logs(o.path, embodiment, task=o.task, dbc=o.dbc, keep_whole=o.keep_whole, **options)


class _Report:
    """Prints findings as episodes pass, and counts them."""

    def __init__(self) -> None:
        self.episodes, self.seconds = 0, 0.0
        self.samples: Counter[str] = Counter()
        self.valid: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()

    def watch(self, episodes: Iterator[Episode]) -> Iterator[Episode]:
        """The same episodes, one by one."""
        for episode in episodes:
            for finding in episode.findings:
                print(f"  finding: {finding}", flush=True)
                self.kinds[finding.kind] += 1
            self.episodes += 1
            first_ns, last_ns = episode.span_ns
            self.seconds += (last_ns - first_ns) / 1e9
            for name, stream in episode.streams.items():
                self.samples[name] += len(stream)
                self.valid[name] += int(stream.valid.reshape(len(stream), -1).any(1).sum()) if len(stream) else 0
            yield episode

    def print_sums(self, title: str) -> None:
        """Sums over all episodes."""
        print(f"{title}\n  {self.episodes} episodes, {self.seconds:.1f} s")
        width = max((len(n) for n in self.samples), default=0)
        for name, count in self.samples.items():
            print(f"  {name:<{width}}  {count:>9} samples, {100 * self.valid[name] / max(count, 1):.2f}% valid")
        sums = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        print(f"  findings: {sums or 'none'}")
