"""`hagane plan VERB`: sizes, one rank's dry run, a run's days and yen, a programme's years, what sizes can learn."""

from __future__ import annotations

import difflib
import importlib
import sys

VERBS: dict[str, tuple[str, str]] = {
    "size": ("plan_size", "exact parameter counts, by part and by owner"),
    "dry-run": ("plan_dry", "one rank of the real step on fake tensors: memory, FLOPs, collectives"),
    "run": ("plan_run", "layouts, step time, days, failures, energy and yen of one run"),
    "programme": ("plan_programme", "milestones and spend by fiscal year"),
    "scaling": ("plan_scaling", "loss and score over the sizes that were trained, and where extrapolation ends"),
}


def main(argv: list[str]) -> int:
    """Load the verb's file and run it."""
    usage = "usage: hagane plan VERB [options]   (hagane plan VERB --help for one verb)\n\n" + "\n".join(
        f"  {verb:<10} {line}" for verb, (_, line) in VERBS.items()
    )
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    if argv[0] not in VERBS:
        near = difflib.get_close_matches(argv[0], VERBS, 1)
        print(f"hagane plan: no verb {argv[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""), file=sys.stderr)
        return 2
    return int(importlib.import_module(f"hagane.cli.{VERBS[argv[0]][0]}").main(argv[1:]))
