"""An AMQP connection: frames, negotiation, heartbeats, and what closing a channel or the whole means."""

import asyncio
from collections.abc import Callable
from struct import Struct
from typing import Final, cast

from pamqp import base, constants, exceptions, frame
from pamqp.commands import Channel, Connection
from pamqp.header import ProtocolHeader

from cml_embedded.amqp.broker import Broker
from cml_embedded.amqp.channel import ServerChannel
from cml_embedded.amqp.errors import AmqpError, Code
from cml_embedded.amqp.message import Properties

FRAME_MAX: Final = 131_072
CHANNEL_MAX: Final = 2047
HEARTBEAT: Final = 60
"""Seconds proposed to the client, as RabbitMQ does."""
HANDSHAKE_TIMEOUT: Final = 10.0
CLOSE_TIMEOUT: Final = 0.3
"""Seconds a client has to answer that it understood the connection is closed."""

_OUT_LIMIT: Final = 1 << 20
"""Bytes waiting to be written above which a client gets no further deliveries."""
_FRAME: Final = Struct(">BHI")
_END: Final = bytes((constants.FRAME_END,))
_HEARTBEAT_FRAME: Final = _FRAME.pack(constants.FRAME_HEARTBEAT, 0, 0) + _END
_PROTOCOL: Final = ProtocolHeader().marshal()

_CAPABILITIES: Final = {
    "authentication_failure_close": True,
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "consumer_priorities": True,
    "direct_reply_to": True,
    "exchange_exchange_bindings": True,
    "per_consumer_qos": True,
    "publisher_confirms": True,
}


