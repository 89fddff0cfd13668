"""Dead letters are redriven: nothing is done twice, and nothing is lost to deduplication."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import aio_pika
import pytest

from cml_contracts.deadletters import (
    DeadLetterState,
    DiscardDeadLetter,
    RedriveDeadLetter,
)
from cml_contracts.tokens import TOKEN_HEADER
from cml_workers.bus.port import DeadLetter, Message, Retry, Verdict
from cml_workers.bus.topology import DELIVERY_LIMIT, LIFECYCLE_COMMANDS
from cml_workers.bus.trust import Trust
from cml_workers.domain.policy import Access
from cml_workers.process.registry import ROLES
from support.dead_letter_service import CREATE, Service, types, until


async def test_what_the_broker_dead_lettered_is_archived_and_redriven_with_cleared_counters(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    """Also if the archive is down at first: the broker's own account of a death does not survive a retry."""
    collected: list[Message] = []
    collect = service.letters.collect

    async def second(message: Message) -> Verdict:
        collected.append(message)
        return await collect(message) if message.attempt else Retry()

    monkeypatch.setattr(service.letters, "collect", second)
    await service.send(
        {"worker_id": str(uuid4())},
        "poison",
        headers={"x-cml-reason": "made up", TOKEN_HEADER: "s3cret", "mark": "x"},
    )
    async with await aio_pika.connect(service.url) as connection:
        queue = await (await connection.channel()).get_queue(LIFECYCLE_COMMANDS.name)
        for _ in range(DELIVERY_LIMIT + 1):
            async with asyncio.timeout(60):
                while (delivered := await queue.get(fail=False)) is None:
                    await asyncio.sleep(0.02)
            await delivered.reject(requeue=True)
    letter = await service.the_letter()
    assert (letter.queue, letter.cause, letter.user) == (LIFECYCLE_COMMANDS.name, "DeliveryLimit", "guest")
    assert (letter.deliveries, letter.deaths) == (DELIVERY_LIMIT + 1, 1)
    assert [(each.attempt, each.deliveries) for each in collected] == [(0, 1), (1, 1)]
    assert "made up" not in letter.reason
    assert "s3cret" not in letter.model_dump_json()
    await service.consume()
    assert (await service.ask(RedriveDeadLetter(dead_letter_id=letter.id))).problem is None
    assert (await service.reply(letter.correlation_id or ""))["problem"]["code"] == "WorkerNotFound"
    (message,) = service.seen
    assert (message.attempt, message.deliveries, message.user_id) == (0, 1, "guest")
    assert message.headers["mark"] == "x"
    assert not [name for name in message.headers if name.startswith(("x-death", "x-first-death"))]


async def test_a_command_with_an_idempotency_record_that_was_not_decided_is_decided(service: Service):
    service.fail(after=False)
    await service.consume()
    sent = await service.send({"worker_id": str(uuid4())}, "start")
    letter = await service.the_letter()
    assert (letter.cause, letter.faults) == ("HandlerFailed", 1)
    service.let(Access())
    done = await service.ask(RedriveDeadLetter(dead_letter_id=letter.id, by="ann", reason="fixed"))
    assert done.data["state"] == "redriven"
    assert (await service.reply(sent))["problem"]["code"] == "WorkerNotFound"
    assert service.seen[-1].attempt == 0
    assert "x-cml-faults" not in service.seen[-1].headers
    now = await service.until(letter, state=DeadLetterState.REDRIVEN, redrives=1)
    outcome = now.history[-1]
    assert (outcome.what, outcome.user, outcome.by, outcome.reason) == ("redriven", "guest", "ann", "fixed")


async def test_a_command_that_was_decided_gets_its_recorded_reply_again_and_no_second_effect(
    service: Service,
):
    service.fail(after=True)
    await service.consume()
    worker_id = str(uuid4())
    sent = await service.send({"worker_id": worker_id}, "start")
    first = await service.reply(sent)
    letter = await service.the_letter()
    service.let(Access())
    await service.ask(RedriveDeadLetter(dead_letter_id=letter.id))
    assert await service.reply(sent, 2) == first
    assert await types(service, worker_id) == ["command.rejected"]


