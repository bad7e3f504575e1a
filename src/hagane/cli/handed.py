"""Weights and figures out of a sealed run, handed to the gate: written in a jail, checked outside before they stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hagane.cli.keeper import kept
from hagane.cli.opens import Opens
from hagane.cli.sealed_run import read_sealed_run
from hagane.terms import CheckpointError, CorruptError, digest_bytes, dump_toml, parse_toml
from hagane.terms.files import write_whole

INSIDE = Path("/tmp/hagane-gate/handed")
"""Where the verb writes."""


@contextmanager
def handed(
    verb: Sequence[str], flag: str, home: Path, run: Path, purpose: str, *, with_data: bool = False
) -> Iterator[Path]:
    """What a verb writes for the gate, in memory (/dev/shm) and gone in the end.

    Args:
        verb: verb and flags, without the one that says where to write.
        flag: that flag.
        home: the site's folder.
        run: the sealed run that it reads.
        purpose: what every contract behind the run is asked for.
        with_data: it reads the run's data sets, too.

    Raises:
        Refused: a contract does not permit it.
        CheckpointError: the verb failed in its jail.
    """
    with TemporaryDirectory(prefix="hagane-gate-", dir="/dev/shm") as place:
        out = Path(place) / "handed"
        names = tuple(s.dataset for s in read_sealed_run(run).sources) if with_data else ()
        opens = Opens(home, purpose, names, runs=(run,), gives=(INSIDE,), handed=out)
        if kept([*verb, flag, str(INSIDE)], lambda: opens) != 0 or not out.exists():
            raise CheckpointError(
                "nothing was written in the jail", where=str(run), next_step="hagane jail log tells why, where it may"
            )
        yield out


def write_shape(run: Path, home: Path, out: Path) -> str:
    """Write the shape of a sealed run's weights as TOML, for a person to read before it says what may leave.

    Returns:
        sha256 of the file.

    Raises:
        CheckpointError: the run has no checkpoint; Refused: a contract does not grant to view.
        CorruptError: it is not the shape that was sealed.
    """
    from hagane.cli.house import open_house
    from hagane.model import ModelConfig
    from hagane.seal import OwnKeys, open_folder

    house = open_house(Opens(home, "view", runs=(run,)))
    steps = sorted(read_sealed_run(run).sealed.glob("step-*/sealed.json"))
    if house is None or not steps:
        raise CheckpointError("no whole checkpoint here", where=str(run), next_step="train the run first")
    house.ask_all()
    folder = open_folder(steps[-1].parent)
    text = folder.read("model.toml", OwnKeys(folder, house.keyring))
    # read strictly and written anew: nothing but the shape comes out
    try:
        data = dump_toml(parse_toml(text.decode(), ModelConfig, where="model.toml")).encode()
    except UnicodeDecodeError:
        raise CorruptError("not UTF-8 text in TOML", where="model.toml") from None
    if out.exists():
        raise CorruptError("the file exists and is not overwritten", where=str(out), next_step="choose another --out")
    write_whole(out, [data])
    for name in house.datasets:
        house.catalog.note("left", name, {"files": {str(out): digest_bytes(data)}, "count": 1, "purpose": "view"})
    return digest_bytes(data)
