"""The port of a channel to its connection."""

from typing import Protocol

from pamqp import base

from cml_embedded.amqp.message import Properties


class Wire(Protocol):
    """What a channel uses of its connection."""

    @property
    def user(self) -> str: ...
    @property
    def cancels_consumers(self) -> bool:
        """Whether the client understands ``basic.cancel`` from the server."""

    @property
    def writable(self) -> bool:
        """Whether there is room for another delivery; if not, ``resume`` of the channels is called later."""

    def send(self, channel: int, frame: base.Frame) -> None: ...
    def send_content(self, channel: int, method: bytes, properties: Properties, body: bytes) -> None: ...
    def confirms_due(self, channel: int) -> None:
        """Have the channel's ``flush_confirms`` called before the next write."""
