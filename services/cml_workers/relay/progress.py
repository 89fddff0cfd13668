"""How far the store's order is published: the position before which nothing is under way."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

MOST = 5000
"""Places that may be under way, which bounds what is in memory."""


@dataclass(slots=True, eq=False)
class _Place:
    position: str
    left: int
    """Messages of it that are under way."""


class Progress:
    """Places in the order in which they were added; each is passed when it and all before it are done."""

    def __init__(self) -> None:
        self._places: deque[_Place] = deque()
        self._room = asyncio.Event()
        self.passed: str | None = None
        """The last position passed."""
        self.moved = asyncio.Event()
        """Set whenever another position is passed; whoever has seen that clears it."""

    def __len__(self) -> int:
        return len(self._places)

    async def room(self) -> None:
        """Wait until another place may be added."""
        while len(self._places) >= MOST:
            self._room.clear()
            await self._room.wait()

    def add(self, position: str, messages: int) -> Callable[[], None]:
        """A place with so many messages; call the result when one of them is done."""
        place = _Place(position, messages)
        self._places.append(place)

        def done() -> None:
            place.left -= 1
            self._pass()

        self._pass()
        return done

    def clear(self) -> None:
        """Begin again."""
        self._places.clear()
        self.passed = None
        self._room.set()

    def _pass(self) -> None:
        while self._places and self._places[0].left == 0:
            self.passed = self._places.popleft().position
            self.moved.set()
            self._room.set()
