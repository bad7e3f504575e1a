"""Nothing is sent anywhere: what dependencies would report or fetch by themselves is switched off, before any import.

Only dependencies that we have, or offer as extras, stand here. Their child processes inherit it.
"""

from __future__ import annotations

import os

VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",  # ray (extra): its usage report is on unless told otherwise
    "IMAGEIO_NO_INTERNET": "1",  # imageio (comes with the extra worlds): fetches sample files and plugins by name
    "DO_NOT_TRACK": "1",  # the common word for it (consoledonottrack.com)
}


def be_quiet() -> None:
    """Set the variables, whatever they were."""
    os.environ.update(VARIABLES)
