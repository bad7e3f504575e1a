"""`hagane release membership`: whether a run's weights tell which episodes they were trained on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hagane.cli.handed import handed
from hagane.cli.opens import in_jail
from hagane.cli.sealed_run import sealed_run_at
from hagane.cli.site import open_catalog
from hagane.seal.release_claims import membership_of
from hagane.terms.files import write_whole


@dataclass(frozen=True)
class MembershipArgs:
    """Attack a run's newest checkpoint: can its errors tell trained-on episodes from held-out ones?

    Reads the run's data sets, each under its contract's purpose "evaluate".
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    out: Path
    """File of figures to write, for `hagane release make --membership`."""
    home: Path = Path()
    """The site's folder."""
    reference: Path | None = None
    """Checkpoint that saw less of the data, to calibrate by; without it, the same network untrained."""
    episodes: int = 200
    """Most episodes of each side of a data set."""
    samples: int = 8
    """Control steps of an episode."""


def main(argv: list[str]) -> int:
    """Run `hagane release membership`.

    Raises:
        HaganeError: no such run, refused data, a data set with too few episodes on a side.
    """
    o = tyro.cli(MembershipArgs, args=argv, prog="hagane release membership")
    run = sealed_run_at(o.run)
    if run is not None and not in_jail():
        with handed(["release", "membership", *_without_out(argv)], "--out", o.home, run, "evaluate") as figures:
            told = membership_of(figures.read_bytes())  # figures only, read strictly
        write_whole(o.out, [json.dumps(told, indent=1).encode() + b"\n"])
        print(f"{o.out}: figures of {len(told['rows'])} attacks")
        return 0
    from hagane.catalog.loader import kept
    from hagane.catalog.split import load_split
    from hagane.cli.evaluate import find_checkpoint
    from hagane.evaluate.membership import measure_membership
    from hagane.policy import load_policy, untrained_policy
    from hagane.train.run import read_config

    config, checkpoint = read_config(o.run), find_checkpoint(o.run)
    catalog = open_catalog(o.home)
    divided = load_split(Path(config.split)) if config.split else None
    policy = load_policy(checkpoint)
    reference = load_policy(o.reference) if o.reference else untrained_policy(checkpoint)
    rows = []
    for name in config.datasets:
        columns = catalog.columns(name, "evaluate", config.pictures)
        member_E = kept(columns, "train", divided)
        rows += measure_membership(policy, reference, columns, member_E, most=o.episodes, samples=o.samples)
    table = {"checkpoint": policy.checkpoint_id, "rows": [asdict(row) for row in rows]}
    write_whole(o.out, [json.dumps(table, indent=1).encode() + b"\n"])
    for r in rows:
        print(f"{r.dataset:<24} {r.attack:<10} AUC {r.auc:.3f} [{r.low:.3f}, {r.high:.3f}], "
              f"{r.tpr_at_1_percent:.1%} found at 1% false, {r.members} members, {r.others} others")  # fmt: skip
    print(f"{o.out}: 0.5 tells nothing; a stronger attack may find more")
    return 0


def _without_out(argv: list[str]) -> list[str]:
    """The flags without --out and its value."""
    at = next((i for i, word in enumerate(argv) if word.split("=")[0] == "--out"), len(argv))
    return [*argv[:at], *argv[at + (1 if at < len(argv) and "=" in argv[at] else 2) :]]
