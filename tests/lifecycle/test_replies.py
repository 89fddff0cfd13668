"""Every caller is answered: a message is done only when each reply is out that its events made due.

Each case is a message that settles operations of others, too. It is broken off at every publish and at every append
in turn, in each way, and delivered once more; nobody sends a command again.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from cml_contracts.commands import (
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    UpdateCMLWorkerTags,
)
from cml_contracts.instance import Ec2Instance, InstanceState, StateReason
from cml_contracts.results import Problem, ProblemCode
from cml_contracts.tokens import TOKEN_HEADER
from cml_workers.bus.port import Ack, BusUnavailableError, CallerRefusesError, DeadLetter, Message, Outgoing
from cml_workers.bus.topology import INTERNAL_EXCHANGE
from cml_workers.domain.messages import (
    InstanceObserved,
    LookupAnswered,
    LookupRequested,
    LookupResult,
    OperationFailed,
    OperationSucceeded,
    Report,
)
from cml_workers.domain.policy import Access
from cml_workers.eventstore.port import StoreUnavailableError, WrongExpectedVersionError
from support.buses import GIVEN, command, queue_of, token_for
from support.given import instance
from support.service import CREATE, WORKER, Service

START = StartCMLWorker(worker_id=WORKER)
STOP = StopCMLWorker(worker_id=WORKER)
TAGS = UpdateCMLWorkerTags(worker_id=WORKER, tags={"a": "1"})
TERMINATE = TerminateCMLWorker(worker_id=WORKER)
STATUS = UpdateCMLWorkerStatus(worker_id=WORKER)
PROBLEM = Problem.of(ProblemCode.EC2_QUOTA_EXCEEDED, "no vCPU left")


def _report(report: Report, message_id: str = "report") -> Message:
    return Message(body=report.model_dump_json().encode(), type=report.TYPE, message_id=message_id)


async def _superseded(service: Service) -> Message:
    """A termination that is pending, and settles a start."""
    await service.launched(InstanceState.STOPPED)
    await service.command(START, "start", reply_to="start")
    return command(TERMINATE, "terminate", reply_to="terminate")


async def _nothing_to_terminate(service: Service) -> Message:
    """A termination that is settled at once."""
    await service.command(CREATE, "create", reply_to="create")
    await service.report(OperationFailed(worker_id=WORKER, operation_id="create", problem=PROBLEM))
    return command(TERMINATE, "terminate", reply_to="terminate")


async def _rejected(service: Service) -> Message:
    await service.launched()
    await service.command(STOP, "stop", reply_to=None)
    return command(START, "start", reply_to="start")


async def _skipped(service: Service) -> Message:
    await service.launched()
    await service.command(START, "start", reply_to="start")
    return _found(service, instance())


async def _start_of_what_is_gone(service: Service) -> Message:
    """A start that is rejected, and settles what is pending, by what its lookup found."""
    await service.launched()
    service.now += timedelta(hours=1)
    await service.command(TAGS, "tags", reply_to="tags")
    await service.command(START, "start", reply_to="start")
    return _found(service)


async def _all_at_the_end(service: Service) -> Message:
    """A report on one operation that settles them all."""
    await service.launched()
    await service.command(TAGS, "tags", reply_to="tags")
    for name in ("terminate", "again"):
        await service.command(TERMINATE, name, reply_to=name)
    return _report(OperationSucceeded(worker_id=WORKER, operation_id="terminate"))


async def _launch_failed_while_terminated(service: Service) -> Message:
    await service.command(CREATE, "create", reply_to="create")
    await service.command(TERMINATE, "terminate", reply_to="terminate")
    return _report(OperationFailed(worker_id=WORKER, operation_id="create", problem=PROBLEM))


async def _observed_gone(service: Service) -> Message:
    await service.launched()
    await service.command(STOP, "stop", reply_to="stop")
    await service.command(TAGS, "tags", reply_to="tags")
    return _report(InstanceObserved(worker_id=WORKER, seen_revision=99))


async def _dead_at_birth(service: Service) -> Message:
    await service.launched(InstanceState.PENDING)
    await service.command(TAGS, "tags", reply_to="tags")
    return _report(DIED)


async def _status_of_what_is_gone(service: Service) -> Message:
    """A status update that settles what is pending, by what its lookup found."""
    await service.launched()
    service.now += timedelta(hours=1)
    await service.command(STOP, "stop", reply_to="stop")
    await service.command(STATUS, "status", reply_to="status")
    return _found(service)


def _found(service: Service, seen: Ec2Instance | None = None) -> Message:
    request = LookupRequested.model_validate_json(service.outbox.on(INTERNAL_EXCHANGE.name)[-1].body)
    found = LookupAnswered(
        origin=request.origin, lookup=request.lookup, looked_up=LookupResult(instance=seen)
    )
    return _report(found)


DIED = InstanceObserved(
    worker_id=WORKER,
    seen_revision=99,
    instance=instance(InstanceState.TERMINATED, state_reason=StateReason(code="Server.InternalError")),
)


async def test_who_was_answered_that_it_is_launched_is_answered_again_when_it_never_ran(service: Service):
    await service.command(CREATE, "create", correlation_id="c-1")
    launched = OperationSucceeded(
        worker_id=WORKER, operation_id="create", instance=instance(InstanceState.PENDING)
    )
    await service.report(launched)
    for _ in range(2):  # and its repetition
        assert await service.handler.on_report(_report(DIED)) == Ack()
    first, *others = service.outbox.results()
    assert (first.outcome, {each.outcome for each in others}) == ("succeeded", {"failed"})
    assert {each.correlation_id for each in service.outbox.sent} == {"c-1"}
    assert await service.command(CREATE, "create") == Ack()
    assert service.outbox.results()[-1] == others[0]


async def test_whose_launch_was_not_answered_before_its_instance_died_is_answered_all_the_same(
    service: Service,
):
    await service.command(CREATE, "create")
    launched = OperationSucceeded(
        worker_id=WORKER, operation_id="create", instance=instance(InstanceState.PENDING)
    )

    async def breaks(_: Outgoing, /) -> None:
        raise BusUnavailableError("planted")

    publish, service.publish = service.publish, breaks
    with pytest.raises(BusUnavailableError):
        await service.report(launched, "launched")
    service.publish = publish
    assert await service.handler.on_report(_report(DIED)) == Ack()
    assert await service.report(launched, "launched") == Ack()
    assert [each.outcome for each in service.outbox.results()] == ["failed"]


Case = Callable[[Service], Awaitable[Message]]
CASES: dict[Case, set[str]] = {
    _superseded: {"start"},
    _nothing_to_terminate: {"terminate"},
    _rejected: {"start"},
    _skipped: {"start"},
    _start_of_what_is_gone: {"tags", "start"},
    _all_at_the_end: {"tags", "terminate", "again"},
    _launch_failed_while_terminated: {"create", "terminate"},
    _observed_gone: {"stop", "tags"},
    _dead_at_birth: {"tags"},
    _status_of_what_is_gone: {"stop", "status"},
}
"""Each with those who must be answered when its message is done."""


async def _deliver(service: Service, message: Message) -> Any:
    handle = service.handler.on_report if "report" in message.type else service.handler.on_command
    return await handle(message)


def _answered(service: Service) -> set[str]:
    """The addresses that have a reply: always the same one, however often, but for a status update's."""
    addresses = {
        each.routing_key.removeprefix(GIVEN) for each in service.outbox.sent if each.exchange is None
    }
    for address in addresses:
        first, *others = service.outbox.results(address)
        assert address == "status" or others == [first] * len(others)
        assert first.command_id == address  # each caller of this module listens where its command's name says
    return addresses


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.strip("_"))
async def test_a_reply_that_does_not_get_out_is_sent_by_the_next_delivery(service: Service, case: Case):
    message = await case(service)
    before = _answered(service)
    assert not before & CASES[case]
    publish, broken_at = service.outbox, 0
    while True:
        number = 0

        async def breaks(outgoing: Outgoing, /) -> None:
            nonlocal number
            number += 1
            if number == broken_at + 1:  # noqa: B023 - called within this round
                raise BusUnavailableError("planted")
            await publish(outgoing)

        service.publish = breaks
        if number <= broken_at:
            try:
                verdict = await _deliver(service, replace(message, redelivered=broken_at > 0))
            except BusUnavailableError:
                broken_at += 1
                continue
        break
    assert verdict == Ack()
    assert broken_at == len(CASES[case])
    assert _answered(service) - before == CASES[case]


