"""The kernel's walls around code that sees members' data: what runs inside reads what the plan binds, and no more."""

from hagane.jail.collect import collect
from hagane.jail.meet import meet
from hagane.jail.peers import Peer, Seen, Shown, Vouching, exchange
from hagane.jail.plan import LAYERS, Bind, Layer, Layers, Plan, python_env, python_reads, system_reads
from hagane.jail.probe import Kernel, Missing, probe, start_whole
from hagane.jail.record import JailRecord, record_of
from hagane.jail.run import Jailed, start
from hagane.jail.veth import Link, wiring

__all__ = [
    "LAYERS",
    "Bind",
    "JailRecord",
    "Jailed",
    "Kernel",
    "Layer",
    "Layers",
    "Link",
    "Missing",
    "Peer",
    "Plan",
    "Seen",
    "Shown",
    "Vouching",
    "collect",
    "exchange",
    "meet",
    "probe",
    "python_env",
    "python_reads",
    "record_of",
    "start",
    "start_whole",
    "system_reads",
    "wiring",
]
