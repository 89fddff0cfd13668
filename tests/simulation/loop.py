"""An event loop whose clock jumps to the next thing that is due: hours pass in milliseconds, always the same way."""

import asyncio
import selectors
from collections.abc import Sequence


class DeadlockError(Exception):
    """Nothing is ready, and nothing ever will be."""


class _NeverWaits(selectors.SelectSelector):
    """Instead of waiting, time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Sequence[tuple[selectors.SelectorKey, int]]:  # type: ignore[override]
        if timeout is None:
            raise DeadlockError("everybody waits for somebody else")
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Single-threaded, without files or sockets; ``time`` is in virtual seconds from 0."""

    def __init__(self) -> None:
        self._clock = _NeverWaits()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now