@pytest.mark.parametrize("late", [False, True], ids=["committed and the answer lost", "committed late"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.strip("_"))
async def test_replies_are_sent_whatever_becomes_of_an_append(
    service: Service, case: Case, late: bool, monkeypatch: pytest.MonkeyPatch
):
    """``late``: the append is committed while the next delivery has decided, and before it appends."""
    message = await case(service)
    append = service.store.append
    coming: list[Any] = []
    lost = 0

    async def loses(stream: str, *arguments: Any, **options: Any) -> int:
        nonlocal lost
        if coming and coming[0][0] == stream:
            _, held, held_options = coming.pop()
            await append(stream, *held, **held_options)
            return await append(stream, *arguments, **options)
        if stream in done:
            return await append(stream, *arguments, **options)
        done.add(stream)
        lost += 1
        if late:
            coming.append((stream, arguments, options))
        else:
            await append(stream, *arguments, **options)
        raise StoreUnavailableError("planted")

    done: set[str] = set()
    monkeypatch.setattr(service.store, "append", loses)
    for _ in range(9):
        try:
            verdict = await _deliver(service, replace(message, redelivered=True))
        except StoreUnavailableError:
            continue
        break
    assert verdict == Ack()
    assert lost == 1
    assert _answered(service) >= CASES[case]


async def _append_held_back(
    service: Service, message: Message, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Awaitable[int]]:
    """Deliver the message, whose one append gets no answer; calling what is returned commits it."""
    append = service.store.append
    held: list[Any] = []

    async def holds(*arguments: Any, **options: Any) -> int:
        held.append((arguments, options))
        raise StoreUnavailableError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(service.store, "append", holds)
        with pytest.raises(StoreUnavailableError):
            await _deliver(service, message)
    [(arguments, options)] = held
    return lambda: append(*arguments, **options)


async def test_what_a_status_update_settled_late_is_answered_though_it_was_itself_answered_meanwhile(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    message = await _status_of_what_is_gone(service)
    held = await _append_held_back(service, message, monkeypatch)
    running = json.loads(message.body) | {"finding": {"instance": instance().model_dump(mode="json")}}
    other = replace(message, body=json.dumps(running).encode(), message_id="other")
    assert await _deliver(service, other) == Ack()  # the same command's other lookup found it running
    await held()
    assert await _deliver(service, replace(message, attempt=1)) == Ack()
    assert _answered(service) >= {"stop", "status"}


async def test_an_append_that_comes_later_than_the_next_delivery_is_out_of_date(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    message = await _observed_gone(service)
    held = await _append_held_back(service, message, monkeypatch)
    assert await _deliver(service, replace(message, attempt=1)) == Ack()
    with pytest.raises(WrongExpectedVersionError):
        await held()
    assert _answered(service) >= {"stop", "tags"}


async def test_a_caller_that_refuses_its_reply_keeps_nobody_elses(service: Service):
    message = await _all_at_the_end(service)
    publish = service.outbox

    async def refused(outgoing: Outgoing, /) -> None:
        if outgoing.routing_key == queue_of("tags"):
            raise CallerRefusesError("its queue is full")
        await publish(outgoing)

    service.publish = refused
    with pytest.raises(CallerRefusesError):
        await _deliver(service, message)
    assert _answered(service) >= {"terminate", "again"}


async def test_the_sender_of_a_pending_command_who_repeats_it_from_there_need_not_wait(service: Service):
    await service.command(CREATE, "create", correlation_id="c-1")
    assert await service.command(CREATE, "create", correlation_id="c-1") == Ack()


async def test_a_reply_goes_to_the_address_on_record_and_to_the_repetitions_own(service: Service):
    await service.launched()
    await service.command(START, "start", reply_to="first")
    assert await _deliver(service, _found(service, instance())) == Ack()
    assert await service.command(START, "start", reply_to="second") == Ack()
    assert service.outbox.results("second") == service.outbox.results("first")[:1]


async def test_a_token_that_was_valid_when_the_command_came_is_valid_for_its_retries(service: Service):
    key, came = b"k" * 32, service.now
    users = {"portal": frozenset({"*"})}
    service.handler._access = Access(enforced=True, users=users, delegates=frozenset({"portal"}), keys=(key,))
    token = token_for(key, CREATE, "create", actor="ann", user="portal", expires=came + timedelta(minutes=1))
    service.now += timedelta(hours=1)
    sent: dict[str, Any] = {"user_id": "portal", "headers": {TOKEN_HEADER: token}}
    assert isinstance(await service.command(CREATE, "create", **sent), DeadLetter)
    assert await service.command(CREATE, "create", **sent, received_at=came, attempt=1) == Ack()


async def test_who_was_authorized_is_not_judged_again_when_the_token_has_run_out(service: Service):
    key = b"k" * 32
    service.handler._access = Access(
        enforced=True,
        users={"portal": frozenset({"*"}), "other": frozenset({"*"})},
        delegates=frozenset({"portal", "other"}),
        keys=(key,),
    )
    token = token_for(
        key, CREATE, "create", actor="ann", user="portal", expires=service.now + timedelta(minutes=1)
    )
    headers = {TOKEN_HEADER: token}
    service.outbox.broken = 0
    assert await service.command(CREATE, "create", user_id="portal", headers=headers) == Ack()
    service.now += timedelta(hours=1)
    again: dict[str, Any] = {"headers": headers, "reply_to": "elsewhere"}
    await service.report(OperationSucceeded(worker_id=WORKER, operation_id="create", instance=instance()))
    assert await service.command(CREATE, "create", user_id="portal", attempt=3, **again) == Ack()
    assert [each.outcome for each in service.outbox.results("elsewhere")] == ["succeeded"]
    for user, body in (("other", CREATE), ("portal", CREATE.model_copy(update={"name": "else"}))):
        assert isinstance(await service.command(body, "create", user_id=user, **again), DeadLetter)
    assert service.outbox.results("elsewhere")[-1].problem.code is ProblemCode.UNAUTHORIZED
