"""An AMQP connection: frames, negotiation, heartbeats, and what closing a channel or the whole means."""

import asyncio
from collections.abc import Callable
from typing import Final, cast

from pamqp import base, constants, exceptions, frame
from pamqp.commands import Channel, Connection
from pamqp.header import ProtocolHeader

from cml_embedded.amqp.broker import Broker
from cml_embedded.amqp.channel import ServerChannel
from cml_embedded.amqp.errors import AmqpError, Code
from cml_embedded.amqp.handshake import Handshake
from cml_embedded.amqp.message import Properties
from cml_embedded.amqp.output import END, FRAME, Output

HANDSHAKE_TIMEOUT: Final = 10.0
CLOSE_TIMEOUT: Final = 0.3
"""Seconds a client has to answer that it understood the connection is closed."""

_HEARTBEAT_FRAME: Final = FRAME.pack(constants.FRAME_HEARTBEAT, 0, 0) + END
_PROTOCOL: Final = ProtocolHeader().marshal()


class ServerConnection(asyncio.Protocol):
    """``gone`` is called when the connection has ended and everything that it held is given back; ``password``: see ``Handshake``."""

    def __init__(
        self, broker: Broker, gone: Callable[["ServerConnection"], None], password: str | None = None
    ) -> None:
        self._broker = broker
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._handshake = Handshake(password)
        self._greeted = False
        self._closing = False
        self._channels: dict[int, ServerChannel] = {}
        self._closing_channels: set[int] = set()
        self._output = Output(self._loop, before=self._flush_confirms, room=self._resume)
        self._confirming: dict[int, None] = {}
        self._last_read = self._loop.time()
        self._timer = self._loop.call_later(HANDSHAKE_TIMEOUT, self.abort)

    # ---- what channels use

    @property
    def user(self) -> str:
        return self._handshake.user

    @property
    def cancels_consumers(self) -> bool:
        return self._handshake.cancels_consumers

    @property
    def writable(self) -> bool:
        return self._output.writable

    def send(self, channel: int, frame: base.Frame) -> None:
        self._output.send(channel, frame)

    def send_content(self, channel: int, method: bytes, properties: Properties, body: bytes) -> None:
        self._output.send_content(channel, method, properties, body)

    def confirms_due(self, channel: int) -> None:
        self._confirming[channel] = None
        self._output.flush_soon()

    def _flush_confirms(self) -> None:
        confirming, self._confirming = self._confirming, {}
        for number in confirming:
            if channel := self._channels.get(number):
                channel.publishing.flush_confirms()

    def _resume(self) -> None:
        for channel in list(self._channels.values()):
            channel.consuming.resume()

    def pause_writing(self) -> None:
        self._output.pause()

    def resume_writing(self) -> None:
        self._output.resume()

    # ---- reading

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not one by inheritance
        self._output.open(self._transport)

    def data_received(self, data: bytes) -> None:
        self._last_read = self._loop.time()
        self._received += data
        at = 0
        if not self._greeted:
            if len(self._received) < len(_PROTOCOL):
                return
            if not self._received.startswith(_PROTOCOL):
                self._transport.write(_PROTOCOL)
                self._transport.close()
                return
            at = len(_PROTOCOL)
            self._greeted = True
            self.send(0, self._handshake.greeting())
        while len(self._received) - at >= FRAME.size:
            kind, number, size = FRAME.unpack_from(self._received, at)
            end = at + FRAME.size + size
            if size > self._output.frame_max:
                self._fail(
                    AmqpError(Code.FRAME_ERROR, f"frame of {size} bytes exceeds {self._output.frame_max}")
                )
                return
            if len(self._received) <= end:
                break
            if self._received[end] != constants.FRAME_END:
                self._fail(AmqpError(Code.FRAME_ERROR, "frame without end"))
                return
            self._on_frame(kind, number, bytes(self._received[at : end + 1]))
            at = end + 1
        del self._received[:at]

    def _on_frame(self, kind: int, number: int, raw: bytes) -> None:
        method: base.Frame | None = None
        try:
            if kind == constants.FRAME_HEARTBEAT:
                return
            if kind == constants.FRAME_METHOD:
                decoded = frame.unmarshal(raw)[2]
                assert isinstance(decoded, base.Frame)  # noqa: S101 - pamqp's answer to a method frame
                method = decoded
            if number == 0:
                self._on_connection_method(method)
            elif not self._closing:
                self._on_channel_frame(number, kind, method, raw)
        except AmqpError as error:
            self._failed(error, number, method)
        except exceptions.UnmarshalingException as error:
            self._fail(AmqpError(Code.SYNTAX_ERROR, str(error)))
        except Exception as error:
            self._fail(AmqpError(Code.INTERNAL_ERROR, repr(error)))
            raise

    def _on_channel_frame(self, number: int, kind: int, method: base.Frame | None, raw: bytes) -> None:
        if number in self._closing_channels:
            match method:
                case Channel.CloseOk():
                    self._closing_channels.discard(number)
                case Channel.Close():
                    self.send(number, Channel.CloseOk())
                case _:
                    pass
            return
        channel = self._channels.get(number)
        match method:
            case Channel.Open():
                if channel:
                    raise _channel_error("second 'channel.open' seen")
                if number > self._handshake.channel_max:
                    raise AmqpError(
                        Code.NOT_ALLOWED,
                        f"channel {number} exceeds channel_max ({self._handshake.channel_max})",
                    )
                self._channels[number] = ServerChannel(number, self._broker, self)
                self.send(number, Channel.OpenOk())
            case _ if channel is None:
                raise _channel_error("expected 'channel.open'")
            case Channel.Close():
                self._drop_channel(number)
                self.send(number, Channel.CloseOk())
            case None if kind == constants.FRAME_HEADER:
                channel.publishing.header(raw[FRAME.size : -1])
            case None if kind == constants.FRAME_BODY:
                channel.publishing.body(raw[FRAME.size : -1])
            case None:
                raise AmqpError(Code.FRAME_ERROR, f"unknown frame type {kind}")
            case _:
                channel.method(method)

    # ---- negotiation

    def _on_connection_method(self, method: base.Frame | None) -> None:
        match method:
            case None:
                raise AmqpError(Code.UNEXPECTED_FRAME, "content on channel 0")
            case Connection.Close():
                self.send(0, Connection.CloseOk())
                self._end()
            case Connection.CloseOk():
                self._end()
            case _:
                if not self._closing:
                    self._negotiate(method)

    def _negotiate(self, method: base.Frame) -> None:
        if answer := self._handshake.answer(method):
            self.send(0, answer)
        if isinstance(method, Connection.TuneOk):
            self._output.frame_max = self._handshake.frame_max
            self._timer.cancel()
            if method.heartbeat:
                self._timer = self._loop.call_later(method.heartbeat / 2, self._beat, method.heartbeat)

    def _beat(self, interval: int) -> None:
        """Be heard every half interval; a peer silent for two is dead."""
        now = self._loop.time()
        if now - self._last_read > 2 * interval:
            self.abort()
            return
        if now - self._output.last_write >= interval / 4:
            self._output.write(_HEARTBEAT_FRAME)
        self._timer = self._loop.call_later(interval / 2, self._beat, interval)

    # ---- closing

    def _failed(self, error: AmqpError, number: int, method: base.Frame | None) -> None:
        if error.hard or number == 0:
            self._fail(error, method)
            return
        self._drop_channel(number)
        self._closing_channels.add(number)
        class_id, method_id = _ids(method)
        self.send(
            number,
            Channel.Close(
                reply_code=error.code, reply_text=str(error), class_id=class_id, method_id=method_id
            ),
        )

    def _fail(self, error: AmqpError, method: base.Frame | None = None) -> None:
        """Send the client the reason, give back what it held, and hang up when it has understood."""
        if self._closing:
            return
        class_id, method_id = _ids(method)
        self.send(
            0,
            Connection.Close(
                reply_code=error.code, reply_text=str(error), class_id=class_id, method_id=method_id
            ),
        )
        self._closing = True
        self._output.closed = True
        self._release()
        self._timer.cancel()
        self._timer = self._loop.call_later(CLOSE_TIMEOUT, self.abort)

    def force_close(self) -> None:
        """The broker shuts down."""
        self._fail(
            AmqpError(Code.CONNECTION_FORCED, "broker forced connection closure with reason 'shutdown'")
        )

    def abort(self) -> None:
        self._transport.abort()

    def _end(self) -> None:
        self._closing = True
        self._output.close()
        self._transport.close()

    def _drop_channel(self, number: int) -> None:
        channel = self._channels.pop(number)
        channel.detach()
        channel.release()

    def _release(self) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.detach()
        for channel in channels.values():
            channel.release()
        self._broker.delete_queues_of(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._closing = True
        self._output.closed = True
        self._timer.cancel()
        self._release()
        self._gone(self)


def _channel_error(text: str) -> AmqpError:
    return AmqpError(Code.CHANNEL_ERROR, text)


def _ids(method: base.Frame | None) -> tuple[int, int]:
    return (method.index >> 16, method.index & 0xFFFF) if method else (0, 0)
