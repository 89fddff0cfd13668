"""Which node of a cluster to talk to: all seeds are asked at once, and members that are dead do not count.

kurrentdbclient asks one seed after another, five seconds each, and takes a dead leader for one beside its successor.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence

import grpc  # type: ignore[import-untyped]  # it ships no types
from kurrentdbclient import AsyncKurrentDBClient
from kurrentdbclient.common import handle_rpc_error
from kurrentdbclient.connection import AsyncKurrentDBConnection
from kurrentdbclient.connection_spec import URI_SCHEMES_NON_DISCOVER, grpc_target
from kurrentdbclient.exceptions import DeadlineExceededError, DiscoveryFailedError, GrpcError
from kurrentdbclient.protos.v1 import gossip_pb2, shared_pb2

from cml_workers.foundation.tasks import ended

OTHERS_SECONDS = 0.1
"""How long the others may take after the first answer that names a node: one that was frozen still takes itself for the leader."""
BY_NAME = (("grpc.lb_policy_name", "round_robin"),)
"""Where one name stands for all nodes: any of its addresses that lets us in."""


class DiscoveringClient(AsyncKurrentDBClient):
    """kurrentdbclient, but for how it finds the node to talk to."""

    async def _discover_preferred_node(self) -> AsyncKurrentDBConnection:
        """Raises DiscoveryFailedError: no seed names one; KurrentDBClientError: a seed does not let us in."""
        options = self.connection_spec.options
        tries = options.max_discover_attempts
        while True:
            try:
                return self._construct_esdb_connection(await self._preferred_target())
            except DiscoveryFailedError:
                tries -= 1
                if tries <= 0:
                    raise
            await asyncio.sleep(options.discovery_interval / 1000)

    async def _preferred_target(self) -> str:
        """The address of the node that most seeds name."""
        spec = self.connection_spec
        options = () if spec.scheme in URI_SCHEMES_NON_DISCOVER else BY_NAME
        seeds = [self._construct_esdb_connection(each, options) for each in spec.targets]
        asked = [asyncio.create_task(self._named_by(each)) for each in seeds]
        try:
            left = set(asked)
            while left and not any(map(_answer, asked)):
                _, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            if left:
                await asyncio.wait(left, timeout=OTHERS_SECONDS)
            named = Counter(answer for each in asked if (answer := _answer(each)))
            if named:
                return named.most_common(1)[0][0]
            errors = [error for each in asked if (error := each.exception())]
        finally:
            for each in asked:
                await ended(each)
            for seed in seeds:
                await seed._grpc_channel.close()  # noqa: SLF001 - the library's own waits for calls that nobody awaits
        for error in errors:
            if not isinstance(error, GrpcError | DeadlineExceededError | DiscoveryFailedError):
                raise error
        raise DiscoveryFailedError(
            f"no node of {', '.join(spec.targets)} names the leader: {errors[-1]}"
        ) from errors[-1]

    async def _named_by(self, seed: AsyncKurrentDBConnection) -> str:
        gossip = seed.gossip
        try:
            # The library's own call does not say which members are alive.
            info = await gossip._stub.Read(  # noqa: SLF001
                shared_pb2.Empty(),
                timeout=self.connection_spec.options.gossip_timeout,
                metadata=gossip._metadata(self._call_metadata),  # noqa: SLF001
                credentials=self._call_credentials,
            )
        except grpc.RpcError as error:
            raise handle_rpc_error(error) from None
        members: Sequence[gossip_pb2.MemberInfo] = info.members
        alive = gossip_pb2.ClusterInfo(members=[each for each in members if each.is_alive])
        chosen = self._select_preferred_member(gossip._construct_cluster_members(alive))  # noqa: SLF001
        # A node that is alone may say that it is where it cannot be reached.
        return seed.grpc_target if len(members) == 1 else grpc_target(chosen.address, chosen.port)


def _answer(asked: asyncio.Task[str]) -> str | None:
    return asked.result() if asked.done() and not asked.exception() else None
