"""Watch: sees every operator of a step above the kernels, on real tensors and on fake ones alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Watcher:
    """Base of what is told of operators: it knows which part of the step runs."""

    def __init__(self) -> None:
        self.phase = ""

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

    def opened(self) -> None:
        """Operators are told from here on."""

    def closed(self) -> None:
        """No more operators are told."""

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An operator is about to run."""

    def after(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """An operator ran and returned `out`."""


class Watch(TorchDispatchMode):
    """While open, tells watchers of every operator."""

    def __init__(self, *watchers: Watcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watchers = watchers

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    def __enter__(self) -> Watch:
        for w in self.watchers:
            w.opened()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for w in self.watchers:
            w.closed()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        words = kwargs or {}
        if func.namespace == "prim":
            # questions like a tensor's device: more than half of all calls, and nothing is made
            return func(*args, **words)
        for w in self.watchers:
            w.before(func, args, words)
        out = func(*args, **words)
        for w in self.watchers:
            w.after(func, args, words, out)
        return out
