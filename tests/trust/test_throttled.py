"""How much one sender, or the commands for one worker, may ask of the service."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cml_contracts.commands import StopCMLWorker, UpdateCMLWorkerStatus, UpdateCMLWorkerTags
from cml_contracts.results import ProblemCode
from cml_workers.bus.port import Ack, Retry
from cml_workers.domain.policy import Access, Limit
from cml_workers.eventstore.worker_streams import load
from cml_workers.runtime.settings import Settings
from support.given import create
from support.service import WORKER, Service, opened

NONE = Limit()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with opened(tmp_path) as service:
        await service.launched()
        yield service


def limited(service: Service, *, of_worker: Limit = NONE, of_user: Limit = NONE) -> None:
    service.allow(Access(of_worker=of_worker, of_user=of_user))


def tags(number: int) -> UpdateCMLWorkerTags:
    return UpdateCMLWorkerTags(worker_id=WORKER, tags={"number": str(number)})


def problems(service: Service) -> dict[str | None, Any]:
    return {each.command_id: each.problem for each in service.outbox.results() if each.problem}


async def test_one_worker_takes_no_more_than_its_part_at_once(service: Service):
    limited(service, of_worker=Limit(at_once=3))
    verdicts = await asyncio.gather(*(service.command(tags(n), f"t-{n}") for n in range(5)))
    assert verdicts == [Ack()] * 5
    refused = problems(service)
    assert refused.keys() == {"t-3", "t-4"}
    for problem in refused.values():
        assert (problem.code, problem.retryable) == (ProblemCode.THROTTLED, True)
        assert "3 commands for this worker are under way" in problem.detail
    assert (await service.types()).count("worker.tags_update_requested") == 3
    await service.command(tags(3), "t-3")  # its id is not used up
    assert (await service.types()).count("worker.tags_update_requested") == 4


async def test_others_are_not_concerned(service: Service):
    limited(service, of_worker=Limit(at_once=1), of_user=Limit(per_minute=3))
    other = create(worker_id=uuid4())
    await asyncio.gather(
        service.command(tags(0), "hot", user_id="ann"),
        service.command(tags(1), "too-hot", user_id="ann"),
        service.command(other, "bystander", user_id="ben"),
    )
    assert problems(service).keys() == {"too-hot"}


async def test_so_many_within_a_minute_and_then_again(service: Service):
    limited(service, of_user=Limit(per_minute=2))
    status = UpdateCMLWorkerStatus(worker_id=WORKER)
    for number in range(4):
        await service.command(status, f"s-{number}", user_id="ann")
    assert problems(service).keys() == {"s-2", "s-3"}
    assert "send it again in 60 s" in problems(service)["s-3"].detail
    await service.command(status, "of-ben", user_id="ben")
    service.now += timedelta(minutes=1)
    await service.command(status, "later", user_id="ann")
    assert problems(service).keys() == {"s-2", "s-3"}


async def test_what_was_accepted_is_answered_however_often_it_comes(service: Service):
    limited(service, of_worker=Limit(per_minute=1))
    stop = StopCMLWorker(worker_id=WORKER)
    assert await service.command(stop, "stop") == Ack()
    assert await service.command(stop, "stop") == Ack()  # a redelivery
    assert problems(service) == {}
    assert await service.command(stop, "another") == Ack()
    assert problems(service).keys() == {"another"}


async def test_what_nobody_awaits_is_not_lost(service: Service):
    limited(service, of_worker=Limit(per_minute=1))
    assert await service.command(tags(1), "one", reply_to=None) == Ack()
    assert await service.command(tags(2), "two", reply_to=None) == Retry()
    assert service.outbox.results() == []
    service.now += timedelta(minutes=1)
    assert await service.command(tags(2), "two", reply_to=None) == Ack()


async def test_a_create_that_is_one_too_many_makes_no_worker(service: Service):
    limited(service, of_user=Limit(at_once=1))
    new = create(worker_id=uuid4())
    await asyncio.gather(service.command(tags(1), "one"), service.command(new, "two"))
    assert problems(service).keys() == {"two"}
    assert not (await load(service.store, new.worker("two"))).exists
    await service.command(new, "two")
    assert (await load(service.store, new.worker("two"))).exists


def test_by_default_one_worker_leaves_room_for_others():
    assert Settings(prefetch=50).access.of_worker == Limit(at_once=40)
    assert Settings(prefetch=1).access.of_worker == Limit(at_once=1)
    assert Settings(worker_commands_at_once=7).access.of_worker == Limit(at_once=7)
    assert Settings().access.of_user == Limit()
