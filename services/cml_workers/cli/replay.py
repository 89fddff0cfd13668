"""``cml-workers replay``: events of the event store, again, for the one queue of a subscriber that lacks them."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated
from uuid import UUID

import typer

from cml_workers.bus.port import NotTakenError, UnroutableError
from cml_workers.cli.deadletters import moment
from cml_workers.cli.queries import known_pattern, matches
from cml_workers.cli.terminal import NOT_DONE, USAGE, client_settings, err, fail, out, run_to_end
from cml_workers.domain.history import described
from cml_workers.eventstore.names import WORKER_STREAMS, is_workers, stream_of
from cml_workers.eventstore.port import CaughtUp, EventStore, StoredEvent
from cml_workers.runtime.endpoints import amqp_url, existing_event_store_uri
from cml_workers.runtime.settings import Settings


def replay(
    queue: Annotated[str, typer.Argument(help="The subscriber's queue; no other gets anything.")],
    since: Annotated[
        str | None,
        typer.Option(help="Only events since: 2026-01-31, 2026-01-31T12:00Z, or 90m, 12h, 7d ago."),
    ] = None,
    worker: Annotated[str | None, typer.Option(help="Only of the worker with this id.")] = None,
    pattern: Annotated[
        str, typer.Option(help="Topic pattern of event types, e.g. 'cml.worker.#'.")
    ] = "cml.#",
) -> None:
    """Publish events of the event store again, in their order, into one subscriber's queue.

    For events that were given up for it. Those that cannot be published, and those of other applications, are left out. They are the same events with the same ids, behind what is in the queue. The user of RABBITMQ_URL needs
    the right to write to the default exchange (amq.default).
    """
    known_pattern(pattern)
    try:
        prefix = WORKER_STREAMS if worker is None else stream_of(UUID(worker))
    except ValueError:
        fail(f"--worker is the id of a worker, not {worker!r}", USAGE)
    first = moment(since) if since else None
    settings = client_settings()

    def wanted(event: StoredEvent) -> bool:
        return (first is None or event.recorded_at >= first) and matches(pattern, event.type)

    replayed = run_to_end(_replayed(settings, queue, prefix, wanted))
    out.print(f"{replayed} events are in {queue}", highlight=False)


async def _replayed(
    settings: Settings, queue: str, prefix: str, wanted: Callable[[StoredEvent], bool]
) -> int:
    from cml_workers.bus.rabbit import RabbitBus  # noqa: PLC0415 - slow to load, of no use to a client
    from cml_workers.bus.usage import Usage  # noqa: PLC0415 - likewise
    from cml_workers.eventstore.opening import open_event_store  # noqa: PLC0415 - likewise
    from cml_workers.relay.relay import event_message  # noqa: PLC0415 - likewise

    replayed = 0
    store = open_event_store(existing_event_store_uri(settings))
    try:
        async with RabbitBus(
            amqp_url(settings), name="cml-workers-replay", uses=Usage(), declare=False
        ) as bus:
            async for event in _stored(store, prefix):
                if not wanted(event) or not is_workers(event.stream):
                    continue
                try:
                    message = event_message(f"/cml-workers/{settings.deployment}", event)
                except Exception as error:  # noqa: BLE001 - whatever it is, the others can be published
                    where = f"{event.stream}@{event.revision}"
                    err.print(
                        f"{where} cannot be published: {described(error)}", soft_wrap=True, markup=False
                    )
                else:
                    await bus.publish(replace(message, exchange=None, routing_key=queue, mandatory=True))
                    replayed += 1
    except UnroutableError:
        fail(f"there is no queue {queue!r}", NOT_DONE)
    except NotTakenError:
        fail(f"{queue} does not take more: {replayed} events are in it", NOT_DONE)
    finally:
        await store.close()
    return replayed


async def _stored(store: EventStore, prefix: str) -> AsyncIterator[StoredEvent]:
    """The events that there are now."""
    async with aclosing(store.follow(after=None, prefix=prefix)) as items:
        async for item in items:
            if isinstance(item, CaughtUp):
                return
            if isinstance(item, StoredEvent):
                yield item
