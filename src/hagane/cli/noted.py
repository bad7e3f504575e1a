"""What a verb writes into the site's ledger of its own: the start of a run, a deployment, a recording.

In a jail it is the keeper outside that writes, from what it knows itself; where there is no site, nobody keeps a
ledger.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hagane.cli.opens import in_jail
from hagane.cli.recorded import read_recording
from hagane.cli.site import ledger_of, site_of
from hagane.seal import is_digest
from hagane.seal.facts import DeploymentFact, Fact, RecordingFact, RunFact
from hagane.terms import digest_value

if TYPE_CHECKING:
    from hagane.guard import Envelope
    from hagane.terms import RunRecord


def note_fact(home: Path, fact: Fact) -> None:
    """Write a fact into the ledger of the site whose files lie in `home`.

    Raises:
        HaganeError: the ledger is damaged, or the disk refuses.
    """
    if keeps_ledger(home):
        ledger_of(home).note(fact)


def keeps_ledger(home: Path) -> bool:
    """Whether this process writes a ledger: at a site, outside of jails."""
    return not in_jail() and (home / "site.toml").exists()


def note_deployment(home: Path, checkpoint: str, machine: str, envelope: Envelope | None = None) -> None:
    """Write down that a checkpoint serves a machine from now on, before it does.

    Args:
        home: the site's folder.
        checkpoint: its id, as the server tells it.
        machine: name of the machine.
        envelope: its limits, where they are known.

    Raises:
        HaganeError: as `note_fact`; then nothing may be served.
    """
    if not keeps_ledger(home):
        return
    limits = digest_value(dataclasses.asdict(envelope)) if envelope is not None else ""
    note_fact(home, DeploymentFact(_id_of(checkpoint), machine, limits, site_of(home).name))


def note_recording(home: Path, path: Path) -> None:
    """Write down the root of a recording that was closed: from now on no action in it can be changed unseen.

    Raises:
        HaganeError: as `note_fact`; LogError: the recording cannot be read.
    """
    if keeps_ledger(home):
        made = read_recording(path)
        note_fact(home, RecordingFact(made.root, made.machine, _id_of(made.checkpoint), made.messages))


def note_run(
    home: Path, record: RunRecord, shards: Mapping[str, tuple[str, int]], begun_from: Mapping[str, str]
) -> None:
    """Write down that a run begins, or goes on: its code, environment, data, contracts and shards.

    Args:
        home: the site's folder.
        record: of the run.
        shards: by data set, sha256 of the list of files that it may read, and their number.
        begun_from: run to id of its checkpoint that this one starts from.

    Raises:
        HaganeError: as `note_fact`.
    """
    note_fact(
        home,
        RunFact(
            record.id,
            record.config_digest,
            record.code_digest,
            dict(record.datasets),
            dict(record.contracts),
            {name: digest for name, (digest, _) in shards.items()},
            {name: count for name, (_, count) in shards.items()},
            "",
            digest_value(dict(record.environment)),
            dict(begun_from),
        ),
    )


def _id_of(told: str) -> str:
    """A checkpoint's id as a server told it; "" for words that are none."""
    return told if is_digest(told) else ""
