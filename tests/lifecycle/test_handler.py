"""The handler on a real event store: deduplication, conflicts, replies, broken messages."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest

from cml_contracts.commands import (
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
)
from cml_contracts.instance import InstanceState
from cml_contracts.results import OperationResult, Problem, ProblemCode
from cml_workers.bus.headers import OPERATOR_HEADER
from cml_workers.bus.port import Ack, DeadLetter, Message, Retry
from cml_workers.domain.history import Redrive
from cml_workers.domain.messages import (
    InstanceObserved,
    OperationFailed,
    OperationSucceeded,
)
from cml_workers.domain.policy import Access
from cml_workers.eventstore.port import StoreUnavailableError
from cml_workers.eventstore.worker_streams import UNSEEN_ATTEMPTS, load_ledger
from support.buses import queue_of
from support.given import instance
from support.service import CREATE, WORKER, Service

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_the_reply_comes_after_the_outcome_and_not_before(service: Service):
    assert await service.command(CREATE, "create", correlation_id="c-1") == Ack()
    assert service.outbox.results() == []
    await service.report(OperationSucceeded(worker_id=WORKER, operation_id="create", instance=instance()))
    (result,) = service.outbox.results()
    assert (result.command_id, result.outcome, result.worker_id) == ("create", "succeeded", WORKER)
    assert result.data["aws_instance_id"] == instance().instance_id
    assert service.outbox.sent[-1].correlation_id == "c-1"


async def test_a_failure_is_replied_with_its_problem(service: Service):
    await service.command(CREATE, "create")
    problem = Problem.of(ProblemCode.EC2_QUOTA_EXCEEDED, "no vCPU left")
    await service.report(OperationFailed(worker_id=WORKER, operation_id="create", problem=problem))
    (result,) = service.outbox.results()
    assert (result.outcome, result.problem) == ("failed", problem)


async def test_a_repeated_command_has_the_effect_of_once_and_the_reply_again(service: Service):
    await service.launched()
    for _ in range(3):
        assert await service.command(CREATE, "create") == Ack()
    assert await service.types() == ["worker.created", "worker.launch_requested", "worker.instance_launched"]
    first, *others = service.outbox.results()
    assert len(others) == 2
    assert all(other == first for other in others)


async def test_a_repetition_while_it_is_pending_waits_for_the_reply(service: Service):
    await service.command(CREATE, "create", reply_to="first")
    assert await service.command(CREATE, "create", reply_to="second") == Retry()
    await service.report(OperationSucceeded(worker_id=WORKER, operation_id="create", instance=instance()))
    assert await service.command(CREATE, "create", reply_to="second") == Ack()
    assert service.outbox.results("first") == service.outbox.results("second") != []


async def test_a_redelivery_while_it_is_pending_is_done_the_reply_will_come(service: Service):
    await service.command(CREATE, "create")
    assert await service.command(CREATE, "create", redelivered=True) == Ack()
    assert await service.command(CREATE, "create", reply_to=None) == Ack()


async def test_the_same_command_at_the_same_time_is_accepted_once(service: Service):
    verdicts = await asyncio.gather(*(service.command(CREATE, "create", reply_to=str(n)) for n in range(8)))
    assert verdicts.count(Ack()) == 1
    assert await service.types() == ["worker.created", "worker.launch_requested"]


async def failed(service: Service, command_id: str) -> None:
    problem = Problem.of(ProblemCode.EC2_CAPACITY, "none left", retryable=True)
    await service.report(OperationFailed(worker_id=WORKER, operation_id=command_id, problem=problem))


async def test_two_that_create_a_failed_worker_again_at_once_launch_it_once(service: Service):
    await service.command(CREATE, "create")
    await failed(service, "create")
    await asyncio.gather(*(service.command(CREATE, f"again-{n}") for n in range(5)))
    types = await service.types()
    assert types.count("worker.recreated") == 1
    assert types.count("worker.launch_requested") == 2
    (pending,) = (await service.worker()).operations.values()
    problems = [result.problem.code for result in service.outbox.results() if result.problem]
    assert sorted(problems) == sorted(["EC2Capacity", *(4 * ["Conflict"])])
    await service.report(
        OperationSucceeded(worker_id=WORKER, operation_id=pending.command_id, instance=instance())
    )
    assert service.outbox.results()[-1].outcome == "succeeded"


async def test_a_repetition_of_the_create_that_failed_launches_nothing_again(service: Service):
    """Its id belongs to that attempt: only a new command is a new attempt."""
    await service.command(CREATE, "create")
    await failed(service, "create")
    assert await service.command(CREATE, "create") == Ack()
    assert [result.outcome for result in service.outbox.results()] == ["failed", "failed"]
    assert "worker.recreated" not in await service.types()


async def test_the_id_of_a_create_that_was_accepted_again_is_bound_to_it(service: Service):
    await service.command(CREATE, "create")
    await failed(service, "create")
    await service.command(CREATE, "again")
    other = CREATE.model_copy(update={"worker_id": uuid4()})
    assert isinstance(await service.command(other, "again"), DeadLetter)


async def test_commands_that_race_for_a_worker_are_decided_one_after_the_other(service: Service):
    await service.launched()
    await asyncio.gather(
        *(service.command(StopCMLWorker(worker_id=WORKER), f"stop-{n}", reply_to=str(n)) for n in range(8))
    )
    types = await service.types()
    assert types.count("worker.stop_requested") == 1
    assert types.count("command.rejected") == 7


async def test_a_rejection_is_final_even_if_the_worker_changes_meanwhile(service: Service):
    start = StartCMLWorker(worker_id=WORKER)
    await service.command(start, "start")
    await service.launched(InstanceState.STOPPED)
    await service.command(start, "start")
    first, second = service.outbox.results()
    assert first == second
    assert first.problem
    assert first.problem.code is ProblemCode.WORKER_NOT_FOUND
    assert "worker.start_requested" not in await service.types()


async def test_a_skip_is_final_too(service: Service):
    await service.launched()
    start = StartCMLWorker(worker_id=WORKER)
    await service.command(start, "start")
    await service.answer(instance())
    await service.report(
        InstanceObserved(worker_id=WORKER, seen_revision=99, instance=instance(InstanceState.STOPPED))
    )
    await service.command(start, "start")
    assert [result.data for result in service.outbox.results()] == [True, True]
    assert "worker.start_requested" not in await service.types()


async def test_a_lost_reply_is_sent_again_on_redelivery(service: Service):
    await service.command(CREATE, "create")
    succeeded = OperationSucceeded(worker_id=WORKER, operation_id="create", instance=instance())
    service.outbox.broken = 1
    with pytest.raises(ConnectionError):
        await service.report(succeeded, "report")
    assert await service.report(succeeded, "report") == Ack()
    assert [result.outcome for result in service.outbox.results()] == ["succeeded"]
    assert (await service.types()).count("worker.instance_launched") == 1


async def test_an_append_whose_answer_is_lost_is_not_done_twice(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    append, losses = service.store.append, [False, True]

    async def commit_and_lose(*args: object, **kwargs: object) -> int:
        revision = await append(*args, **kwargs)  # type: ignore[arg-type]
        if losses.pop():
            raise StoreUnavailableError("planted")
        return revision

    monkeypatch.setattr(service.store, "append", commit_and_lose)
    with pytest.raises(StoreUnavailableError):  # the idempotency record
        await service.command(CREATE, "create")
    losses[:] = [True]
    with pytest.raises(StoreUnavailableError):  # the events
        await service.command(CREATE, "create", redelivered=True)
    losses[:] = []
    assert await service.command(CREATE, "create", redelivered=True) == Ack()
    assert await service.types() == ["worker.created", "worker.launch_requested"]


async def test_a_superseded_start_is_answered_by_the_termination(service: Service):
    await service.launched(InstanceState.STOPPED)
    await service.command(StartCMLWorker(worker_id=WORKER), "start", reply_to="starter")
    await service.command(TerminateCMLWorker(worker_id=WORKER), "terminate", reply_to="terminator")
    (result,) = service.outbox.results("starter")
    assert (result.outcome, result.problem and result.problem.code) == ("failed", ProblemCode.CONFLICT)
    await service.report(OperationSucceeded(worker_id=WORKER, operation_id="terminate"))
    assert [result.data for result in service.outbox.results("terminator")] == [True]


async def test_two_terminations_are_both_answered_by_the_one_end(service: Service):
    await service.launched()
    for name in ("one", "two"):
        await service.command(TerminateCMLWorker(worker_id=WORKER), name, reply_to=name)
    await service.report(OperationSucceeded(worker_id=WORKER, operation_id="one"))
    assert [r.outcome for name in ("one", "two") for r in service.outbox.results(name)] == ["succeeded"] * 2


async def test_a_trace_header_that_is_none_is_omitted(service: Service):
    none = (
        "x" * 300,
        b"\xff",
        {"a": 1},
        "00-ab-cd-01",
        f"{TRACEPARENT}\n",
        f"ff{TRACEPARENT[2:]}",
        f"{TRACEPARENT[:3]}{'0' * 32}-{'1' * 16}-01",
    )
    for number, header in enumerate(none):
        worker = CREATE.model_copy(update={"worker_id": uuid4()})
        assert await service.command(worker, f"create-{number}", headers={"traceparent": header}) == Ack()
    (asked,) = await service.store.read(f"cml_worker-{worker.worker_id}", limit=1)
    assert b"traceparent" not in asked.metadata


async def test_events_carry_who_why_and_what_for(service: Service):
    await service.command(CREATE, "create", correlation_id="thread", headers={"traceparent": TRACEPARENT})
    await service.report(
        OperationSucceeded(worker_id=WORKER, operation_id="create", instance=instance()), "report"
    )
    stored = await service.store.read(f"cml_worker-{WORKER}")
    metadata = [json.loads(each.metadata) for each in stored]
    for each in metadata:
        assert each["command_id"] == "create"
        assert each["correlation_id"] == "thread"
        assert each["actor"] == "ann"
        assert each["reason"] == "week 3"
        assert each["traceparent"] == TRACEPARENT
    assert [each["causation_id"] for each in metadata] == ["create", "create", "report"]
    assert "reply" in metadata[1]
    assert "reply" not in metadata[2]


BROKEN = [
    (b"{", {}, "Invalid JSON"),
    (b"[]", {}, "object"),
    (b"\xff\xfe", {}, "Invalid JSON"),
    (b'{"worker_id": "x"}', {}, "worker_id"),
    (json.dumps({"worker_id": str(WORKER), "colour": "red"}).encode(), {}, "colour"),
    (json.dumps({"worker_id": str(WORKER), "started_by": 7}).encode(), {}, "started_by"),
    (b" " * (64 * 1024 + 1), {}, "bytes"),
    (b"[" * 60_000, {}, "Invalid JSON"),
    (b"{}", {"type": "cml.worker.explode.v1"}, "not known"),
    (b"{}", {"type": ""}, "not known"),
    (b"{}", {"message_id": None}, "message_id is missing"),
    (b"{}", {"message_id": "a b"}, "printable"),
    (b"{}", {"message_id": "x" * 201}, "message_id"),
]


@pytest.mark.parametrize(("body", "fields", "reason"), BROKEN)
async def test_a_broken_message_is_answered_and_kept_with_its_reason(
    service: Service, body: bytes, fields: dict[str, str | None], reason: str
):
    properties = {"type": StartCMLWorker.TYPE, "message_id": "m-1", "reply_to": queue_of("caller"), **fields}
    verdict = await service.handler.on_command(Message(body=body, **properties))  # type: ignore[arg-type]
    assert isinstance(verdict, DeadLetter)
    assert reason in verdict.reason
    (result,) = service.outbox.results()
    assert (result.outcome, result.problem and result.problem.code) == (
        "rejected",
        ProblemCode.VALIDATION_FAILED,
    )
    assert result.problem
    assert reason in result.problem.detail


NOT_THEIRS = [
    *(
        "cml.lifecycle.reports",
        "cml.lifecycle.commands.retry.5s",
        "cml.commands",
        "cml.subscribers.portal.billing",
    ),
    *(
        "billing",
        "amq.gen-",
        "amq.gen-a.b",
        "amq.rabbitmq.reply-to",
        "amq.rabbitmq.reply-to.",
        "\0",
        "x" * 255,
    ),
    *(
        "cml.replies.portal",
        "cml.replies.portal.",
        "cml.replies..a",
        "cml.replies.portal.a\n",
        "cml.replies.portal.b c",
    ),
    "cml.replies.portal.\u00e4",
]
"""Of no user."""


@pytest.mark.parametrize("enforced", [True, False])
@pytest.mark.parametrize("address", NOT_THEIRS)
async def test_a_reply_goes_to_no_queue_that_is_not_the_senders(
    service: Service, address: str, enforced: bool
):
    """The reply went there: an internal queue, or another service's durable one."""
    service.handler._access = ENFORCED if enforced else Access()
    fields: dict[str, Any] = {"reply_to": address, "user_id": "portal"}
    command = Message(CREATE.model_dump_json().encode(), CREATE.TYPE, message_id="m-1", **fields)
    broken = Message(b"{", CREATE.TYPE, message_id="m-2", **fields)
    for message in (command, broken):
        verdict = await service.handler.on_command(message)
        assert isinstance(verdict, DeadLetter)
        assert verdict.cause == ProblemCode.VALIDATION_FAILED
        assert "amq.gen-" in verdict.reason
        assert "cml.replies.<user>.<name>" in verdict.reason
    assert service.outbox.sent == []


