"""Commands that EC2 is asked about before they are decided: status updates, imports, images."""

from datetime import timedelta

import pytest

from cml_contracts.commands import (
    ImportCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
)
from cml_contracts.envelope import MAX_BODY
from cml_contracts.instance import Ec2Instance, InstanceState
from cml_contracts.results import ProblemCode
from cml_workers.bus.port import Ack, BusUnavailableError
from cml_workers.bus.topology import INTERNAL_EXCHANGE
from cml_workers.domain.messages import (
    InstanceObserved,
    LookupAnswered,
    LookupRequested,
    LookupResult,
)
from cml_workers.eventstore.command_streams import COMMAND_STREAMS, stream_of_command
from support.buses import command
from support.given import instance
from support.service import CREATE, WORKER, Service, streams


async def lookup(service: Service) -> LookupRequested:
    (asked,) = service.outbox.on(INTERNAL_EXCHANGE.name)[-1:]
    return LookupRequested.model_validate_json(asked.body)


async def answer(service: Service, found: Ec2Instance | None) -> None:
    asked = await lookup(service)
    await service.report(
        LookupAnswered(origin=asked.origin, lookup=asked.lookup, looked_up=LookupResult(instance=found))
    )


async def test_a_status_update_asks_and_is_answered_without_an_event(service: Service):
    await service.launched()
    await service.command(UpdateCMLWorkerStatus(worker_id=WORKER), "status")
    await answer(service, instance())
    (result,) = service.outbox.results()
    assert result.data["instance_state"] == "running"
    assert len(await service.types()) == 3


async def test_a_status_update_that_is_repeated_is_answered_by_what_ec2_shows_then(service: Service):
    await service.launched()
    for state in (InstanceState.RUNNING, InstanceState.STOPPED):
        await service.command(UpdateCMLWorkerStatus(worker_id=WORKER), "status")
        await answer(service, instance(state))
    assert [result.data["instance_state"] for result in service.outbox.results()] == ["running", "stopped"]
    assert (await service.types())[3:] == ["worker.instance_state_observed"]


async def test_a_status_update_that_changes_nothing_appends_nothing(service: Service):
    await service.launched()
    await service.command(UpdateCMLWorkerStatus(worker_id=WORKER), "status")
    await answer(service, instance())
    assert len(service.outbox.results()) == 1
    assert await streams(service, COMMAND_STREAMS) == {stream_of_command("create")}


async def test_who_died_between_what_a_status_update_saw_and_its_answer_goes_on_there(service: Service):
    await service.launched()
    service.now += timedelta(hours=1)
    await service.command(TerminateCMLWorker(worker_id=WORKER), "terminate", reply_to="terminator")
    await service.command(UpdateCMLWorkerStatus(worker_id=WORKER), "status", reply_to="asker")
    service.outbox.broken = 1
    with pytest.raises(BusUnavailableError):
        await answer(service, None)
    assert service.outbox.results("asker") == []
    service.outbox.broken = 0
    await answer(service, None)
    assert [result.data for result in service.outbox.results("terminator")] == [True]
    (rejected,) = service.outbox.results("asker")
    assert rejected.problem
    assert rejected.problem.code is ProblemCode.WORKER_TERMINATED


async def test_the_largest_command_survives_a_lookup(service: Service):
    tags = {f"{n:02}" + "\N{GRINNING FACE}" * 126: "\N{GRINNING FACE}" * 256 for n in range(42)}
    named = CREATE.model_copy(update={"ami_id": None, "ami_name": "cml", "tags": tags, "reason": "x" * 500})
    await service.command(named, "create")
    asked = await lookup(service)
    found = LookupResult(image_id="ami-11111111")
    largest = LookupAnswered(origin=asked.origin, lookup=asked.lookup, looked_up=found)
    assert len(command(named).body) < MAX_BODY < len(largest.model_dump_json().encode())
    assert await service.report(largest) == Ack()
    assert await service.types() == ["worker.created", "worker.launch_requested"]


async def test_a_stale_lookup_result_is_asked_for_again(service: Service):
    await service.launched()
    await service.command(UpdateCMLWorkerStatus(worker_id=WORKER), "status")
    asked = await lookup(service)
    await service.report(
        InstanceObserved(worker_id=WORKER, seen_revision=99, instance=instance(InstanceState.STOPPED))
    )
    await service.report(
        LookupAnswered(origin=asked.origin, lookup=asked.lookup, looked_up=LookupResult(instance=instance()))
    )
    assert service.outbox.results() == []
    await answer(service, instance(InstanceState.STOPPED))
    (result,) = service.outbox.results()
    assert result.data["instance_state"] == "stopped"


async def test_a_status_update_that_finds_the_instance_gone_answers_everybody(service: Service):
    await service.launched()
    service.now += timedelta(hours=1)
    await service.command(TerminateCMLWorker(worker_id=WORKER), "terminate", reply_to="terminator")
    await service.command(UpdateCMLWorkerStatus(worker_id=WORKER), "status", reply_to="asker")
    await answer(service, None)
    assert [result.data for result in service.outbox.results("terminator")] == [True]
    (answered,) = service.outbox.results("asker")
    assert answered.data["instance_state"] == "terminated"


async def test_an_import_is_decided_when_ec2_has_answered(service: Service):
    adopt = ImportCMLWorker(aws_region="us-east-1", instance_id=instance().instance_id, created_by="ann")
    await service.command(adopt, "import")
    await answer(service, instance(tags={"Name": "found"}))
    (result,) = service.outbox.results()
    assert result.data["instance_name"] == "found"
