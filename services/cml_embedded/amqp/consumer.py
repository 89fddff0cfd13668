"""A consumer: how many messages of its queue it can take, and where they go."""

from dataclasses import dataclass
from typing import Protocol

from cml_embedded.amqp.message import Queued


class Channel(Protocol):
    """The far end of a consumer."""

    @property
    def open_to_deliveries(self) -> bool:
        """Whether the channel as a whole can take one more."""

    def deliver(self, consumer: "Consumer", queued: Queued) -> None: ...
    def consumer_cancelled(self, consumer: "Consumer") -> None:
        """The queue is gone."""


@dataclass(eq=False, slots=True)
class Consumer:
    """``prefetch``: messages it may hold unacknowledged, 0 for any number; ``holding``: how many it does."""

    tag: str
    channel: Channel
    no_ack: bool = False
    prefetch: int = 0
    holding: int = 0

    @property
    def ready(self) -> bool:
        room = self.no_ack or not self.prefetch or self.holding < self.prefetch
        return room and self.channel.open_to_deliveries
