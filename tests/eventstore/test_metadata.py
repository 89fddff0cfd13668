"""The metadata of events: what KurrentDB's tools find there, and that events of before are read."""

import json
from collections import defaultdict
from uuid import uuid4

from cml_workers.domain.history import EventMetadata
from cml_workers.domain.messages import OperationSucceeded
from cml_workers.eventstore.command_streams import stream_of_command
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.names import stream_of
from cml_workers.eventstore.port import NO_STREAM, NewEvent
from cml_workers.eventstore.worker_streams import decode, load, published
from support.given import NOW, created, instance
from support.service import CREATE, WORKER, Service


async def test_the_events_of_a_command_are_found_by_its_correlation_id(store: KurrentDbEventStore):
    """As the projection $by_correlation_id does, which looks at the metadata of all events."""
    service = Service(store)
    await service.command(CREATE, "create", correlation_id="thread of Jörg")
    found = defaultdict(list)
    stored = [
        *(await store.read(stream_of_command("create"))),
        *(await store.read(stream_of(WORKER))),
    ]
    for each in stored:
        metadata = json.loads(each.metadata)
        found[metadata["$correlationId"]].append(each.type)
        assert metadata["$causationId"] == "create"
    assert found == {
        "thread of Jörg": [
            "cml.command.claimed.v1",
            "cml.worker.created.v1",
            "cml.worker.launch_requested.v1",
        ]
    }


async def test_what_is_reported_is_found_by_the_command_and_names_the_report(store: KurrentDbEventStore):
    service = Service(store)
    await service.command(CREATE, "create", correlation_id="thread")
    succeeded = OperationSucceeded(worker_id=WORKER, operation_id="create", instance=instance())
    await service.report(succeeded, "report")
    metadata = json.loads((await store.read(stream_of(WORKER)))[-1].metadata)
    assert (metadata["$correlationId"], metadata["$causationId"]) == ("thread", "report")


async def test_an_event_of_before_is_read_and_published_as_one_of_now(store: KurrentDbEventStore):
    metadata = EventMetadata(
        event_id=uuid4(), time=NOW, command_id="c", correlation_id="thread", causation_id="c"
    )
    event = created()
    before = NewEvent(
        metadata.event_id,
        event.TYPE,
        event.model_dump_json(exclude_none=True).encode(),
        metadata.model_dump_json(exclude_none=True).encode(),
    )
    await store.append(stream_of(WORKER), [before], expected=NO_STREAM)
    assert (await load(store, WORKER)).exists
    (stored,) = await store.read(stream_of(WORKER))
    assert decode(stored).metadata == metadata
    envelope = published("/test", stored)
    assert (envelope.correlation_id, envelope.causation_id) == ("thread", "c")


async def test_a_version_of_before_reads_an_event_of_now(store: KurrentDbEventStore):
    """It takes correlation and cause from our own names, and knows no others."""
    service = Service(store)
    await service.command(CREATE, "create", correlation_id="thread")
    stored = (await store.read(stream_of(WORKER)))[0]
    known = {name: each for name, each in json.loads(stored.metadata).items() if not name.startswith("$")}
    assert EventMetadata.model_validate(known) == decode(stored).metadata
    assert decode(stored).metadata.correlation_id == "thread"
