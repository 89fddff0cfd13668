"""Requests of operators: lists, rights, and what is wrong with a request."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from cml_contracts.deadletters import (
    DeadLetterPage,
    DeadLetterState,
    DeadLetterView,
    DiscardDeadLetter,
    EditDeadLetter,
    GetDeadLetter,
    ListDeadLetters,
    OperatorRequest,
    RedriveDeadLetter,
)
from cml_contracts.results import ProblemCode
from cml_workers.bus.topology import LIFECYCLE_COMMANDS, PROJECTOR_OPERATOR
from cml_workers.domain.policy import Access
from support.dead_letter_service import START, Service
from support.deadletters import dead_letters


async def test_lists_are_filtered_counted_and_paged(service: Service):
    await service.consume()
    for number in range(5):
        await service.send(b"{", f"broken-{number}")
    await service.send(b"{}", "unknown", kind="cml.worker.explode.v1")
    await dead_letters(service.operator, 6)

    async def listed(**conditions: Any) -> DeadLetterPage:
        result = await service.ask(ListDeadLetters.model_validate(conditions))
        return DeadLetterPage.model_validate(result.data)

    whole = await listed()
    assert [(each.cause, each.queue, each.count) for each in whole.counts] == [
        ("ValidationFailed", LIFECYCLE_COMMANDS.name, 6)
    ]
    assert [each.last_died_at for each in whole.dead_letters] == sorted(
        (each.last_died_at for each in whole.dead_letters), reverse=True
    )
    assert len((await listed(type=START)).dead_letters) == 5
    assert len((await listed(reason_part="NOT KNOWN")).dead_letters) == 1
    assert len((await listed(reason_part="%")).dead_letters) == 0
    assert len((await listed(queue="cml.ec2.wakes")).dead_letters) == 0
    assert len((await listed(state="waiting", cause="ValidationFailed")).dead_letters) == 6
    assert len((await listed(state="discarded")).dead_letters) == 0
    now = datetime.now(UTC)
    assert len((await listed(since=now - timedelta(hours=1))).dead_letters) == 6
    assert len((await listed(since=now + timedelta(hours=1))).dead_letters) == 0
    found: list[DeadLetterView] = []
    cursor = None
    for _ in range(3):
        page = await listed(limit=2, cursor=cursor)
        found += page.dead_letters
        cursor = page.next_cursor
        assert page.counts == whole.counts
    assert cursor is None
    assert found == list(whole.dead_letters)
    wrong = await service.ask(ListDeadLetters(cursor="made up"))
    assert wrong.problem
    assert "cursor" in wrong.problem.detail
    assert wrong.problem.code is ProblemCode.VALIDATION_FAILED


async def test_only_an_operator_may(service: Service):
    await service.consume()
    await service.send(b"{", "m-1")
    letter = await service.the_letter()
    service.letters._access = Access(enforced=True, users={"guest": frozenset({"*"})})
    requests: list[OperatorRequest] = [
        ListDeadLetters(),
        GetDeadLetter(dead_letter_id=letter.id),
        RedriveDeadLetter(dead_letter_id=letter.id),
        EditDeadLetter(dead_letter_id=letter.id, body="[]"),
        DiscardDeadLetter(dead_letter_id=letter.id, reason="x"),
    ]
    for request in requests:
        result = await service.ask(request)
        assert result.problem
        assert result.problem.code == "Unauthorized"
        assert "CML_OPERATOR_USERS" in result.problem.detail
    service.letters._access = Access(enforced=True, operators=frozenset({"guest"}))
    await service.until(letter, state=DeadLetterState.WAITING, deaths=1, redrives=0)
    tried = await dead_letters(service.operator, 5, queue=PROJECTOR_OPERATOR.name)
    assert {each.cause for each in tried} == {"Unauthorized"}


async def test_a_request_whose_reply_would_go_to_a_queue_of_ours_is_not_done(service: Service):
    await service.consume()
    await service.send(b"{", "m-1")
    letter = await service.the_letter()
    body = DiscardDeadLetter(dead_letter_id=letter.id, reason="x").model_dump_json().encode()
    await service.client.publish(
        "cml.operator", DiscardDeadLetter.TYPE, body, reply_to="cml.lifecycle.reports"
    )
    refused = await dead_letters(service.operator, queue=PROJECTOR_OPERATOR.name)
    assert [each.cause for each in refused] == ["ValidationFailed"]
    await service.until(letter, state=DeadLetterState.WAITING, deaths=1, redrives=0)


async def test_a_broken_request_and_an_unknown_id_are_answered(service: Service):
    sent = await service.client.publish("cml.operator", "cml.deadletter.get.v1", b"{}")
    assert (await service.reply(sent))["problem"]["code"] == "ValidationFailed"
    for request in (GetDeadLetter(dead_letter_id=uuid4()), RedriveDeadLetter(dead_letter_id=uuid4())):
        result = await service.ask(request)
        assert result.problem
        assert result.problem.code == "DeadLetterNotFound"
