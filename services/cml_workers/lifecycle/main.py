"""Composition of the lifecycle role: owns the worker streams; takes commands and reports, appends, replies."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from cml_workers.bus.topology import INTERNAL_EXCHANGE, LIFECYCLE_COMMANDS, LIFECYCLE_REPORTS
from cml_workers.bus.usage import Usage
from cml_workers.domain.messages import LookupRequested
from cml_workers.eventstore.relay_stream import ensure_begun
from cml_workers.lifecycle.handler import Lifecycle
from cml_workers.runtime.role import Infrastructure, Part, Replicas, Role, Running, utc_now

COMMANDS_OF_A_SENDER = 4
"""At once, of each sender's own queue."""


@asynccontextmanager
async def lifecycle(given: Infrastructure) -> AsyncIterator[Running]:
    """Run the role until the context ends. Raises BusUnavailableError, TopologyError, StoreUnavailableError, NotBegunError.

    Before the first event of any worker the relay's stream begins: see ``eventstore.relay_stream``.
    """
    await ensure_begun(given.store, uuid4)
    bus = given.bus(LIFECYCLE)
    handler = Lifecycle(
        store=given.store,
        publish=bus.publish,
        policy=given.settings.policy,
        access=given.settings.access,
        now=utc_now,
        new_id=uuid4,
    )
    outages, prefetch = given.outages(Part.STORE), given.settings.prefetch
    bus.consume(
        LIFECYCLE_COMMANDS,
        handler.on_command,
        prefetch=prefetch,
        of_sender=COMMANDS_OF_A_SENDER,
        outages=outages,
    )
    bus.consume(LIFECYCLE_REPORTS, handler.on_report, prefetch=prefetch, outages=outages)
    async with bus:
        yield Running(
            LIFECYCLE.name, (bus.problem,), (bus.consuming,), counts=bus.counts, warnings=(bus.warning,)
        )


LIFECYCLE = Role(
    name="lifecycle",
    does="Takes commands and reports, appends events, replies.",
    compose=lifecycle,
    needs=(Part.BUS, Part.STORE),
    uses=Usage(
        consumes=(LIFECYCLE_COMMANDS, LIFECYCLE_REPORTS),
        publishes=(INTERNAL_EXCHANGE,),
        internal=(LookupRequested.TYPE,),
    ),
    replicas=Replicas.MANY,
    secrets=("CML_ACTOR_TOKEN_KEYS", "CML_REDRIVE_KEYS"),
)
