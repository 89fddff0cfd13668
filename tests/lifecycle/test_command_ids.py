"""What the id of a command belongs to."""

import hashlib
import json
from typing import Any
from uuid import uuid4

import pytest

from cml_contracts.commands import (
    CreateCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    WorkerCommand,
)
from cml_contracts.results import ProblemCode
from cml_workers.bus.port import Ack, DeadLetter
from cml_workers.domain.history import fingerprint
from cml_workers.eventstore.command_streams import COMMAND_STREAMS, stream_of_command
from cml_workers.eventstore.port import StoredEvent, StoreUnavailableError, StreamNotFoundError
from cml_workers.lifecycle import replies
from support.service import CREATE, WORKER, Service, streams


def test_a_fingerprint_is_of_what_a_command_says_and_not_of_what_it_could_have_said():
    body: dict[str, Any] = {"name": "lab", "aws_region": "us-east-1", "created_by": "ann"}
    short, other = CreateCMLWorker(**body), CreateCMLWorker(**body, cml_version="2.8")
    assert fingerprint(short) == fingerprint(CreateCMLWorker(**body, tags={})) != fingerprint(other)
    bound = f"cml.worker.create.v1\n{json.dumps(body, sort_keys=True)}"
    assert fingerprint(short) == hashlib.sha256(bound.encode()).hexdigest()
    tags = {"a": "1", "b": "2"}
    turned = dict(reversed(tags.items()))
    assert fingerprint(CreateCMLWorker(**body, tags=tags)) == fingerprint(
        CreateCMLWorker(**body, tags=turned)
    )


@pytest.mark.parametrize(
    "other",
    [
        CREATE.model_copy(update={"name": "other"}),
        CREATE.model_copy(update={"worker_id": uuid4()}),
        StopCMLWorker(worker_id=WORKER),
    ],
)
async def test_a_command_id_belongs_to_one_body(service: Service, other: WorkerCommand):
    await service.launched()
    assert isinstance(await service.command(other, "create"), DeadLetter)
    (result,) = service.outbox.results()
    assert result.problem
    assert result.problem.code is ProblemCode.DUPLICATE_COMMAND
    assert len(await service.types()) == 3


async def test_a_command_is_one_append_and_one_that_creates_binds_its_id_first(service: Service):
    await service.launched()
    await service.command(StopCMLWorker(worker_id=WORKER), "stop")
    await service.command(StopCMLWorker(worker_id=WORKER), "rejected")
    assert await streams(service, COMMAND_STREAMS) == {stream_of_command("create")}


async def test_two_workers_are_never_created_under_one_id_wherever_it_was_used(service: Service):
    elsewhere = uuid4()
    assert await service.command(CREATE.model_copy(update={"worker_id": None}), "create") == Ack()
    assert isinstance(await service.command(CREATE, "create"), DeadLetter)
    assert isinstance(
        await service.command(CREATE.model_copy(update={"worker_id": elsewhere}), "create"), DeadLetter
    )
    assert {r.problem and r.problem.code for r in service.outbox.results()} == {ProblemCode.DUPLICATE_COMMAND}


async def test_an_idempotency_record_that_a_replica_does_not_show_yet_is_waited_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    await service.command(CREATE, "create", reply_to=None)
    read = service.store.read

    async def lags(stream: str, **options: Any) -> list[StoredEvent]:
        if stream.startswith(COMMAND_STREAMS):
            raise StreamNotFoundError(stream)
        return await read(stream, **options)

    monkeypatch.setattr(service.store, "read", lags)
    with pytest.raises(StoreUnavailableError):
        await service.command(CREATE.model_copy(update={"worker_id": uuid4()}), "create")


async def test_a_command_of_before_there_were_fingerprints_is_compared_with_its_idempotency_record(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    start = StartCMLWorker(worker_id=WORKER)
    monkeypatch.setattr(replies, "fingerprint", lambda _: None)
    await service.command(CREATE, "create", reply_to=None)
    await service.command(start, "start", reply_to=None)
    monkeypatch.setattr(replies, "fingerprint", fingerprint)
    for other in (CREATE.model_copy(update={"name": "other"}), StopCMLWorker(worker_id=WORKER)):
        assert isinstance(await service.command(other, "create"), DeadLetter)
    assert await service.command(CREATE, "create", reply_to=None) == Ack()
    assert await service.command(start, "start") == Ack()  # nothing says otherwise
