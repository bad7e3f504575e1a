"""Site: where data is read. Its record is a small TOML file that the site's operator writes."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from hagane.seal.countries import COUNTRIES, is_country
from hagane.seal.names import check_name
from hagane.terms import ConfigError, load_toml


@dataclass(frozen=True)
class Site:
    """A place with machines that read data, under one operator and one country's law.

    Raises:
        ConfigError: a name that is not safe, or a country code that is not assigned.
    """

    name: str
    """Name of the site, as contracts list it."""
    country: str
    """ISO 3166-1 alpha-2 code of the country it stands in."""
    operator: str
    """The member, or the consortium, that runs it."""

    def __post_init__(self) -> None:
        check_name(self.name, "site name")
        check_name(self.operator)
        if not is_country(self.country):
            near = difflib.get_close_matches(str(self.country).upper()[:2], sorted(COUNTRIES), 3)
            hint = f"; near: {', '.join(near)}" if near else ""
            raise ConfigError(
                f"no country has the code {self.country!a}",
                where=f"site {self.name!r}",
                next_step=f'use an ISO 3166-1 alpha-2 code in capitals, as "JP"{hint}',
            )


def load_site(path: Path) -> Site:
    """Read `site.toml` strictly.

    Raises:
        ConfigError: missing file, unknown or missing key, bad name or country.
    """
    return load_toml(path, Site)
