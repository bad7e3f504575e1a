"""Judge: closed loop, on seeds that no data and no tuning used, beside rows that are hard to beat."""

from hagane.evaluate.card import Entry, best_classical, by_who, evaluation_seeds, load_card, run_card, save_card
from hagane.evaluate.closed_loop import PolicyPilot
from hagane.evaluate.conventions import Check, Conventions, check_conventions
from hagane.evaluate.intervals import bootstrap, paired, wilson
from hagane.evaluate.replay import record_replay, save_replay

__all__ = [
    "Check",
    "Conventions",
    "Entry",
    "PolicyPilot",
    "best_classical",
    "bootstrap",
    "by_who",
    "check_conventions",
    "evaluation_seeds",
    "load_card",
    "paired",
    "record_replay",
    "run_card",
    "save_card",
    "save_replay",
    "wilson",
]
