"""Watch: sees every operator of a step above the kernels, on real tensors and on fake ones alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """Base of the meters: a mode that knows which part of the step runs; subclasses say what an operator means."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Name a part of the step."""
        before, self.phase = self.phase, phase
        self.begun(phase)
        try:
            yield
        finally:
            self.phase = before

    def begun(self, phase: str) -> None:
        """A part of the step begins."""

    def seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], call: Callable[[], Any]) -> Any:
        """Called for each operator; `call` carries it out. Returns what it returned."""
        raise NotImplementedError

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        words = kwargs or {}
        return self.seen(func, args, words, lambda: func(*args, **words))
