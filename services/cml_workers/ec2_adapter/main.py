"""Composition of the EC2 adapter role: owns AWS; takes triggers and lookup requests, acts, reports."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

from cml_workers.bus.port import BusUnavailableError, UnroutableError
from cml_workers.bus.topology import EC2_LOOKUPS, EC2_TRIGGERS, INTERNAL_EXCHANGE
from cml_workers.bus.usage import Usage
from cml_workers.domain.messages import REPORTS, OperationOutstanding, Reminder
from cml_workers.ec2_adapter.aws import AwsEc2Client
from cml_workers.ec2_adapter.executor import Executor
from cml_workers.ec2_adapter.limits import AWS_LIMITS
from cml_workers.ec2_adapter.timeouts import fresh_for, longest_call
from cml_workers.runtime.role import Infrastructure, Part, Replicas, Role, Running, utc_now


@asynccontextmanager
async def ec2_adapter(given: Infrastructure) -> AsyncIterator[Running]:
    """Run the role until the context ends. Raises BusUnavailableError, TopologyError, ConfigurationError."""
    settings = given.settings
    bus = given.bus(EC2_ADAPTER)
    prefetch = 2 * settings.prefetch  # a region takes half of them, the next one half of what is left
    grace = timedelta(seconds=settings.visibility_grace_seconds)
    call = longest_call(settings.ec2_call_seconds, heartbeat=bus.heartbeat, grace=grace)
    async with AwsEc2Client(
        endpoint_url=given.ec2_endpoint,
        image_owners=given.settings.image_owners,
        newest_image=given.settings.newest_image,
        call_seconds=call.total_seconds(),
    ) as ec2:
        executor = Executor(
            store=given.store,
            ec2=ec2,
            publish=bus.publish,
            now=utc_now,
            random=random.random,
            limits=AWS_LIMITS if given.ec2_endpoint is None else None,
            visibility_grace=grace,
            authentication_grace=timedelta(seconds=settings.authentication_grace_seconds),
            fresh=fresh_for(bus.heartbeat),
            places=prefetch,
            outages=given.outages(Part.STORE),
        )
        bus.consume(EC2_TRIGGERS, executor.on_trigger, prefetch=prefetch, outages=given.outages(Part.STORE))
        bus.watch_consumer(EC2_TRIGGERS, lost=executor.disconnected, back=executor.connected)
        bus.consume(EC2_LOOKUPS, executor.on_lookup, prefetch=prefetch)
        try:
            async with bus:
                await executor.announce()
                try:
                    yield Running(EC2_ADAPTER.name, (bus.problem,), (bus.consuming,))
                finally:  # a signal ends it by a cancellation
                    with suppress(BusUnavailableError, UnroutableError):  # reminders make up for it
                        await executor.hand_over()
        finally:
            await executor.close()


EC2_ADAPTER = Role(
    name="ec2-adapter",
    does="Performs the pending operations at EC2, watches instances, reports.",
    compose=ec2_adapter,
    needs=(Part.BUS, Part.STORE, Part.EC2),
    uses=Usage(
        consumes=(EC2_TRIGGERS, EC2_LOOKUPS),
        publishes=(INTERNAL_EXCHANGE,),
        internal=(*(each for each in REPORTS if each != OperationOutstanding.TYPE), Reminder.TYPE),
    ),
    replicas=Replicas.STANDBY,
    secrets=("CML_REDRIVE_KEYS",),
)