class ServerConnection(asyncio.Protocol):
    """``gone`` is called when the connection has ended and everything it held is given back."""

    def __init__(self, broker: Broker, version: str, gone: Callable[["ServerConnection"], None]) -> None:
        self.user = ""
        self.cancels_consumers = False
        self._broker = broker
        self._version = version
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._step: Callable[[base.Frame], None] = self._on_start_ok
        self._greeted = False
        self._closing = False
        self._channels: dict[int, ServerChannel] = {}
        self._closing_channels: set[int] = set()
        self._frame_max = FRAME_MAX
        self._channel_max = CHANNEL_MAX
        self._out: list[bytes] = []
        self._out_size = 0
        self._paused = False
        self._starved = False
        self._flushing = False
        self._confirming: dict[ServerChannel, None] = {}
        self._last_read = self._last_write = self._loop.time()
        self._timer = self._loop.call_later(HANDSHAKE_TIMEOUT, self.abort)

    # ---- what channels use

    @property
    def writable(self) -> bool:
        if self._paused or self._out_size > _OUT_LIMIT or self._closing:
            self._starved = True
            return False
        return True

    def send(self, channel: int, method: base.Frame) -> None:
        self._write(frame.marshal(method, channel))

    def send_content(self, channel: int, method: bytes, properties: Properties, body: bytes) -> None:
        header = properties.header(len(body))
        parts = [
            _FRAME.pack(constants.FRAME_METHOD, channel, len(method)),
            method,
            _END,
            _FRAME.pack(constants.FRAME_HEADER, channel, len(header)),
            header,
            _END,
        ]
        room = self._frame_max - 8
        for start in range(0, len(body), room):
            part = body if len(body) <= room else body[start : start + room]
            parts += (_FRAME.pack(constants.FRAME_BODY, channel, len(part)), part, _END)
        self._write(b"".join(parts))

    def confirms_due(self, channel: ServerChannel) -> None:
        self._confirming[channel] = None
        self._flush_soon()

    # ---- writing, collected until the end of the loop's round

    def _write(self, data: bytes) -> None:
        self._out.append(data)
        self._out_size += len(data)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        confirming, self._confirming = self._confirming, {}
        for channel in confirming:
            channel.flush_confirms()
        self._flushing = False
        out, self._out, self._out_size = self._out, [], 0
        if out and not self._transport.is_closing():
            self._transport.write(b"".join(out))
            self._last_write = self._loop.time()
        self._feed()

    def _feed(self) -> None:
        if self._starved and not self._paused and not self._closing:
            self._starved = False
            for channel in list(self._channels.values()):
                channel.resume()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._feed()

    # ---- reading

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not one by inheritance
        self._transport.set_write_buffer_limits(high=_OUT_LIMIT)

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
            self._greet()
        while len(self._received) - at >= _FRAME.size:
            kind, number, size = _FRAME.unpack_from(self._received, at)
            end = at + _FRAME.size + size
            if size > self._frame_max:
                self._fail(AmqpError(Code.FRAME_ERROR, f"frame of {size} bytes exceeds {self._frame_max}"))
                return
            if len(self._received) <= end:
                break
            if self._received[end] != constants.FRAME_END:
                self._fail(AmqpError(Code.FRAME_ERROR, "frame without end"))
                return
            self._on_frame(kind, number, bytes(self._received[at : end + 1]))
            at = end + 1
        del self._received[:at]

    def _greet(self) -> None:
        self._greeted = True
        self.send(
            0,
            Connection.Start(
                server_properties={
                    "product": "cml-workers embedded broker",
                    "version": self._version,
                    "platform": "Python",
                    "capabilities": dict(_CAPABILITIES),
                },
                mechanisms="PLAIN",
                locales="en_US",
            ),
        )

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
                if number > self._channel_max:
                    raise AmqpError(
                        Code.NOT_ALLOWED, f"channel {number} exceeds channel_max ({self._channel_max})"
                    )
                self._channels[number] = ServerChannel(number, self._broker, self)
                self.send(number, Channel.OpenOk())
            case _ if channel is None:
                raise _channel_error("expected 'channel.open'")
            case Channel.Close():
                self._drop_channel(number)
                self.send(number, Channel.CloseOk())
            case None if kind == constants.FRAME_HEADER:
                channel.header(raw[_FRAME.size : -1])
            case None if kind == constants.FRAME_BODY:
                channel.body(raw[_FRAME.size : -1])
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
            case Connection.UpdateSecret():
                self.send(0, Connection.UpdateSecretOk())
            case _:
                if not self._closing:
                    self._step(method)

    def _on_start_ok(self, method: base.Frame) -> None:
        if not isinstance(method, Connection.StartOk):
            raise AmqpError(Code.COMMAND_INVALID, "expected connection.start-ok")
        _, user, _ = (method.response or "").split("\0", 2) if method.mechanism == "PLAIN" else ("", "", "")
        if not user:
            raise AmqpError(Code.ACCESS_REFUSED, "Login was refused: PLAIN with any user is needed")
        self.user = user
        capabilities = (method.client_properties or {}).get("capabilities")
        self.cancels_consumers = (
            isinstance(capabilities, dict) and capabilities.get("consumer_cancel_notify") is True
        )
        self._step = self._on_tune_ok
        self.send(0, Connection.Tune(channel_max=CHANNEL_MAX, frame_max=FRAME_MAX, heartbeat=HEARTBEAT))

    def _on_tune_ok(self, method: base.Frame) -> None:
        if not isinstance(method, Connection.TuneOk):
            raise AmqpError(Code.COMMAND_INVALID, "expected connection.tune-ok")
        self._frame_max = min(method.frame_max or FRAME_MAX, FRAME_MAX)
        self._channel_max = min(method.channel_max or CHANNEL_MAX, CHANNEL_MAX)
        self._timer.cancel()
        if method.heartbeat:
            self._timer = self._loop.call_later(method.heartbeat / 2, self._beat, method.heartbeat)
        self._step = self._on_open

    def _on_open(self, method: base.Frame) -> None:
        if not isinstance(method, Connection.Open):
            raise AmqpError(Code.COMMAND_INVALID, "expected connection.open")
        if method.virtual_host != "/":
            raise AmqpError(Code.NOT_ALLOWED, f"vhost {method.virtual_host} not found")
        self._step = self._on_nothing_more
        self.send(0, Connection.OpenOk())

    def _on_nothing_more(self, method: base.Frame) -> None:
        raise AmqpError(Code.COMMAND_INVALID, f"unexpected {method.name}")

    def _beat(self, interval: int) -> None:
        """Be heard every half interval; a peer silent for two is dead."""
        now = self._loop.time()
        if now - self._last_read > 2 * interval:
            self.abort()
            return
        if now - self._last_write >= interval / 4:
            self._write(_HEARTBEAT_FRAME)
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
        """Tell the client why, give back what it held, and hang up when it has understood."""
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
        self._flush()
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
        self._timer.cancel()
        self._release()
        self._gone(self)


def _channel_error(text: str) -> AmqpError:
    return AmqpError(Code.CHANNEL_ERROR, text)


def _ids(method: base.Frame | None) -> tuple[int, int]:
    return (method.index >> 16, method.index & 0xFFFF) if method else (0, 0)
