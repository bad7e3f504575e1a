"""hagane: one generalist model that operates robots, vehicles and plants, and the stack around it.

The rooms stand on five floors; a room imports only from floors below (tests/test_floors.py).
"""

from hagane.quiet import be_quiet

be_quiet()

__version__ = "0.1.0"
