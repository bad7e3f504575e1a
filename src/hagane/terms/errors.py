"""The error tree. Every error says what is wrong, where, and the next step.

HaganeError                 base; the command line prints it as one message and exits 1
├── ConfigError             a TOML file or a flag that people wrote
├── LogError                foreign bytes that intake cannot read
├── ContractError           a contract that is not well formed, not signed, or expired
│   └── Refused             `permit` said no: the reason travels with it
├── JailError               a layer of the jail that this host does not give; nothing was run
├── StoreError              our own bytes on disk
│   └── CorruptError        bytes that differ from their digest
├── CheckpointError         a checkpoint that cannot be loaded into this model
├── TrainingError           a run that cannot start or go on (disk full, loss not finite)
├── WireError               bytes between processes
│   └── RemoteError         the other side answered with an error
└── GuardError              an envelope that contradicts itself, an adapter that failed
"""

from __future__ import annotations


class HaganeError(Exception):
    """One clear message for a person.

    Args:
        what: what is wrong, in a sentence without a final stop.
        where: the file, line, stream or address it is about.
        next_step: what the reader can do now.
    """

    def __init__(self, what: str, *, where: str = "", next_step: str = "") -> None:
        self.what, self.where, self.next_step = what, where, next_step
        super().__init__(str(self))

    def __reduce__(self) -> tuple[object, ...]:
        # an error of a worker process arrives with its parts
        return _again, (type(self), self.what, self.where, self.next_step)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  next: {self.next_step}" if self.next_step else text


def _again(kind: type[HaganeError], what: str, where: str, next_step: str) -> HaganeError:
    return kind(what, where=where, next_step=next_step)


class ConfigError(HaganeError):
    """A configuration that people wrote is wrong."""


class LogError(HaganeError):
    """A log file cannot be read."""


class ContractError(HaganeError):
    """A contract is not well formed, not signed by its owner, or out of date."""


class Refused(ContractError):
    """`permit` refused a request; `what` carries the reason in words."""


class JailError(HaganeError):
    """A layer of the jail could not be made, so nothing was run."""


class StoreError(HaganeError):
    """The catalog or a cache on disk cannot be used."""


class CorruptError(StoreError):
    """Stored bytes differ from their recorded digest."""


class CheckpointError(HaganeError):
    """A checkpoint is incomplete, damaged, or made for another model."""


class TrainingError(HaganeError):
    """Training cannot start or cannot go on."""


class WireError(HaganeError):
    """A message between processes is malformed or over its limits."""


class RemoteError(WireError):
    """The server answered with an error message."""


class GuardError(HaganeError):
    """An envelope contradicts itself or a machine adapter failed."""