@pytest.mark.parametrize("enforced", [True, False])
@pytest.mark.parametrize(
    ("user", "address", "allowed"),
    [
        ("portal", "cml.replies.portal.a-1_B", True),
        ("a.b", "cml.replies.a.b.c", True),
        ("portal", "cml.replies.192f36f9-32de-4f98-987d-178af3b2b6b1", True),
        ("portal", "amq.gen-JzTY20BRgKO-HjmUJj0wLg", True),
        ("portal", "amq.rabbitmq.reply-to.g1h2AA5yZXBseUAxMDA==.a/b+c", True),
        ("portal", "cml.replies.other.a", False),
        ("a", "cml.replies.a.b.c", False),
        (None, "cml.replies.None.a", False),
    ],
)
async def test_a_reply_queue_that_is_named_after_a_user_is_that_users(
    service: Service, user: str | None, address: str, allowed: bool, enforced: bool
):
    """Where commands need no authorization, any user may be named."""
    service.handler._access = ENFORCED if enforced else Access()
    message = Message(b"{", CREATE.TYPE, message_id="m-1", reply_to=address, user_id=user)
    assert isinstance(await service.handler.on_command(message), DeadLetter)
    assert [each.routing_key for each in service.outbox.sent] == [address] * (allowed or not enforced)


