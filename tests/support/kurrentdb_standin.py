"""A stand-in for a KurrentDB server: the gRPC calls our client makes, kept in memory, with faults to order.

It speaks the protocol of kurrentdbclient's own ``Servicer`` bases. Not here: persistent subscriptions,
projections, links, ``$maxAge``, size limits. One node is alone and leads; ``kurrentdb_cluster`` has several. Users and
access lists: ``kurrentdb_rights``, where they are set.

As a process of its own, until SIGTERM: ``PYTHONPATH=tests python -m support.kurrentdb_standin --port N``
"""

import argparse
import asyncio
import base64
import signal
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import grpc  # type: ignore[import-untyped]  # it ships no types
import grpc.aio  # type: ignore[import-untyped]
from kurrentdbclient.protos.v1 import (
    gossip_pb2,
    gossip_pb2_grpc,
    streams_pb2_grpc,
)

from support.kurrentdb_calls import Gossip, Streams, host_of
from support.kurrentdb_log import Log, ReadResponse, Record, read_event
from support.kurrentdb_rights import Rights

LEADER, FOLLOWER = gossip_pb2.MemberInfo.VNodeState.Leader, gossip_pb2.MemberInfo.VNodeState.Follower


class Member(NamedTuple):
    """A node of a cluster, as another one knows it."""

    port: int
    """At the host by which who asks came."""
    state: gossip_pb2.MemberInfo.VNodeState.ValueType = LEADER
    is_alive: bool = True


@dataclass(slots=True)
class Faults:
    """What goes wrong, from now on; counts go down with each call they hit."""

    lose_replies: int = 0
    """Commit the append, then break the connection's call instead of answering."""
    time_out: int = 0
    """Answer the append with a time-out, whatever became of it."""
    unavailable: int = 0
    """Fail the call, whatever it is."""
    hang: bool = False
    """Take calls and never answer."""
    unauthenticated: bool = False
    leader: int | None = None
    """Send appends, and reads that are to be the leader's, away to the one at this port."""
    forget_ids: bool = False
    """Answer a repeated append with a conflict."""
    commit_seconds: float = 0.001
    """How long an append takes; it is committed though its caller has gone."""
    hold_seconds: float = 2.0
    """After which a repetition of an append that is under way is answered with a time-out."""
    leave_out: frozenset[tuple[str, int]] = frozenset()
    """Events, by stream and revision, that subscriptions do not deliver."""


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
        self.members: Callable[[], Sequence[Member]] = lambda: [Member(self.port)]
        """What it answers to who asks about the cluster."""
        self.rights: Rights | None = None
        """Who may do what; None: everybody may do everything."""
        self.appends = 0
        """Append calls received, failed ones included."""
        self.subscriptions = 0
        """Open now."""
        self.appending: set[asyncio.Task[object]] = set()
        self.ids_under_way: set[str] = set()
        self._allowed = {
            "Basic " + base64.b64encode(f"{user}:{word}".encode()).decode()
            for user, word in (users or {}).items()
        }
        self._tls = tls
        self._server: grpc.aio.Server | None = None
        self._followers: set[asyncio.Event] = set()
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
        streams_pb2_grpc.add_StreamsServicer_to_server(Streams(self), self._server)  # type: ignore[no-untyped-call]
        gossip_pb2_grpc.add_GossipServicer_to_server(Gossip(self), self._server)  # type: ignore[no-untyped-call]
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
            for task in self.appending:
                task.cancel()
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
        self.notify()

    def end_subscriptions(self) -> None:
        """End them without an error, as a node does that shuts down."""
        self._broken = None
        self._generation += 1
        self.notify()

    def consumer_too_slow(self) -> None:
        self.drop_subscriptions(grpc.StatusCode.ABORTED, "Consumer too slow to handle event while live.")

    def notify(self) -> None:
        for news in self._followers:
            news.set()

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

        if self.rights is not None and self.rights.user(given) is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "authentication failed")

    def lets(self, context: grpc.aio.ServicerContext, right: str, stream: str) -> bool:
        """Whether the caller, who was admitted, may do this."""
        if self.rights is None:
            return True
        name = self.rights.user(dict(context.invocation_metadata() or ()).get("authorization"))
        return name is not None and self.rights.may(name, right, stream)

    async def check(self, context: grpc.aio.ServicerContext, right: str, stream: str) -> None:
        """End the call of who may not do this."""
        if not self.lets(context, right, stream):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "Access Denied")

    async def send_to_leader(self, context: grpc.aio.ServicerContext) -> None:
        if self.faults.leader is not None:
            context.set_trailing_metadata(
                (
                    ("leader-endpoint-host", host_of(context)),
                    ("leader-endpoint-port", str(self.faults.leader)),
                )
            )
            await context.abort(grpc.StatusCode.NOT_FOUND, "Leader info available")

    def share(self, other: "KurrentDbStandIn") -> None:
        """Have the same log, and deliver what comes into it by whichever of the two."""
        self.log, self._followers = other.log, other._followers

    async def subscription(
        self, after: int, matches: Callable[[Record], bool], interval: int, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[ReadResponse]:
        generation, news = self._generation, asyncio.Event()
        self._followers.add(news)
        self.subscriptions += 1
        try:
            yield ReadResponse(
                confirmation=ReadResponse.SubscriptionConfirmation(subscription_id=str(uuid4()))
            )
            index = bisect_right(self.log.records, after, key=lambda record: record.position)
            if after >= 0 and (index == 0 or self.log.records[index - 1].position != after):
                index += 1  # as EventStoreDB 23.10 does, where the record at the position was scavenged away
            looked_at, live = 0, False
            while generation == self._generation:
                news.clear()
                while index < len(self.log.records) and generation == self._generation:
                    record = self.log.records[index]
                    index += 1
                    looked_at += 1
                    if matches(record) and (record.stream, record.revision) not in self.faults.leave_out:
                        yield read_event(record)
                    if looked_at % interval == 0:
                        yield ReadResponse(
                            checkpoint=ReadResponse.Checkpoint(
                                commit_position=record.position, prepare_position=record.position
                            )
                        )
                if not live and generation == self._generation:
                    yield ReadResponse(caught_up=ReadResponse.CaughtUp())
                    live = True
                await news.wait()
            if self._broken is not None:
                await context.abort(*self._broken)
        finally:
            self.subscriptions -= 1
            self._followers.discard(news)


async def serve(
    port: int, users: Mapping[str, str], tls: tuple[bytes, bytes] | None, file: Path | None
) -> None:
    node, done = KurrentDbStandIn(port=port, users=users, tls=tls), asyncio.Event()
    if file is not None:
        node.log.keep_in(file)
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
    arguments.add_argument("--file", type=Path, help="keeps what is stored when the process is killed")
    arguments.add_argument("--tls", nargs=2, type=Path, metavar=("KEY", "CERTIFICATE"))
    given = arguments.parse_args()
    files = (given.tls[0].read_bytes(), given.tls[1].read_bytes()) if given.tls else None
    asyncio.run(serve(given.port, dict(given.user or {}), files, given.file))
