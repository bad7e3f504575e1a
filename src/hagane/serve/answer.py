"""One packed request in, one packed reply out: all that a server computes, without a socket."""

from __future__ import annotations

import logging
import queue
import threading
import time
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Mapping

from hagane import __version__
from hagane.terms import ActionChunk, Embodiment, HaganeError, Policy, WireError
from hagane.wire import Limits, metadata_of, observation_of, pack, reply_of, unpack

LOG = logging.getLogger("hagane.serve")


class Answerer:
    """Decodes, checks, asks the policy, checks its answer, encodes.

    Args:
        policy: decides; asked by one thread only.
        embodiments: machines that it serves, by name.
        checkpoint_id: digest of its weights, told in the metadata.
        limits: the largest request that is read.
    """

    def __init__(
        self,
        policy: Policy,
        embodiments: Mapping[str, Embodiment],
        checkpoint_id: str = "",
        limits: Limits | None = None,
    ) -> None:
        if not embodiments:
            raise WireError("a policy server needs at least one embodiment")
        self.policy, self.embodiments = policy, dict(embodiments)
        self.limits = limits or Limits()
        self.metadata = pack(metadata_of(self.embodiments, checkpoint_id, __version__))
        self._ready_for: tuple[str, str] | None = None

    def answer(self, data: bytes, prev_total_ms: float | None = None) -> bytes:
        """The reply to one request.

        Raises:
            WireError: the request is refused, or the policy failed on it; in words that may go to the client.
        """
        chunk, embodiment, infer_ms = self.decide(data)
        return pack(reply_of(chunk, embodiment, infer_ms, prev_total_ms))

    def decide(self, data: bytes) -> tuple[ActionChunk, Embodiment, float]:
        """What the policy decides on one request, for which machine, in how many milliseconds.

        Raises:
            WireError: as `answer`.
        """
        observation = observation_of(unpack(data, self.limits), self.embodiments)
        embodiment = self.embodiments[observation.embodiment]
        begin = time.perf_counter()
        try:
            wanted = (embodiment.name, observation.tasks[0])
            if self._ready_for != wanted:
                self.policy.reset(embodiment, observation.tasks[0])
                self._ready_for = wanted
            chunk = self.policy.act(observation)
        except HaganeError as e:
            raise WireError(str(e)) from e
        except Exception as e:
            LOG.exception("the policy failed on a request")
            raise WireError("the policy failed on this request", next_step="see the server's own log") from e
        return chunk, embodiment, 1e3 * (time.perf_counter() - begin)


class Worker:
    """One thread that computes one thing at a time, while the event loop goes on.

    A daemon, unlike the threads of concurrent.futures: a policy that never returns cannot keep a process alive.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: queue.SimpleQueue[tuple[Callable[[], bytes], Future[bytes]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="hagane-policy", daemon=True).start()

    def submit(self, job: Callable[[], bytes]) -> Future[bytes]:
        """A future of the event loop for the job's result; jobs run in the order of submission."""
        future: Future[bytes] = self._loop.create_future()
        self._jobs.put((job, future))
        return future

    def stop(self) -> None:
        """Let the thread end after the jobs before this call."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, future = item
            result, error = b"", None
            try:
                if future.cancelled():
                    continue
                result = job()
            except Exception as e:
                error = e
            try:
                self._loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more


def _settle(future: Future[bytes], result: bytes, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
