"""Every command that is answered has its outcome among the metrics, recorded or not."""

from collections.abc import Callable, Mapping
from uuid import uuid4

import pytest

from cml_contracts.commands import (
    COMMANDS,
    StartCMLWorker,
    StopCMLWorker,
    UpdateCMLWorkerStatus,
)
from cml_contracts.results import ProblemCode
from cml_workers.bus.port import Message
from cml_workers.domain.policy import Access, Limit
from cml_workers.foundation.metrics import COMMAND_PROBLEMS, COMMANDS_SETTLED
from support.service import CREATE, WORKER, Service

STOP = StopCMLWorker(worker_id=WORKER)
STATUS = UpdateCMLWorkerStatus(worker_id=WORKER)
Counts = Mapping[tuple[str, ...], float]


def counts() -> Counts:
    return {
        tuple(sample.labels.values()): sample.value
        for metric in (COMMANDS_SETTLED, COMMAND_PROBLEMS)
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }


@pytest.fixture
def counted() -> Callable[[], Counts]:
    """What was counted since the test began."""
    before = counts()
    return lambda: {
        labels: value - before.get(labels, 0.0)
        for labels, value in counts().items()
        if value != before.get(labels, 0.0)
    }


def rejected(command: str, code: ProblemCode, times: int = 1) -> Counts:
    return {(command, "rejected"): times, (command, code): times}


async def test_a_status_update(service: Service, counted: Callable[[], Counts]):
    await service.command(STATUS)
    assert counted() == rejected(STATUS.TYPE, ProblemCode.WORKER_NOT_FOUND)


async def test_what_is_recorded_counts_once_however_often_it_comes(
    service: Service, counted: Callable[[], Counts]
):
    for _ in range(3):
        await service.command(STOP, "stop")
    assert counted() == rejected(STOP.TYPE, ProblemCode.WORKER_NOT_FOUND)


async def test_one_too_many(service: Service, counted: Callable[[], Counts]):
    service.allow(Access(of_worker=Limit(per_minute=0)))
    await service.command(STOP)
    assert counted() == rejected(STOP.TYPE, ProblemCode.THROTTLED)


async def test_one_that_is_denied(service: Service, counted: Callable[[], Counts]):
    service.allow(Access(enforced=True))
    await service.command(STOP, user_id=None)
    assert counted() == rejected(STOP.TYPE, ProblemCode.UNAUTHORIZED)


async def test_one_whose_id_is_of_another(service: Service, counted: Callable[[], Counts]):
    await service.command(CREATE, "create")
    await service.command(StartCMLWorker(worker_id=WORKER), "create")
    assert counted() == rejected(StartCMLWorker.TYPE, ProblemCode.DUPLICATE_COMMAND)


async def test_one_that_cannot_be_read(service: Service, counted: Callable[[], Counts]):
    await service.handler.on_command(Message(body=b"{", type=STOP.TYPE, message_id=str(uuid4())))
    assert counted() == rejected(STOP.TYPE, ProblemCode.VALIDATION_FAILED)


async def test_what_is_no_command_of_ours_makes_no_series(service: Service, counted: Callable[[], Counts]):
    await service.handler.on_command(
        Message(body=b"{}", type="cml.worker.explode.v1", message_id=str(uuid4()))
    )
    assert counted() == {}
    assert {labels[0] for labels in counts()} <= set(COMMANDS)
