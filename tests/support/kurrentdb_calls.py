"""The gRPC calls of the KurrentDB stand-in, as kurrentdbclient makes them."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING
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

from support.kurrentdb_log import ANY, EXISTS, NO_STREAM, TOMBSTONE, ReadResponse, Record, read_event
from support.kurrentdb_rights import ALL, DELETE, READ, WRITE

if TYPE_CHECKING:
    from support.kurrentdb_standin import KurrentDbStandIn


def host_of(context: grpc.aio.ServicerContext) -> str:
    """Where this client finds the nodes: at the address that it comes from, as each network before them has one."""
    return context.peer().removeprefix("ipv4:").rpartition(":")[0]  # type: ignore[no-any-return]


class Gossip(gossip_pb2_grpc.GossipServicer):
    def __init__(self, node: "KurrentDbStandIn") -> None:
        self._node = node

    async def Read(  # noqa: N802 - the protocol's name
        self, _: shared_pb2.Empty, context: grpc.aio.ServicerContext
    ) -> gossip_pb2.ClusterInfo:
        await self._node.admit(context)
        host = host_of(context)
        return gossip_pb2.ClusterInfo(
            members=[
                gossip_pb2.MemberInfo(
                    instance_id=shared_pb2.UUID(string=str(uuid4())),
                    state=each.state,
                    is_alive=each.is_alive,
                    http_end_point=gossip_pb2.EndPoint(address=host, port=each.port),
                )
                for each in self._node.members()
            ]
        )


class Streams(streams_pb2_grpc.StreamsServicer):
    def __init__(self, node: "KurrentDbStandIn") -> None:
        self._node = node

    async def BatchAppend(  # noqa: N802 - the protocol's name
        self, requests: AsyncIterator[streams_pb2.BatchAppendReq], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[streams_pb2.BatchAppendResp]:
        self._node.appends += 1
        await self._node.admit(context)
        await self._node.send_to_leader(context)
        # The client sends each append whole, as one final request.
        async for request in requests:
            stream = request.options.stream_identifier.stream_name.decode()
            if not self._node.lets(context, WRITE, stream):
                yield _error(request, shared_pb2.AccessDenied())
                continue
            ids = {event.id.string for event in request.proposed_messages}
            if ids & self._node.ids_under_way:  # as EventStoreDB 23.10 does
                await asyncio.sleep(self._node.faults.hold_seconds)
                yield _error(request, shared_pb2.Timeout())
                continue
            task = self._begun(request, ids)
            await asyncio.wait((task,))  # it goes on if the caller goes
            if task.cancelled():
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Server Is Stopping")
            response = task.result()
            if self._node.faults.lose_replies > 0:
                self._node.faults.lose_replies -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            if self._node.faults.time_out > 0:
                self._node.faults.time_out -= 1
                response = _error(request, shared_pb2.Timeout())
            yield response

    def _begun(
        self, request: streams_pb2.BatchAppendReq, ids: set[str]
    ) -> asyncio.Task[streams_pb2.BatchAppendResp]:
        seconds = self._node.faults.commit_seconds

        async def work() -> streams_pb2.BatchAppendResp:
            await asyncio.sleep(seconds)
            return self._append(request)

        def ended(task: asyncio.Task[streams_pb2.BatchAppendResp]) -> None:
            self._node.appending.discard(task)
            self._node.ids_under_way -= ids

        task = asyncio.create_task(work())
        self._node.appending.add(task)
        self._node.ids_under_way |= ids
        task.add_done_callback(ended)
        return task

    def _append(self, request: streams_pb2.BatchAppendReq) -> streams_pb2.BatchAppendResp:
        log, options = self._node.log, request.options
        stream = options.stream_identifier.stream_name.decode()
        head = log.head(stream)
        if head == TOMBSTONE:
            return _error(request, shared_pb2.StreamDeleted(stream_identifier=options.stream_identifier))
        expected = {
            "stream_position": options.stream_position,
            "no_stream": NO_STREAM,
            "any": ANY,
            "stream_exists": EXISTS,
        }[options.WhichOneof("expected_stream_position") or "any"]
        again = [] if expected < NO_STREAM else log.streams.get(stream, [])[expected + 1 :]
        revived = log.truncated_before(stream) == TOMBSTONE and expected == NO_STREAM
        ids = [event.id.string for event in request.proposed_messages]
        if [record.event_id for record in again[: len(ids)]] == ids and not self._node.faults.forget_ids:
            last = again[len(ids) - 1]
        elif expected in {ANY, head} or revived or (expected == EXISTS and head != NO_STREAM):
            if log.truncated_before(stream) == TOMBSTONE:
                log.describe(stream, {"$tb": head + 1})
            last = log.append(stream, request.proposed_messages)
            self._node.notify()
        else:
            conflict = shared_pb2.WrongExpectedVersion()
            if head == NO_STREAM:
                conflict.current_no_stream.SetInParent()
            else:
                conflict.current_stream_revision = head
            return _error(request, conflict)
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
    ) -> AsyncIterator[ReadResponse]:
        await self._node.admit(context)
        if dict(context.invocation_metadata() or ()).get("requires-leader") == "true":
            await self._node.send_to_leader(context)
        options = request.options
        if options.WhichOneof("stream_option") == "stream":
            async for response in self._read_stream(options, context):
                yield response
            return
        await self._node.check(context, READ, ALL)
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
        records = self._node.log.records
        if options.all.WhichOneof("all_option") == "position":
            place = options.all.position.commit_position
            backwards = options.read_direction == streams_pb2.ReadReq.Options.Backwards
            records = [r for r in records if (r.position < place if backwards else r.position >= place)]
        for record in _taken(options, filter(matches, _directed(options, records))):
            yield read_event(record)

    async def _read_stream(
        self, options: streams_pb2.ReadReq.Options, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[ReadResponse]:
        stream = options.stream.stream_identifier.stream_name.decode()
        await self._node.check(context, READ, stream)
        log = self._node.log
        if log.head(stream) == TOMBSTONE:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"Event stream '{stream}' is deleted.")
        first = log.truncated_before(stream)
        if log.head(stream) == NO_STREAM or first == TOMBSTONE:
            not_found = ReadResponse.StreamNotFound(stream_identifier=options.stream.stream_identifier)
            yield ReadResponse(stream_not_found=not_found)
            return
        kept = _directed(options, log.streams[stream][first:])
        if options.stream.WhichOneof("revision_option") == "revision":
            start = options.stream.revision
            backwards = options.read_direction == streams_pb2.ReadReq.Options.Backwards
            kept = [r for r in kept if (r.revision <= start if backwards else r.revision >= start)]
        for record in _taken(options, kept):
            yield read_event(record)

    async def Delete(  # noqa: N802 - the protocol's name
        self, request: streams_pb2.DeleteReq, context: grpc.aio.ServicerContext
    ) -> streams_pb2.DeleteResp:
        stream = await self._deletable(request, context)
        last = self._node.log.describe(stream, {"$tb": TOMBSTONE})
        self._node.notify()
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
        self._node.notify()
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
        await self._node.check(context, DELETE, stream)
        head = self._node.log.head(stream)
        if head == TOMBSTONE:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"Event stream '{stream}' is deleted.")
        expected = {
            "revision": options.revision,
            "no_stream": NO_STREAM,
            "any": ANY,
            "stream_exists": EXISTS,
        }[options.WhichOneof("expected_stream_revision") or "any"]
        if expected not in {ANY, head} and not (expected == EXISTS and head != NO_STREAM):
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "Append failed due to WrongExpectedVersion. "
                f"Stream: {stream}, Expected version: {expected}, Actual version: {head}",
            )
        return stream


def _error(request: streams_pb2.BatchAppendReq, reason: Message) -> streams_pb2.BatchAppendResp:
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
