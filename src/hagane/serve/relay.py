"""The relay: a policy whose model computes in a jail, on the other side of a unix socket. No torch here.

Frames have 4 bytes of length (big endian); what is in them is packed as on the openpi wire.

    jail -> here    {"checkpoint_id": 64 hex, "machines": [sha256 of an embodiment, ..]}    once
    here -> jail    a request map (`wire.request_of`)
    jail -> here    {"actions": float32 [H, A]}, or {"failed": true}

Code in the jail knows what it was trained on, so nothing that it says is passed on but finite actions of a known
machine, within its limits. Machines are named by digests of what is known out here already: no word comes out.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.seal.broker_wire import receive_frame, send_frame
from hagane.serve.answer import LOG, Answerer
from hagane.terms import ActionChunk, Embodiment, Observation, WireError, action_limits, digest_value
from hagane.wire import Limits, pack, request_of, unpack

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HELLO = Limits(frame_bytes=1 << 16, depth=2, items=600, text_bytes=64, key_bytes=32)
_INSIDE = Limits(frame_bytes=1 << 28, text_bytes=1 << 20)
"""Of what the jail reads: the gateway outside checked and bounded it, and filled windows up."""


class RelayPolicy:
    """A Policy that asks the jail, and believes nothing but actions.

    After a wait that was too long, a lost connection or anything else than a reply as above, it is never asked again:
    every further `act` fails at once, with the same words.

    Args:
        link: connected to the jail's `answer_link`.
        known: machines that may be served.
        start_s: seconds until it must have said which weights it has.
        timeout_s: seconds until it must have answered a request.

    Raises:
        WireError: it did not say so in time, or said anything else.
    """

    def __init__(self, link: socket.socket, known: Iterable[Embodiment], start_s: float, timeout_s: float) -> None:
        self._link, self.timeout_s = link, timeout_s
        self.failed = ""
        """Why the jail is not asked any more; "" while it is."""
        self.ended: Callable[[], None] = lambda: None
        """Called once when it has failed."""
        self.checkpoint_id, self.embodiments = _hello(self._receive(_HELLO, start_s), known)

    def reset(self, embodiment: Embodiment, task: str) -> None:
        """As `Policy`; the jail does it at the next request."""

    def act(self, observation: Observation) -> ActionChunk:
        """Actions for each of the N machines, asked for one after the other.

        Raises:
            WireError: the model failed on it, the jail does not answer any more, or it answered otherwise.
        """
        e = self.embodiments[observation.embodiment]
        actions_NHA = np.stack([self._ask(request_of(observation, i), e) for i in range(len(observation))])
        return ActionChunk(actions_NHA, observation.time_ns, e.step_ns, self.checkpoint_id)

    def _ask(self, request: Mapping[str, Any], e: Embodiment) -> NDArray[np.float32]:
        if self.failed:
            raise self._failure()
        # an array's bytes, and less than 100 of keys, dtype and shape
        limits = Limits(4 * e.horizon * e.action_width + 100, 2, 20, 16, 16)
        try:
            self._link.settimeout(self.timeout_s)
            send_frame(self._link, pack(request))
        except OSError:
            raise self._end(f"it took no request within {self.timeout_s:g} s, or has ended") from None
        reply = self._receive(limits, self.timeout_s)
        if isinstance(reply, dict) and reply.keys() == {"failed"} and reply["failed"] is True:
            raise WireError("the model failed on this request")
        try:
            return actions_of(reply, e)
        except WireError as error:
            raise self._end(error.what) from None

    def _receive(self, limits: Limits, timeout_s: float) -> Any:
        try:
            data = receive_frame(self._link, limits.frame_bytes, time.monotonic() + timeout_s)
            if data is not None:
                return unpack(data, limits)
            why = "it ended"
        except TimeoutError:
            why = f"no answer within {timeout_s:g} s"
        except OSError:
            why = "the connection was lost"
        except WireError:
            # words about bytes of the jail's own could carry some of them
            why = "its answer is not as it must be"
        raise self._end(why)

    def _end(self, why: str) -> WireError:
        self.failed = why
        self._link.close()
        self.ended()
        return self._failure()

    def _failure(self) -> WireError:
        return WireError(f"the model in the jail is not asked any more: {self.failed}", next_step="start it again")


def actions_of(reply: Any, embodiment: Embodiment) -> NDArray[np.float32]:
    """[H, A] actions out of a jail's reply.

    Raises:
        WireError: anything else, or values that are not finite or beyond the limits of an action channel; the words
            hold nothing of the reply.
    """
    wanted = (embodiment.horizon, embodiment.action_width)
    if not isinstance(reply, dict) or reply.keys() != {"actions"} or not isinstance(reply["actions"], np.ndarray):
        raise WireError("its answer holds something else than actions")
    actions_HA = reply["actions"]
    if actions_HA.dtype.str != "<f4" or actions_HA.shape != wanted:
        raise WireError(f"its actions are no float32 of shape {wanted}")
    if not np.isfinite(actions_HA).all():
        raise WireError("its actions are not finite")
    # limits as float32, which is what the model's own were cut to
    low_A, high_A = (limit.astype(np.float32) for limit in action_limits(embodiment))
    if (actions_HA < low_A).any() or (actions_HA > high_A).any():
        raise WireError("its actions are beyond the machine's limits")
    return actions_HA


def answer_link(link: socket.socket, answerer: Answerer, checkpoint_id: str) -> None:
    """In the jail: say which weights there are, then answer requests until the other side ends.

    Raises:
        WireError: a frame that is none.
        OSError: the connection broke.
    """
    machines = sorted(digest_value(e) for e in answerer.embodiments.values())
    send_frame(link, pack({"checkpoint_id": checkpoint_id, "machines": machines}))
    while (data := receive_frame(link, _INSIDE.frame_bytes)) is not None:
        try:
            chunk, _, _ = answerer.decide(data)
            reply = pack({"actions": np.ascontiguousarray(chunk.actions_NHA[0], np.float32)})
        except Exception:
            LOG.exception("no actions for a request")
            reply = pack({"failed": True})
        send_frame(link, reply)


def jail_answerer(policy: Any, embodiments: Mapping[str, Embodiment]) -> Answerer:
    """The answerer of a jail: it reads what the gateway passed on."""
    return Answerer(policy, embodiments, limits=_INSIDE)


def _hello(told: Any, known: Iterable[Embodiment]) -> tuple[str, dict[str, Embodiment]]:
    """Which weights, and machines by name."""
    by_digest = {digest_value(e): e for e in known}
    if not isinstance(told, dict) or told.keys() != {"checkpoint_id", "machines"}:
        raise WireError("the jail did not say which weights it has")
    checkpoint_id, machines = told["checkpoint_id"], told["machines"]
    if not isinstance(checkpoint_id, str) or not _DIGEST.fullmatch(checkpoint_id) or not isinstance(machines, list):
        raise WireError("the jail did not say which weights it has")
    if not machines or not all(isinstance(m, str) and m in by_digest for m in machines):
        raise WireError(
            "the weights are for other machines than those of the data sets that they were trained on",
            next_step="see the run's data sets in its lineage.json",
        )
    return checkpoint_id, {by_digest[m].name: by_digest[m] for m in machines}
