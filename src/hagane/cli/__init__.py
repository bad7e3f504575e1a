"""The verbs. `hagane VERB ...` loads only that verb's file, so small verbs start fast."""

from __future__ import annotations

import difflib
import importlib
import os
import sys

from hagane.terms import HaganeError

VERBS: dict[str, str] = {
    "demo": "the whole loop on one small machine",
    "contract": "keys, and contracts: new, sign, show, check",
    "keys": "keys of sealed data: new, ls, rotate, passphrase, erase",
    "erase": "destroy the key of a data set: its sealed files can never be read again",
    "intake": "bring logs in under a contract",
    "doctor": "what is wrong with a data set, or a log",
    "catalog": "data sets on this site: ls, show, sample, diff, duplicates, split, export, verify",
    "train": "train one model on the catalog",
    "evaluate": "closed loop, on seeds that no data used",
    "serve": "answer machines over the openpi wire",
    "drive": "run a world against a server, through the guard",
    "export": "a checkpoint's weights as plain safetensors, and back",
    "release": "weights that leave: the export gate, signed by their owners",
    "plan": "counts, dry runs, days and yen before a run is paid for",
    "jail": "run a command behind the kernel's walls; try whether they hold here",
    "audit": "the ledger: verify, and trace an action to its contracts",
    "console": "make the report page of a run",
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb; errors of ours and of the system become one message and exit code 1."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        print("usage: hagane VERB [options]   (hagane VERB --help for one verb)\n")
        print("\n".join(f"  {verb:<10} {line}" for verb, line in VERBS.items()))
        return 0
    if args[0] == "--version":
        from hagane import __version__

        print(f"hagane {__version__}")
        return 0
    if args[0] not in VERBS:
        near = difflib.get_close_matches(args[0], VERBS, 1)
        print(f"hagane: no verb {args[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""), file=sys.stderr)
        return 2
    try:
        code = int(importlib.import_module(f"hagane.cli.{args[0]}").main(args[1:]))
        sys.stdout.flush()
        return code
    except HaganeError as e:
        from hagane.cli.inside import tell

        tell("failed", {"error": type(e).__name__})
        print(f"hagane {args[0]}: {e}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # who read our output went away (`| head`): as if the signal had ended us, and nothing more is flushed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as e:
        # what no room has put in words of its own
        where = f"{e.filename}: " if e.filename else ""
        print(f"hagane {args[0]}: {where}{e.strerror or e}", file=sys.stderr)
        print("  next: see that it is there, and may be read and written; free some disk", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"hagane {args[0]}: interrupted", file=sys.stderr)
        return 130
