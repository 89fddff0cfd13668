"""A stand-in for a KurrentDB server: the gRPC calls our client makes, kept in memory, with faults to order.

It speaks the protocol of kurrentdbclient's own ``Servicer`` bases. Not here: persistent subscriptions,
projections, links, ACLs, ``$maxAge``/``$maxCount``, size limits, and replication (one node, always leader).

As a process of its own, until SIGTERM: ``PYTHONPATH=tests python -m support.kurrentdb_standin --port N``
"""

import argparse
import asyncio
import base64
import contextlib
import json
import re
import signal
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import grpc  # type: ignore[import-untyped]  # it ships no types
import grpc.aio  # type: ignore[import-untyped]
from google.protobuf.any_pb2 import Any as PackedAny  # type: ignore[import-untyped]  # nor does protobuf
from google.protobuf.message import Message  # type: ignore[import-untyped]
from kurrentdbclient.protos.v1 import (
    gossip_pb2,
    gossip_pb2_grpc,
    shared_pb2,
    status_pb2,
    streams_pb2,
    streams_pb2_grpc,
)

TOMBSTONE = 2**63 - 1
"""The revision of a tombstone, and the ``$tb`` (truncate before) of a soft-deleted stream."""
_NO_STREAM, _ANY, _EXISTS = -1, -2, -4

_Resp = streams_pb2.ReadResp


@dataclass(frozen=True, slots=True)
class Record:
    """An event as it lies in the log."""

    stream: str
    revision: int
    position: int
    event_id: str
    type: str
    content_type: str
    data: bytes
    metadata: bytes
    created: int
    """In ticks of 100 ns since 1970."""


@dataclass(slots=True)
class Faults:
    """What goes wrong, from now on; counts go down with each call they hit."""

    lose_replies: int = 0
    """Commit the append, then break the connection's call instead of answering."""
    unavailable: int = 0
    """Refuse the call, whatever it is."""
    hang: bool = False
    """Take calls and never answer."""
    unauthenticated: bool = False
    leader: tuple[str, int] | None = None
    """Send appends away to the leader at this host and port."""
    forget_ids: bool = False
    """Answer a repeated append with a conflict."""


@dataclass(slots=True)
class Log:
    """Everything stored; survives a restart of the server."""

    records: list[Record] = field(default_factory=list)
    streams: dict[str, list[Record]] = field(default_factory=dict)

    def append(self, stream: str, events: Iterable[streams_pb2.BatchAppendReq.ProposedMessage]) -> Record:
        """Write behind the stream's last event; return the last record."""
        there = self.streams.setdefault(stream, [])
        for event in events:
            # As at the server, a position is a place in bytes: it grows by more than one.
            position = self.records[-1].position + 64 + len(self.records[-1].data) if self.records else 0
            record = Record(
                stream=stream,
                revision=TOMBSTONE if event.metadata["type"] == "$streamDeleted" else len(there),
                position=position,
                event_id=event.id.string,
                type=event.metadata["type"],
                content_type=event.metadata["content-type"],
                data=event.data,
                metadata=event.custom_metadata,
                created=time.time_ns() // 100,
            )
            there.append(record)
            self.records.append(record)
        return there[-1]

    def append_system(self, stream: str, type_: str, data: bytes) -> Record:
        return self.append(
            stream,
            [
                streams_pb2.BatchAppendReq.ProposedMessage(
                    id=shared_pb2.UUID(string=str(uuid4())),
                    metadata={"type": type_, "content-type": "application/json"},
                    data=data,
                )
            ],
        )

    def head(self, stream: str) -> int:
        there = self.streams.get(stream)
        return there[-1].revision if there else _NO_STREAM

    def truncated_before(self, stream: str) -> int:
        described = self.streams.get(f"$${stream}")
        return int(json.loads(described[-1].data).get("$tb", 0)) if described else 0

    def describe(self, stream: str, metadata: Mapping[str, int]) -> Record:
        return self.append_system(f"$${stream}", "$metadata", json.dumps(metadata).encode())


