"""Composition of the relay role: owns the relay's stream, the checkpoint of what was published; follows the store."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from uuid import uuid4

from cml_contracts.topology import EVENTS_EXCHANGE
from cml_workers.bus.topology import TRIGGERS_EXCHANGE
from cml_workers.bus.usage import Usage
from cml_workers.eventstore.following import Following, follow_from
from cml_workers.eventstore.names import WORKER_STREAMS
from cml_workers.relay.checkpoint import RelayCheckpoint
from cml_workers.relay.relay import Relay
from cml_workers.runtime.endpoints import database_options
from cml_workers.runtime.role import (
    Infrastructure,
    Part,
    Replicas,
    Role,
    Running,
    background,
    not_following,
    utc_now,
)
from cml_workers.sql.earlier import EarlierCheckpoint


@asynccontextmanager
async def relay(given: Infrastructure) -> AsyncIterator[Running]:
    """Run the role until the context ends. Raises BusUnavailableError, TopologyError."""
    checkpoint = RelayCheckpoint(
        given.store,
        new_id=uuid4,
        begins=given.settings.relay_begin,
        earlier=EarlierCheckpoint(database_options(given.settings)),
    )
    bus = given.bus(RELAY)
    publishing = Relay(
        store=given.store,
        waiting=checkpoint.waiting,
        publish=bus.publish,
        routed=bus.routed,
        load=checkpoint.load,
        save=checkpoint.save,
        end=given.store.end,
        source=f"/cml-workers/{given.settings.deployment}",
        now=utc_now,
    )

    following, of_triggers, outages = Following(), Following(), given.outages(Part.STORE)

    async def follow() -> None:
        await follow_from(
            given.store,
            publishing.begin,
            publishing.handle,
            prefix=WORKER_STREAMS,
            following=following,
            outages=outages,
        )

    async def follow_newest() -> None:
        triggers = publishing.triggers
        await follow_from(
            given.store,
            triggers.newest,
            triggers.handle_newest,
            prefix=WORKER_STREAMS,
            whole=False,
            following=of_triggers,
            outages=outages,
        )

    followed = [partial(not_following, each) for each in (following, of_triggers)]
    async with bus:
        try:
            async with (
                background(follow_newest, "triggers") as newest,
                background(follow, "relay") as task,
                background(publishing.keep_saving, "the relay's checkpoint") as saving,
            ):
                yield Running(
                    RELAY.name,
                    (bus.problem, checkpoint.problem, publishing.problem, *followed),
                    (task, saving, newest),
                    (following,),
                    counts=lambda: {
                        **publishing.counts(),
                        **publishing.held.counts(),
                        "checkpoints_unusable": int(checkpoint.problem() is not None),
                    },
                    warnings=(publishing.subscribers.warning, publishing.held.warning),
                )
        finally:
            await publishing.end()
            if outages.under_way() is None:
                with suppress(ConnectionError):  # what is not saved is published again
                    await publishing.save()


RELAY = Role(
    name="relay",
    does="Publishes every event, to subscribers and as a trigger.",
    compose=relay,
    needs=(Part.BUS, Part.STORE),
    uses=Usage(publishes=(EVENTS_EXCHANGE, TRIGGERS_EXCHANGE)),
    replicas=Replicas.ONE,
    secrets=(Part.DATABASE,),
)
