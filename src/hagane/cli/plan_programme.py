"""`hagane plan programme`: milestones and spend by fiscal year, for who funds a programme."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class PlanProgramme:
    """Milestones with computed dates, and spend by Japanese fiscal year.

    Without --scenario: the size of the public programme, about 1 trillion yen over fiscal 2026 to 2030. Every figure
    that is not reported in public is an assumption of the scenario, and says so.
    """

    scenario: Path | None = None
    """TOML file of another scenario; --write makes a copy of ours to change."""
    write: Path | None = None
    """Write our scenario to this file, and stop."""
    html: Path | None = None
    """Write the programme as one HTML file, in English and Japanese."""


def main(argv: list[str]) -> int:
    """Run `hagane plan programme`.

    Raises:
        HaganeError: a scenario that does not add up: dates, data, memory or money.
    """
    o = tyro.cli(PlanProgramme, args=argv, prog="hagane plan programme")
    from hagane.cli.plan_tables import print_programme
    from hagane.plan.programme import plan_programme
    from hagane.plan.scenario import default_scenario, read_scenario
    from hagane.terms import StoreError
    from hagane.terms.files import write_whole

    path = o.scenario or default_scenario()
    if o.write is not None:
        if o.write.exists():
            raise StoreError("is already there", where=str(o.write), next_step="name another file")
        try:
            write_whole(o.write, [path.read_bytes()])
        except OSError as e:
            raise StoreError(f"cannot be written: {e.strerror}", where=str(o.write)) from None
        print(f"{o.write}  (change it, then: hagane plan programme --scenario {o.write})")
        return 0
    programme = plan_programme(read_scenario(path), path.parent)
    if o.html is not None:
        from hagane.console.programme_page import write_programme_page

        write_programme_page(o.html, programme)
    print_programme(programme)
    if o.html is not None:
        print(f"\n{o.html}  (one file; open it in a browser)")
    return 0