async def test_a_denied_command_is_decided_once_its_user_may_send_it(service: Service):
    service.let(Access(enforced=True, users={"portal": frozenset({"*"})}))
    await service.consume()
    sent = await service.send(CREATE, "create", kind="cml.worker.create.v1")
    assert (await service.reply(sent))["problem"]["code"] == "Unauthorized"
    letter = await service.the_letter(cause="Unauthorized")
    service.let(Access(enforced=True, users={"guest": frozenset({"*"})}))
    assert (await service.ask(RedriveDeadLetter(dead_letter_id=letter.id))).problem is None
    await until(lambda: types(service), ["worker.created", "worker.launch_requested"])
    (created, _) = await service.store.read(f"cml_worker-{CREATE['worker_id']}")
    assert json.loads(created.metadata)["user"] == "guest"


async def test_one_that_dies_again_comes_back_as_the_same_one(service: Service):
    await service.consume()
    await service.send(b"{", "m-1")
    letter = await service.the_letter()
    for number in range(1, 4):
        await service.ask(RedriveDeadLetter(dead_letter_id=letter.id))
        now = await service.until(letter, deaths=number + 1, redrives=number)
        assert now.state is DeadLetterState.WAITING
    again = await service.the_letter()
    assert again.id == letter.id
    assert sorted(each.what for each in again.history) == ["died"] * 4 + ["redriven"] * 3


async def test_a_death_that_comes_before_the_redrive_is_recorded_is_not_overwritten(service: Service):
    await service.consume()
    await service.send(b"{", "m-1")
    letter = await service.the_letter()
    kept = await service.archive.find(letter.id)
    assert kept is not None
    publish = service.letters._publish

    async def and_wait(message: Any) -> None:
        await publish(message)
        if message.routing_key == LIFECYCLE_COMMANDS.name:
            await service.until(letter, deaths=2)

    service.letters._publish = and_wait
    result = await service.ask(RedriveDeadLetter(dead_letter_id=letter.id))
    assert (result.data["state"], result.data["deaths"], result.data["redrives"]) == ("waiting", 2, 1)


async def test_what_has_no_queue_to_go_to_is_said_so(service: Service):
    async with await aio_pika.connect(service.url) as connection:
        exchange = await (await connection.channel()).get_exchange("cml.dead-letters", ensure=False)
        await exchange.publish(aio_pika.Message(b"?", type="stray", message_id="m"), "")
    letter = await service.the_letter()
    assert (letter.cause, letter.queue) == ("Unknown", "")
    result = await service.ask(RedriveDeadLetter(dead_letter_id=letter.id))
    assert result.problem
    assert "discarded" in result.problem.detail


async def test_a_discarded_one_stays_archived_and_waits_again_when_it_dies_again(service: Service):
    await service.consume()
    await service.send(b"{", "m-1")
    letter = await service.the_letter()
    result = await service.ask(
        DiscardDeadLetter(dead_letter_id=letter.id, reason="the sender will fix it", by="ann")
    )
    assert result.data["state"] == "discarded"
    assert await service.archive.waiting() == 0
    now = await service.until(letter, state=DeadLetterState.DISCARDED)
    assert (now.history[-1].what, now.history[-1].reason) == ("discarded", "the sender will fix it")
    await service.send(b"{", "m-1")
    await service.until(letter, state=DeadLetterState.WAITING, deaths=2)
    assert await service.archive.waiting() == 1


async def test_what_its_consumer_would_not_believe_is_not_redriven(service: Service):
    """It waits until the key is there, and its sender gets no reply that says it was denied."""
    service.bus._trust = Trust(
        uses={name: role.uses for name, role in ROLES.items()},
        users={"projector": frozenset({"guest"}), "lifecycle": frozenset({"cml-lifecycle"})},
        enforced=True,
    )
    service.handle = broken
    await service.consume()
    sent = await service.send({"worker_id": str(uuid4())}, reply_to=None)
    letter = await service.the_letter()
    result = await service.ask(RedriveDeadLetter(dead_letter_id=letter.id))
    assert "CML_REDRIVE_KEYS has no key of lifecycle" in (result.problem.detail if result.problem else "")
    assert (await service.the_letter(state=DeadLetterState.WAITING)).correlation_id == sent
    assert len(service.seen) == 1


async def broken(_: Message) -> Verdict:
    return DeadLetter("a bug")
