"""What is there before the first command: workers that were launched long ago, stored, published and shown."""

import json
from datetime import timedelta
from uuid import UUID

from cml_contracts.events import InstanceLaunched, LaunchRequested, WorkerCreated, WorkerEvent
from cml_contracts.instance import (
    CONSENT_TAG,
    DEPLOYMENT_TAG,
    WORKER_TAG,
    Ec2Instance,
    InstanceState,
    LaunchParameters,
)
from cml_workers.domain.creation import launch_token
from cml_workers.domain.history import EventMetadata
from cml_workers.eventstore.names import stream_of
from cml_workers.eventstore.port import NO_STREAM, NewEvent
from cml_workers.eventstore.relay_stream import RELAY_STREAM, SAVED
from cml_workers.eventstore.worker_streams import encode
from cml_workers.relay.relay import event_message
from simulation.fleet import POLICY, SOURCE, Fleet
from simulation.scripts import FOUND, IMAGE, REGION

LONG_AGO = timedelta(hours=1)


def found(fleet: Fleet) -> None:
    """An instance that somebody launched without us, and lets us import."""
    fleet.cloud.put(
        _instance(FOUND, InstanceState.RUNNING, {"Name": "found", CONSENT_TAG: POLICY.deployment})
    )


def worker(fleet: Fleet, worker_id: UUID, state: InstanceState) -> None:
    """A worker with its instance in that state, before any role has started."""
    number = len(fleet.log.workers)
    tags = {"Name": "lab", WORKER_TAG: str(worker_id), DEPLOYMENT_TAG: POLICY.deployment}
    token = launch_token(POLICY.deployment, worker_id, 1)
    instance = _instance(f"i-0{number:016x}", state, tags)
    fleet.cloud.put(instance)
    fleet.cloud.tokens_of[instance.instance_id] = token
    command_id = f"given-{number}"
    launch = LaunchParameters(
        aws_region=REGION, ami_id=IMAGE, instance_type="m5.large", tags=tags, generation=1, client_token=token
    )
    events: list[WorkerEvent] = [
        WorkerCreated(
            name="lab", aws_region=REGION, instance_type="m5.large", ami_id=IMAGE, created_by="ann"
        ),
        LaunchRequested(operation_id=command_id, launch=launch),
        InstanceLaunched(operation_id=command_id, instance=instance),
    ]
    fleet.log.append(stream_of(worker_id), [_stored(fleet, each, command_id) for each in events], NO_STREAM)
    for stored in fleet.log.streams[stream_of(worker_id)]:
        fleet.published[str(stored.event_id)] = None
        fleet.broker.to_subscriber(event_message(SOURCE, stored))
    fleet.tables.project(fleet.log.streams[stream_of(worker_id)])
    saved = NewEvent(fleet.world.new_id(), SAVED, json.dumps({"position": stored.position}).encode(), b"{}")
    fleet.log.append(RELAY_STREAM, [saved], len(fleet.log.streams.get(RELAY_STREAM, ())) - 1)


def _instance(instance_id: str, state: InstanceState, tags: dict[str, str]) -> Ec2Instance:
    return Ec2Instance(
        instance_id=instance_id,
        aws_region=REGION,
        state=state,
        instance_type="m5.large",
        ami_id=IMAGE,
        tags=tags,
    )


def _stored(fleet: Fleet, event: WorkerEvent, command_id: str) -> NewEvent:
    metadata = EventMetadata(
        event_id=fleet.world.new_id(),
        time=fleet.world.now() - LONG_AGO,
        command_id=command_id,
        causation_id=command_id,
    )
    return NewEvent(
        metadata.event_id,
        event.TYPE,
        event.model_dump_json(exclude_none=True).encode(),
        encode(metadata),
    )
