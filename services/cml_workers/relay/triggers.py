"""Triggers, to our own exchange: of every event that is one, and first of those that happen now.

Two followers take them. The one that publishes every event may be far behind, after an outage or at its first start; what is
asked for meanwhile does not wait for that, as the other one begins at the end of what is stored. What both take is published once,
unless it is too long ago to be remembered; a trigger that comes twice is harmless.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from uuid import UUID

from cml_workers.bus.port import Outgoing
from cml_workers.bus.topology import TRIGGERS_EXCHANGE
from cml_workers.domain.operations import TRIGGERS
from cml_workers.eventstore.port import CaughtUp, Item, StoredEvent
from cml_workers.foundation.tasks import Tasks
from cml_workers.relay.in_order import Entry, InOrder

TRIGGER_TYPES = frozenset(event.TYPE for event in TRIGGERS)
MOST = 2_000
"""Triggers under way for which those that happen now are not taken: RabbitMQ takes none, so nobody can ask for anything either."""
REMEMBERED = 20_000
"""Triggers of which it is known that they were published, the newest."""


class Triggers:
    """Publishes them until they are confirmed.

    ``message_of``: an event as subscribers get it. ``end``: the position of the last event that is stored now.
    ``waits``: whether an event is none of ours, or waits in quarantine; nothing of that is published because it happens now.
    """

    def __init__(
        self,
        publish: Callable[[Outgoing], Awaitable[None]],
        message_of: Callable[[StoredEvent], Outgoing],
        *,
        waits: Callable[[StoredEvent], bool],
        end: Callable[[], Awaitable[str | None]],
        failed: Callable[[BaseException], None],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._publish = publish
        self._message_of = message_of
        self._waits = waits
        self._end = end
        self._tasks = Tasks(failed)
        self._in_order = InOrder(self._send, tasks=self._tasks, sleep=sleep)
        self._taken = 0
        self._under_way: dict[UUID, list[Callable[[], None]]] = {}
        self._published: OrderedDict[UUID, None] = OrderedDict()
        self._position: str | None = None
        self._began = False

    @property
    def failing(self) -> str | None:
        """Why the last try failed; None if it did not."""
        return self._in_order.failing

    def take(self, event: StoredEvent, message: Outgoing, done: Callable[[], None] = lambda: None) -> None:
        """Publish it, unless it is published or under way already; ``done`` is called when it is confirmed.

        ``message``: the event as subscribers get it.
        """
        if event.event_id in self._published:
            done()
        elif (waiting := self._under_way.get(event.event_id)) is not None:
            waiting.append(done)
        else:
            self._under_way[event.event_id] = [done]
            self._taken += 1
            trigger = trigger_message(message)
            self._in_order.put(Entry(self._taken, event, trigger, self._confirmed(event.event_id)))

    async def newest(self) -> str | None:
        """Where to follow those that happen now: at first the end, then behind what was taken. Raises as ``end`` does."""
        if not self._began:
            self._position = await self._end()
            self._began = True
        return self._position

    async def handle_newest(self, items: Sequence[Item]) -> None:
        """Take the next items of those that happen now; what cannot be published is left to the other follower."""
        for item in items:
            if isinstance(item, StoredEvent) and self._is_taken_now(item):
                with suppress(Exception):
                    self.take(item, self._message_of(item))
            if not isinstance(item, CaughtUp):
                self._position = item.position

    def _is_taken_now(self, event: StoredEvent) -> bool:
        return event.type in TRIGGER_TYPES and not self._waits(event) and len(self._under_way) < MOST

    async def stop(self) -> None:
        """Forget what is under way."""
        await self._tasks.end()
        self._in_order.clear()
        self._under_way.clear()

    async def _send(self, entry: Entry) -> None:
        await self._publish(entry.message)
        entry.done()

    def _confirmed(self, event_id: UUID) -> Callable[[], None]:
        def confirmed() -> None:
            self._published[event_id] = None
            if len(self._published) > REMEMBERED:
                self._published.popitem(last=False)
            for done in self._under_way.pop(event_id):
                done()

        return confirmed


def trigger_message(message: Outgoing) -> Outgoing:
    """An event's message as a trigger: under an id of its own, as the answer to one would be taken for the other's."""
    return replace(message, exchange=TRIGGERS_EXCHANGE, message_id=f"{message.message_id}.trigger")
