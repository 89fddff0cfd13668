"""Commands that EC2 is asked about before they are decided: status updates, imports, images."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cml_contracts.commands import (
    COMMANDS,
    ImportCMLWorker,
    StartCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
)
from cml_contracts.envelope import MAX_BODY
from cml_contracts.events import TagsUpdateRequested
from cml_contracts.instance import InstanceState
from cml_contracts.results import ProblemCode
from cml_workers.bus.headers import OPERATOR_HEADER
from cml_workers.bus.port import Ack, BusUnavailableError, DeadLetter, Retry
from cml_workers.domain.history import Redrive, ReplyAddress
from cml_workers.domain.messages import (
    CommandMessage,
    ImageLookup,
    InstanceObserved,
    LookupAnswered,
    LookupRequested,
    LookupResult,
    OperationSucceeded,
)
from cml_workers.eventstore.command_streams import COMMAND_STREAMS, stream_of_command
from cml_workers.eventstore.lookup_records import LOOKUP_STREAMS, stream_of_lookup
from cml_workers.eventstore.names import stream_of
from cml_workers.eventstore.worker_streams import UNSEEN_ATTEMPTS, decode
from support.buses import command
from support.given import instance
from support.service import CREATE, WORKER, Service, streams

EXAMPLES = Path(__file__).parents[2] / "contracts" / "examples"


async def test_a_status_update_asks_and_is_answered_without_an_event(service: Service):
    await service.launched()
    await service.command(UpdateCMLWorkerStatus(worker_id=WORKER), "status")
    await service.answer(instance())
    (result,) = service.outbox.results()
    assert result.data["instance_state"] == "running"
    assert len(await service.types()) == 3


async def test_a_status_update_that_is_repeated_is_answered_by_what_ec2_shows_then(service: Service):
    await service.launched()
    for state in (InstanceState.RUNNING, InstanceState.STOPPED):
        await service.command(UpdateCMLWorkerStatus(worker_id=WORKER), "status")
        await service.answer(instance(state))
    assert [result.data["instance_state"] for result in service.outbox.results()] == ["running", "stopped"]
    assert (await service.types())[3:] == ["worker.instance_state_observed"]


async def test_a_status_update_that_changes_nothing_appends_nothing(service: Service):
    await service.launched()
    await service.command(UpdateCMLWorkerStatus(worker_id=WORKER), "status")
    await service.answer(instance())
    assert len(service.outbox.results()) == 1
    assert await streams(service, COMMAND_STREAMS) == {stream_of_command("create")}


async def test_who_died_between_what_a_status_update_saw_and_its_answer_goes_on_there(service: Service):
    await service.launched()
    service.now += timedelta(hours=1)
    await service.command(TerminateCMLWorker(worker_id=WORKER), "terminate", reply_to="terminator")
    await service.command(UpdateCMLWorkerStatus(worker_id=WORKER), "status", reply_to="asker")
    service.outbox.broken = 1
    with pytest.raises(BusUnavailableError):
        await service.answer(None)
    assert service.outbox.results("asker") == []
    service.outbox.broken = 0
    await service.answer(None)
    assert [result.data for result in service.outbox.results("terminator")] == [True]
    (rejected,) = service.outbox.results("asker")
    assert rejected.problem
    assert rejected.problem.code is ProblemCode.WORKER_TERMINATED


async def test_the_largest_command_survives_a_lookup(service: Service):
    tags = {f"{n:02}" + "\N{GRINNING FACE}" * 126: "\N{GRINNING FACE}" * 256 for n in range(42)}
    named = CREATE.model_copy(update={"ami_id": None, "ami_name": "cml", "tags": tags, "reason": "x" * 500})
    await service.command(named, "create")
    asked = service.lookup()
    found = LookupResult(image_id="ami-11111111")
    largest = LookupAnswered(origin=asked.origin, lookup=asked.lookup, looked_up=found)
    assert len(command(named).body) < MAX_BODY < len(largest.model_dump_json().encode())
    assert await service.report(largest) == Ack()
    assert await service.types() == ["worker.created", "worker.launch_requested"]


async def test_a_stale_lookup_result_is_asked_for_again(service: Service):
    await service.launched()
    await service.command(UpdateCMLWorkerStatus(worker_id=WORKER), "status")
    asked = service.lookup()
    await service.report(
        InstanceObserved(worker_id=WORKER, seen_revision=99, instance=instance(InstanceState.STOPPED))
    )
    await service.report(
        LookupAnswered(origin=asked.origin, lookup=asked.lookup, looked_up=LookupResult(instance=instance()))
    )
    assert service.outbox.results() == []
    await service.answer(instance(InstanceState.STOPPED))
    (result,) = service.outbox.results()
    assert result.data["instance_state"] == "stopped"


async def test_a_status_update_that_finds_the_instance_gone_answers_everybody(service: Service):
    await service.launched()
    service.now += timedelta(hours=1)
    await service.command(TerminateCMLWorker(worker_id=WORKER), "terminate", reply_to="terminator")
    await service.command(UpdateCMLWorkerStatus(worker_id=WORKER), "status", reply_to="asker")
    await service.answer(None)
    assert [result.data for result in service.outbox.results("terminator")] == [True]
    (answered,) = service.outbox.results("asker")
    assert answered.data["instance_state"] == "terminated"


async def test_an_import_is_decided_when_ec2_has_answered(service: Service):
    adopt = ImportCMLWorker(aws_region="us-east-1", instance_id=instance().instance_id, created_by="ann")
    await service.command(adopt, "import")
    tags = {"Name": "found", "cml:import": "default"}
    await service.answer(instance(tags=tags))
    assert service.outbox.results() == []
    worker_id = adopt.worker("import")
    (_, requested) = (decode(each).event for each in await service.store.read(stream_of(worker_id)))
    assert isinstance(requested, TagsUpdateRequested)
    done = instance(tags={**tags, **requested.tags})
    await service.report(
        OperationSucceeded(worker_id=worker_id, operation_id=requested.operation_id, instance=done)
    )
    (result,) = service.outbox.results()
    assert (result.command_id, result.outcome) == ("import", "succeeded")
    assert (result.data["instance_name"], result.data["tags"]) == ("found", tags)


async def test_stopped_outside_then_start_by_what_ec2_shows(service: Service):
    await service.launched()
    await service.command(StartCMLWorker(worker_id=WORKER, started_by="ann"), "start")
    assert service.outbox.results() == []
    await service.answer(instance(InstanceState.STOPPED))
    assert (await service.types())[3:] == ["worker.instance_state_observed", "worker.start_requested"]


async def test_what_a_command_only_saw_is_nobodys_doing(service: Service):
    """Who stopped it is not known; that is not who asked for the start."""
    await service.launched()
    await service.command(StartCMLWorker(worker_id=WORKER, started_by="ann", reason="lab"), "start")
    await service.answer(instance(InstanceState.STOPPED))
    stored = await service.store.read(stream_of(WORKER))
    observed, requested = (decode(each).metadata for each in stored[-2:])
    assert (observed.actor, observed.reason, observed.command_id, observed.reply) == (None, None, None, None)
    assert observed.causation_id == "start"
    assert (requested.actor, requested.reason, requested.command_id) == ("ann", "lab", "start")


async def test_a_command_that_meets_a_stale_lookup_result_asks_again(service: Service):
    await service.launched()
    await service.command(StartCMLWorker(worker_id=WORKER), "start")
    asked = service.lookup()
    await service.report(
        InstanceObserved(worker_id=WORKER, seen_revision=99, instance=instance(public_ip="1.2.3.4"))
    )
    await service.report(
        LookupAnswered(origin=asked.origin, lookup=asked.lookup, looked_up=LookupResult(instance=instance()))
    )
    assert service.outbox.results() == []
    assert service.lookup().lookup != asked.lookup
    await service.answer(instance(public_ip="1.2.3.4"))
    assert [result.data for result in service.outbox.results()] == [True]


async def test_what_was_seen_and_the_answer_of_a_no_op_are_one_append(service: Service):
    await service.launched()
    await service.command(StartCMLWorker(worker_id=WORKER), "start")
    appends, append = [], service.store.append

    async def counted(stream: str, events: Any, *, expected: int) -> int:
        appends.append([each.type for each in events])
        return await append(stream, events, expected=expected)

    service.store.append = counted  # type: ignore[method-assign]
    await service.answer(instance(public_ip="1.2.3.4"))
    assert appends == [["cml.worker.instance_state_observed.v1", "cml.command.skipped.v1"]]


async def refused(service: Service, forged: LookupAnswered) -> None:
    """It is a dead letter, after a while in which a replica of the store may have lagged behind, and nothing is done."""
    before, sent = await service.types(), list(service.outbox.sent)
    assert await service.report(forged) == Retry(1)
    verdict = await service.report(forged, attempt=UNSEEN_ATTEMPTS)
    assert isinstance(verdict, DeadLetter)
    assert (verdict.cause, "has to send it again" in verdict.reason) == ("NotRecorded", True)
    assert (await service.types(), service.outbox.sent) == (before, sent)


async def test_a_lookup_of_another_instance_says_nothing_of_this_one(service: Service):
    await service.launched()
    await service.command(StartCMLWorker(worker_id=WORKER), "start")
    asked = service.lookup()
    other = asked.lookup.model_copy(update={"instance_id": "i-1111111111111111f"})
    service.now += timedelta(hours=1)
    await refused(service, LookupAnswered(origin=asked.origin, lookup=other, looked_up=LookupResult()))


@pytest.mark.parametrize(
    "changed",
    [
        {"actor": "ceo"},
        {"user": "portal"},
        {"taken": True},
        {"command_id": "another"},
        {"correlation_id": "another"},
        {"reply": ReplyAddress(reply_to="cml.lifecycle.reports")},
        {"reply": None},
        {"command": TerminateCMLWorker(worker_id=WORKER), "command_type": TerminateCMLWorker.TYPE},
        {"command": StartCMLWorker(worker_id=WORKER, reason="mine")},
    ],
    ids=str,
)
async def test_a_command_that_comes_back_as_another_one_is_not_continued(
    service: Service, changed: dict[str, Any]
):
    """Whoever publishes a lookup result says neither what is done nor in whose name."""
    await service.launched()
    await service.command(StartCMLWorker(worker_id=WORKER), "start")
    asked = service.lookup()
    forged = asked.origin.model_copy(update=changed)
    seen = LookupResult(instance=instance(InstanceState.STOPPED))
    await refused(service, LookupAnswered(origin=forged, lookup=asked.lookup, looked_up=seen))
    await service.answer(instance())
    assert [result.data for result in service.outbox.results()] == [True]


async def test_who_redrove_a_command_is_known_behind_its_lookup_too(service: Service):
    await service.launched()
    redrive = Redrive(edited=False, user="ops", by="ann")
    headers = {OPERATOR_HEADER: redrive.model_dump_json()}
    await service.command(StartCMLWorker(worker_id=WORKER), "start", headers=headers)
    asked = service.lookup()
    forged = asked.origin.model_copy(update={"redrive": None})
    seen = LookupResult(instance=instance(InstanceState.STOPPED))
    await refused(service, LookupAnswered(origin=forged, lookup=asked.lookup, looked_up=seen))
    await service.answer(seen.instance)
    stored = await service.store.read(stream_of(WORKER))
    observed, requested = (decode(each).metadata for each in stored[-2:])
    assert (observed.redrive, requested.redrive) == (None, redrive)


async def test_a_command_whose_lookup_was_not_sent_has_its_record_and_goes_on_from_there(service: Service):
    """Lifecycle dies between the two: the message is delivered again."""
    await service.launched()
    service.outbox.broken = 1
    with pytest.raises(BusUnavailableError):
        await service.command(StartCMLWorker(worker_id=WORKER), "start")
    recorded = await streams(service, LOOKUP_STREAMS)
    assert len(recorded) == 1
    for _ in range(2):
        await service.command(StartCMLWorker(worker_id=WORKER), "start")
    assert await streams(service, LOOKUP_STREAMS) == recorded
    await service.answer(instance())
    assert [result.data for result in service.outbox.results()] == [True]


async def test_a_status_update_leaves_no_record(service: Service):
    """Deployments send them by the minute."""
    await service.launched()
    await service.command(UpdateCMLWorkerStatus(worker_id=WORKER), "status")
    await service.answer(instance())
    assert [result.data["instance_state"] for result in service.outbox.results()] == ["running"]
    assert await streams(service, LOOKUP_STREAMS) == set()


async def test_a_record_says_whose_command_waits_and_nothing_of_its_body(service: Service):
    await service.launched()
    await service.command(StartCMLWorker(worker_id=WORKER, started_by="ann", reason="s3cret"), "start")
    (stream,) = await streams(service, LOOKUP_STREAMS)
    (record,) = await service.store.read(stream)
    assert json.loads(record.data) == {
        "command_id": "start",
        "command_type": StartCMLWorker.TYPE,
        "worker_id": str(WORKER),
        "user": None,
        "actor": "ann",
    }


@pytest.mark.parametrize("command_type", sorted(COMMANDS))
def test_a_command_has_the_same_record_when_it_comes_back(command_type: str):
    """Through every version's reading and writing of it."""
    body = (EXAMPLES / f"{command_type}.json").read_bytes()
    origin = CommandMessage(
        command_id="c",
        command=COMMANDS[command_type].model_validate_json(body),
        command_type=command_type,
        correlation_id="t",
        actor="ann",
        user="portal",
        reply=ReplyAddress(reply_to="caller", correlation_id="t"),
    )
    lookup = ImageLookup(aws_region="us-east-1", ami_name="cml")
    request = LookupRequested(origin=origin, lookup=lookup)
    for _ in range(2):
        request = LookupRequested.model_validate_json(request.model_dump_json())
        assert stream_of_lookup(request.origin, request.lookup) == stream_of_lookup(origin, lookup)


async def test_a_deployment_that_polls_counts_what_ec2_showed_unchanged(service: Service):
    service.handler._policy = replace(service.handler._policy, observation_age=timedelta(minutes=2))
    await service.launched()
    service.now += timedelta(hours=1)
    await service.command(UpdateCMLWorkerStatus(worker_id=WORKER), "status")
    await service.answer(instance())
    service.now += timedelta(minutes=2)
    await service.command(StartCMLWorker(worker_id=WORKER), "soon", reply_to="soon")
    assert [result.data for result in service.outbox.results("soon")] == [True]
    service.now += timedelta(seconds=1)
    await service.command(StartCMLWorker(worker_id=WORKER), "late", reply_to="late")
    assert service.outbox.results("late") == []
    assert service.lookup().origin.command_id == "late"
