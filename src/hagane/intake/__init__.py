"""Intake: foreign bytes to Episodes, with what the checks saw.

`read_logs` finds the format by content. A new format is one more file in this folder with `sniff` and `read`
(see `hagane.intake.options.LogFormat`).
"""

from hagane.intake.checks import check_episode
from hagane.intake.detect import read_logs
from hagane.intake.options import LogFormat, Options

__all__ = ["LogFormat", "Options", "check_episode", "read_logs"]
