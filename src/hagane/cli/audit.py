"""`hagane audit`: the ledger (audit_ledger.py), where things come from (audit_trace.py) and went (audit_uses.py)."""

from __future__ import annotations

import sys
from collections.abc import Callable

from hagane.cli.audit_ledger import head, verify, witness
from hagane.cli.audit_report import report
from hagane.cli.audit_trace import trace
from hagane.cli.audit_uses import recorded_absence, uses

VERBS: dict[str, Callable[[list[str]], int]] = {
    "verify": verify,
    "head": head,
    "witness": witness,
    "trace": trace,
    "uses": uses,
    "recorded-absence": recorded_absence,
    "report": report,
}


def main(argv: list[str]) -> int:
    """Run `hagane audit VERB ...`."""
    if argv and argv[0] in VERBS:
        return VERBS[argv[0]](argv[1:])
    usage = f"usage: hagane audit {'|'.join(VERBS)} [options]   (--help after one of them)"
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    print(f"hagane audit: no verb {argv[0]!r}\n{usage}", file=sys.stderr)
    return 2