class KurrentDbStandIn:
    """A server on ``port`` (0: any), in the running event loop. ``tls``: private key and certificate, PEM."""

    def __init__(
        self,
        *,
        port: int = 0,
        users: Mapping[str, str] | None = None,
        tls: tuple[bytes, bytes] | None = None,
    ) -> None:
        self.port = port
        self.log = Log()
        self.faults = Faults()
        self.appends = 0
        """Append calls received, refused ones included."""
        self.subscriptions = 0
        """Open now."""
        self._allowed = {
            "Basic " + base64.b64encode(f"{user}:{word}".encode()).decode()
            for user, word in (users or {}).items()
        }
        self._tls = tls
        self._server: grpc.aio.Server | None = None
        self._wakes: set[asyncio.Event] = set()
        self._broken: tuple[grpc.StatusCode, str] | None = None
        self._generation = 0
        self._stopping = asyncio.Event()

    @property
    def uri(self) -> str:
        return f"esdb://127.0.0.1:{self.port}?tls=false"

    async def start(self) -> None:
        self._stopping = asyncio.Event()
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
            ]
        )
        streams_pb2_grpc.add_StreamsServicer_to_server(_Streams(self), self._server)  # type: ignore[no-untyped-call]
        gossip_pb2_grpc.add_GossipServicer_to_server(_Gossip(self), self._server)  # type: ignore[no-untyped-call]
        address = f"127.0.0.1:{self.port}"
        if self._tls is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, grpc.ssl_server_credentials([self._tls]))
        await self._server.start()

    async def stop(self) -> None:
        """Break all calls; what was stored stays."""
        if self._server is not None:
            server, self._server = self._server, None
            self._stopping.set()
            self.drop_subscriptions()
            await server.stop(
                grace=0.5
            )  # handlers end by themselves; one that is cancelled is logged by grpc

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def drop_subscriptions(
        self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, details: str = "dropped"
    ) -> None:
        self._broken = code, details
        self._generation += 1
        self.wake()

    def end_subscriptions(self) -> None:
        """End them without an error, as a node does that shuts down."""
        self._broken = None
        self._generation += 1
        self.wake()

    def consumer_too_slow(self) -> None:
        self.drop_subscriptions(grpc.StatusCode.ABORTED, "Consumer too slow to handle event while live.")

    def wake(self) -> None:
        for wake in self._wakes:
            wake.set()

    async def admit(self, context: grpc.aio.ServicerContext) -> None:
        """What stands before every call."""
        if self.faults.hang:
            await self._stopping.wait()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Server Is Stopping")
        if self.faults.unavailable > 0:
            self.faults.unavailable -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Server Is Not Ready")
        given = dict(context.invocation_metadata() or ()).get("authorization")
        if self.faults.unauthenticated or (self._allowed and given not in self._allowed):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "authentication failed")

    async def send_to_leader(self, context: grpc.aio.ServicerContext) -> None:
        if self.faults.leader is not None:
            host, port = self.faults.leader
            context.set_trailing_metadata(
                (("leader-endpoint-host", host), ("leader-endpoint-port", str(port)))
            )
            await context.abort(grpc.StatusCode.NOT_FOUND, "Leader info available")

    async def subscription(
        self, after: int, matches: Callable[[Record], bool], interval: int, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[_Resp]:
        generation, wake = self._generation, asyncio.Event()
        self._wakes.add(wake)
        self.subscriptions += 1
        try:
            yield _Resp(confirmation=_Resp.SubscriptionConfirmation(subscription_id=str(uuid4())))
            index = bisect_right(self.log.records, after, key=lambda record: record.position)
            looked_at, live = 0, False
            while generation == self._generation:
                wake.clear()
                while index < len(self.log.records) and generation == self._generation:
                    record = self.log.records[index]
                    index += 1
                    looked_at += 1
                    if matches(record):
                        yield _event(record)
                    if looked_at % interval == 0:
                        yield _Resp(
                            checkpoint=_Resp.Checkpoint(
                                commit_position=record.position, prepare_position=record.position
                            )
                        )
                if not live and generation == self._generation:
                    yield _Resp(caught_up=_Resp.CaughtUp())
                    live = True
                await wake.wait()
            if self._broken is not None:
                await context.abort(*self._broken)
        finally:
            self.subscriptions -= 1
            self._wakes.discard(wake)


class _Gossip(gossip_pb2_grpc.GossipServicer):
    def __init__(self, node: KurrentDbStandIn) -> None:
        self._node = node

    async def Read(  # noqa: N802 - the protocol's name
        self, _: shared_pb2.Empty, context: grpc.aio.ServicerContext
    ) -> gossip_pb2.ClusterInfo:
        await self._node.admit(context)
        return gossip_pb2.ClusterInfo(
            members=[
                gossip_pb2.MemberInfo(
                    instance_id=shared_pb2.UUID(string=str(uuid4())),
                    state=gossip_pb2.MemberInfo.VNodeState.Leader,
                    is_alive=True,
                    http_end_point=gossip_pb2.EndPoint(address="127.0.0.1", port=self._node.port),
                )
            ]
        )


class _Streams(streams_pb2_grpc.StreamsServicer):
    def __init__(self, node: KurrentDbStandIn) -> None:
        self._node = node

    async def BatchAppend(  # noqa: N802 - the protocol's name
        self, requests: AsyncIterator[streams_pb2.BatchAppendReq], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[streams_pb2.BatchAppendResp]:
        self._node.appends += 1
        await self._node.admit(context)
        await self._node.send_to_leader(context)
        # The client sends each append whole, as one final request.
        async for request in requests:
            response = self._append(request)
            if self._node.faults.lose_replies > 0:
                self._node.faults.lose_replies -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            yield response

    def _append(self, request: streams_pb2.BatchAppendReq) -> streams_pb2.BatchAppendResp:
        log, options = self._node.log, request.options
        stream = options.stream_identifier.stream_name.decode()
        head = log.head(stream)
        if head == TOMBSTONE:
            return _refusal(request, shared_pb2.StreamDeleted(stream_identifier=options.stream_identifier))
        expected = {
            "stream_position": options.stream_position,
            "no_stream": _NO_STREAM,
            "any": _ANY,
            "stream_exists": _EXISTS,
        }[options.WhichOneof("expected_stream_position") or "any"]
        again = [] if expected < _NO_STREAM else log.streams.get(stream, [])[expected + 1 :]
        revived = log.truncated_before(stream) == TOMBSTONE and expected == _NO_STREAM
        ids = [event.id.string for event in request.proposed_messages]
        if [record.event_id for record in again[: len(ids)]] == ids and not self._node.faults.forget_ids:
            last = again[len(ids) - 1]
        elif expected in {_ANY, head} or revived or (expected == _EXISTS and head != _NO_STREAM):
            if log.truncated_before(stream) == TOMBSTONE:
                log.describe(stream, {"$tb": head + 1})
            last = log.append(stream, request.proposed_messages)
            self._node.wake()
        else:
            conflict = shared_pb2.WrongExpectedVersion()
            if head == _NO_STREAM:
                conflict.current_no_stream.SetInParent()
            else:
                conflict.current_stream_revision = head
            return _refusal(request, conflict)
        return streams_pb2.BatchAppendResp(
            correlation_id=request.correlation_id,
            stream_identifier=options.stream_identifier,
            success=streams_pb2.BatchAppendResp.Success(
                current_revision=last.revision,
                position=shared_pb2.AllStreamPosition(
                    commit_position=last.position, prepare_position=last.position
                ),
            ),
        )

    async def Read(  # noqa: N802 - the protocol's name
        self, request: streams_pb2.ReadReq, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[_Resp]:
        await self._node.admit(context)
        options = request.options
        if options.WhichOneof("stream_option") == "stream":
            async for response in self._read_stream(options, context):
                yield response
            return
        matches, interval = _matcher(options)
        if options.WhichOneof("count_option") == "subscription":
            after = {"position": options.all.position.commit_position, "start": -1, "end": TOMBSTONE}
            async with contextlib.aclosing(
                self._node.subscription(  # type: ignore[type-var]  # an async generator, by its body
                    after[options.all.WhichOneof("all_option") or "start"], matches, interval, context
                )
            ) as responses:
                async for response in responses:
                    yield response
            return
        for record in _taken(options, filter(matches, _directed(options, self._node.log.records))):
            yield _event(record)

    async def _read_stream(
        self, options: streams_pb2.ReadReq.Options, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[_Resp]:
        stream = options.stream.stream_identifier.stream_name.decode()
        log = self._node.log
        if log.head(stream) == TOMBSTONE:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"Event stream '{stream}' is deleted.")
        first = log.truncated_before(stream)
        if log.head(stream) == _NO_STREAM or first == TOMBSTONE:
            not_found = _Resp.StreamNotFound(stream_identifier=options.stream.stream_identifier)
            yield _Resp(stream_not_found=not_found)
            return
        kept = _directed(options, log.streams[stream][first:])
        if options.stream.WhichOneof("revision_option") == "revision":
            start = options.stream.revision
            backwards = options.read_direction == streams_pb2.ReadReq.Options.Backwards
            kept = [r for r in kept if (r.revision <= start if backwards else r.revision >= start)]
        for record in _taken(options, kept):
            yield _event(record)

    async def Delete(  # noqa: N802 - the protocol's name
        self, request: streams_pb2.DeleteReq, context: grpc.aio.ServicerContext
    ) -> streams_pb2.DeleteResp:
        stream = await self._deletable(request, context)
        last = self._node.log.describe(stream, {"$tb": TOMBSTONE})
        self._node.wake()
        return streams_pb2.DeleteResp(
            position=streams_pb2.DeleteResp.Position(
                commit_position=last.position, prepare_position=last.position
            )
        )

    async def Tombstone(  # noqa: N802 - the protocol's name
        self, request: streams_pb2.TombstoneReq, context: grpc.aio.ServicerContext
    ) -> streams_pb2.TombstoneResp:
        stream = await self._deletable(request, context)
        last = self._node.log.append_system(stream, "$streamDeleted", b"")
        self._node.wake()
        return streams_pb2.TombstoneResp(
            position=streams_pb2.TombstoneResp.Position(
                commit_position=last.position, prepare_position=last.position
            )
        )

    async def _deletable(
        self, request: streams_pb2.DeleteReq | streams_pb2.TombstoneReq, context: grpc.aio.ServicerContext
    ) -> str:
        await self._node.admit(context)
        await self._node.send_to_leader(context)
        options = request.options
        stream = options.stream_identifier.stream_name.decode()
        head = self._node.log.head(stream)
        if head == TOMBSTONE:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"Event stream '{stream}' is deleted.")
        expected = {
            "revision": options.revision,
            "no_stream": _NO_STREAM,
            "any": _ANY,
            "stream_exists": _EXISTS,
        }[options.WhichOneof("expected_stream_revision") or "any"]
        if expected not in {_ANY, head} and not (expected == _EXISTS and head != _NO_STREAM):
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "Append failed due to WrongExpectedVersion. "
                f"Stream: {stream}, Expected version: {expected}, Actual version: {head}",
            )
        return stream


def _refusal(request: streams_pb2.BatchAppendReq, reason: Message) -> streams_pb2.BatchAppendResp:
    """Errors of an append come in-band, as a status with one packed detail."""
    details = PackedAny()
    details.Pack(reason)
    return streams_pb2.BatchAppendResp(
        correlation_id=request.correlation_id,
        stream_identifier=request.options.stream_identifier,
        error=status_pb2.Status(message=type(reason).__name__, details=details),
    )


def _matcher(options: streams_pb2.ReadReq.Options) -> tuple[Callable[[Record], bool], int]:
    """The filter, and the number of events looked at between two checkpoints."""
    which = options.filter.WhichOneof("filter")
    if which is None:
        return lambda _: True, 10_000
    by_stream = which == "stream_identifier"
    expression = options.filter.stream_identifier if by_stream else options.filter.event_type
    prefixes, pattern = tuple(expression.prefix), re.compile(expression.regex)

    def matches(record: Record) -> bool:
        name = record.stream if by_stream else record.type
        return name.startswith(prefixes) if prefixes else pattern.search(name) is not None

    return matches, max(1, options.filter.max * options.filter.checkpointIntervalMultiplier)


def _directed(options: streams_pb2.ReadReq.Options, records: list[Record]) -> list[Record]:
    return records[::-1] if options.read_direction == streams_pb2.ReadReq.Options.Backwards else records[:]


def _taken(options: streams_pb2.ReadReq.Options, records: Iterable[Record]) -> Iterator[Record]:
    return (record for _, record in zip(range(options.count), records, strict=False))


def _event(record: Record) -> _Resp:
    return _Resp(
        event=_Resp.ReadEvent(
            event=_Resp.ReadEvent.RecordedEvent(
                id=shared_pb2.UUID(string=record.event_id),
                stream_identifier=shared_pb2.StreamIdentifier(stream_name=record.stream.encode()),
                stream_revision=record.revision,
                prepare_position=record.position,
                commit_position=record.position,
                metadata={
                    "type": record.type,
                    "content-type": record.content_type,
                    "created": str(record.created),
                },
                custom_metadata=record.metadata,
                data=record.data,
            ),
            commit_position=record.position,
        )
    )


async def serve(port: int, users: Mapping[str, str], tls: tuple[bytes, bytes] | None) -> None:
    node, done = KurrentDbStandIn(port=port, users=users, tls=tls), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)
    await node.start()
    try:
        await done.wait()
    finally:
        await node.stop()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--user", nargs=2, action="append", metavar=("NAME", "PASSWORD"))
    arguments.add_argument("--tls", nargs=2, type=Path, metavar=("KEY", "CERTIFICATE"))
    given = arguments.parse_args()
    files = (given.tls[0].read_bytes(), given.tls[1].read_bytes()) if given.tls else None
    asyncio.run(serve(given.port, dict(given.user or {}), files))
