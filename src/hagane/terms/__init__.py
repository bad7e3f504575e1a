"""The nouns of hagane: frozen dataclasses on NumPy, and nothing that does anything else."""

from hagane.terms.action import ActionChunk, Policy, action_limits
from hagane.terms.channel import Channel, History
from hagane.terms.contract import NOT_REMOVABLE, PURPOSES, Contract, Decision, Protection, Purpose, Request
from hagane.terms.digest import canonical_json, code_digest, digest_bytes, digest_file, digest_value
from hagane.terms.embodiment import Embodiment
from hagane.terms.episode import APPLIED, Episode, Finding, Stream
from hagane.terms.errors import (
    CheckpointError,
    ConfigError,
    ContractError,
    CorruptError,
    GuardError,
    HaganeError,
    JailError,
    LogError,
    Refused,
    RemoteError,
    StoreError,
    TrainingError,
    WireError,
)
from hagane.terms.observation import Batch, Observation, Part, Reading, Window
from hagane.terms.record import Row, RunRecord, Scorecard
from hagane.terms.stats import ChannelStats
from hagane.terms.toml import dump_toml, load_toml, parse_toml
from hagane.terms.window import HistoryBuffer, gather_window, lags

__all__ = [
    "APPLIED",
    "NOT_REMOVABLE",
    "PURPOSES",
    "ActionChunk",
    "Batch",
    "Channel",
    "ChannelStats",
    "CheckpointError",
    "ConfigError",
    "Contract",
    "ContractError",
    "CorruptError",
    "Decision",
    "Embodiment",
    "Episode",
    "Finding",
    "GuardError",
    "HaganeError",
    "History",
    "HistoryBuffer",
    "JailError",
    "LogError",
    "Observation",
    "Part",
    "Policy",
    "Protection",
    "Purpose",
    "Reading",
    "Refused",
    "RemoteError",
    "Request",
    "Row",
    "RunRecord",
    "Scorecard",
    "StoreError",
    "Stream",
    "TrainingError",
    "Window",
    "WireError",
    "action_limits",
    "canonical_json",
    "code_digest",
    "digest_bytes",
    "digest_file",
    "digest_value",
    "dump_toml",
    "gather_window",
    "lags",
    "load_toml",
    "parse_toml",
]
