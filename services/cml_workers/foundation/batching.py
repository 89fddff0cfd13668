"""Many reads of the same kind as one request."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from cml_workers.foundation.ids import apart

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(eq=False)
class _Batch(Generic[K, V]):
    """Reads that go out together."""

    answers: "asyncio.Task[Mapping[K, V]] | None" = None
    wanted: dict[K, None] = field(default_factory=dict)


class Batcher(Generic[K, V]):
    """Asks for keys that come together at once, at most ``most`` in a request.

    A read that comes alone does not wait; those of the next ``pause`` seconds share the next request.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        *,
        most: int,
        pause: float,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._ask = ask
        self._most = most
        self._pause = pause
        self._sleep = sleep
        self._open: _Batch[K, V] | None = None
        self._pausing: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V | None:
        """The answer for this key; None if there is none. Raises what the request raises.

        Who gives up does not take the others' request along.
        """
        batch = self._open
        if batch is None or len(batch.wanted) >= self._most:
            batch = self._open = _Batch()
            batch.answers = asyncio.get_running_loop().create_task(self._together(batch), context=apart())
            batch.answers.add_done_callback(_retrieve_error)
        batch.wanted[key] = None
        assert batch.answers is not None  # noqa: S101 - just set, or set by who opened it
        return (await asyncio.shield(batch.answers)).get(key)

    async def _together(self, batch: _Batch[K, V]) -> Mapping[K, V]:
        if self._pausing is not None and not self._pausing.done():
            await asyncio.shield(self._pausing)
        if self._open is batch:
            self._open = None
        self._pausing = asyncio.create_task(self._wait())
        self._pausing.add_done_callback(_retrieve_error)
        return await self._ask(list(batch.wanted))

    async def _wait(self) -> None:
        await self._sleep(self._pause)


def _retrieve_error(task: "asyncio.Task[Any]") -> None:
    """Where all who asked have given up, nobody else does, and it would be logged as an error of the program."""
    if not task.cancelled():
        task.exception()
