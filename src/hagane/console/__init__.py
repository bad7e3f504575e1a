"""What a person looks at: the report page of a run, and panels on a terminal."""

from hagane.console.panel import Panel, TrainPanel, card_table
from hagane.console.report import make_report

__all__ = ["Panel", "TrainPanel", "card_table", "make_report"]
