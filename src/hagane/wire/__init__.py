"""Wire: bytes between processes. The openpi codec, the request map, and the client that is a Policy.

`RemotePolicy` is in `hagane.wire.client` (it needs the websockets package; the codec does not).
"""

from typing import TYPE_CHECKING, Any

from hagane.wire.codec import Limits, pack, unpack
from hagane.wire.messages import (
    chunk_of,
    interface_of,
    metadata_of,
    observation_of,
    reply_of,
    request_of,
)

if TYPE_CHECKING:
    from hagane.wire.client import RemotePolicy

__all__ = [
    "Limits",
    "RemotePolicy",
    "chunk_of",
    "interface_of",
    "metadata_of",
    "observation_of",
    "pack",
    "reply_of",
    "request_of",
    "unpack",
]


def __getattr__(name: str) -> Any:
    """Load the client only when it is asked for."""
    if name == "RemotePolicy":
        from hagane.wire.client import RemotePolicy

        return RemotePolicy
    raise AttributeError(f"module 'hagane.wire' has no attribute {name!r}")