async def test_a_broken_message_without_an_address_is_kept(service: Service):
    assert isinstance(await service.handler.on_command(Message(body=b"", type="")), DeadLetter)
    assert service.outbox.sent == []


async def test_a_broken_or_stray_report_is_kept(service: Service):
    assert isinstance(
        await service.handler.on_report(Message(body=b"{}", type="cml.report.x", message_id="m")), DeadLetter
    )
    stray = OperationSucceeded(worker_id=WORKER, operation_id="never", instance=instance())
    assert await service.report(stray) == Retry(1)  # a replica of the store may lag behind
    assert isinstance(await service.report(stray, attempt=UNSEEN_ATTEMPTS), DeadLetter)


async def test_results_are_equal_however_often_they_are_read(service: Service):
    await service.launched()
    result = (await load_ledger(service.store, WORKER)).entries["create"].result
    assert result == OperationResult.model_validate_json(result.model_dump_json())


ENFORCED = Access(enforced=True, users={"portal": frozenset({"*"})})


async def test_the_unauthorized_is_refused_kept_and_audited_and_leaves_the_worker_alone(service: Service):
    service.allow(ENFORCED)
    redrive = Redrive(edited=True, user="stranger", by="ann")
    for user, headers in ((None, {}), ("stranger", {OPERATOR_HEADER: redrive.model_dump_json()})):
        verdict = await service.command(CREATE, "create", user_id=user, headers=headers)
        assert isinstance(verdict, DeadLetter)
    assert [r.problem and r.problem.code for r in service.outbox.results()] == [ProblemCode.UNAUTHORIZED] * 2
    assert not (await service.worker()).exists
    assert [(each["user"], each["command_id"], each.get("redrive")) for each in await service.denied()] == [
        (None, "create", None),
        ("stranger", "create", redrive.model_dump()),
    ]


async def test_the_user_and_the_actor_are_recorded(service: Service):
    service.allow(ENFORCED)
    create = CREATE.model_copy(update={"created_by": "portal"})
    assert await service.command(create, "create", user_id="portal") == Ack()
    (first, _) = await service.store.read(f"cml_worker-{WORKER}")
    metadata = json.loads(first.metadata)
    assert (metadata["actor"], metadata["user"]) == ("portal", "portal")


async def test_a_header_about_an_operator_that_cannot_be_read_is_a_dead_letter(service: Service):
    verdict = await service.command(CREATE, "create", headers={OPERATOR_HEADER: "ann"})
    assert isinstance(verdict, DeadLetter)
    assert OPERATOR_HEADER in verdict.reason
    assert not (await service.worker()).exists
