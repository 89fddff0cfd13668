"""How far the store's order is published: the position before which nothing is under way."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from cml_workers.eventstore.anchor import Anchor

MOST = 5000
"""Places that may be under way, which bounds what is in memory."""


@dataclass(slots=True, eq=False)
class _Place:
    position: str
    anchor: Anchor | None
    left: int
    """Messages of it that are under way."""


class Progress:
    """Places in the order in which they were added; each is passed when it and all before it are done."""

    def __init__(self) -> None:
        self._places: deque[_Place] = deque()
        self._room = asyncio.Event()
        self.passed: str | None = None
        """The last position passed."""
        self.anchor: Anchor | None = None
        """The last event passed that has a position of its own."""
        self._added: str | None = None
        self.moved = asyncio.Event()
        """Set whenever another position is passed; whoever has seen that clears it."""

    def __len__(self) -> int:
        return len(self._places)

    async def room(self) -> None:
        """Wait until another place may be added."""
        while len(self._places) >= MOST:
            self._room.clear()
            await self._room.wait()

    def add(self, position: str, anchor: Anchor | None, messages: int) -> Callable[[], None]:
        """A place with so many messages, and the event there, if there is one; call the result when one of them is done."""
        # What a subscription had left out comes at the position of the item before.
        place = _Place(position, anchor if position != self._added else None, messages)
        self._added = position
        self._places.append(place)

        def done() -> None:
            place.left -= 1
            self._pass()

        self._pass()
        return done

    def begin(self, position: str | None) -> None:
        """Begin again, behind this position."""
        self._places.clear()
        self._added = position
        self.passed = self.anchor = None
        self._room.set()

    def _pass(self) -> None:
        while self._places and self._places[0].left == 0:
            place = self._places.popleft()
            self.passed = place.position
            self.anchor = place.anchor or self.anchor
            self.moved.set()
            self._room.set()
