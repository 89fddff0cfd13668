"""Dead letters are edited: one edit is one command, and the sender is answered."""

import asyncio
import json
from uuid import UUID, uuid4

import aio_pika
import pytest

from cml_contracts.deadletters import (
    DeadLetterDetails,
    DeadLetterState,
    DiscardDeadLetter,
    EditDeadLetter,
    RedriveDeadLetter,
)
from cml_workers.bus.headers import DEATH_HEADER, QUEUE_HEADER
from cml_workers.bus.port import Ack, Message
from cml_workers.bus.topology import LIFECYCLE_REPORTS, PROJECTOR_QUERIES
from cml_workers.domain.policy import Access
from support.buses import command
from support.dead_letter_service import CREATE, START, Service, into_a_creation, nothing, types, until
from support.deadletters import dead_letters
from support.given import create


async def test_an_edited_command_keeps_its_id_where_nobody_used_it_and_its_old_body_in_the_history(
    service: Service,
):
    await service.consume()
    sent = await service.send({"worker_id": str(uuid4()), "colour": "red"}, "start")
    await service.reply(sent)
    letter = await service.the_letter()
    body = json.dumps({"worker_id": str(uuid4())})
    result = await service.ask(
        EditDeadLetter(dead_letter_id=letter.id, body=body, by="ann", reason="no colours")
    )
    assert (result.data["state"], result.data["message_id"]) == ("edited", "start")
    reply = await service.reply(sent, 2)
    assert (reply["command_id"], reply["problem"]["code"]) == ("start", "WorkerNotFound")
    now = await service.until(letter, body=body)
    outcome = now.history[-1]
    assert (outcome.what, outcome.by, outcome.replaced_body) == ("edited", "ann", letter.body)
    assert (outcome.replaced_type, outcome.message_id) == (START, "start")


async def test_an_edited_creation_whose_id_is_bound_gets_a_new_one_and_its_sender_is_answered(
    service: Service,
):
    service.fail(after=False)
    await service.consume()
    sent = await service.send(CREATE, "used", kind="cml.worker.create.v1", correlation_id="")
    assert sent
    letter = await service.the_letter()
    service.let(Access())
    body = json.dumps({"worker_id": str(uuid4())})
    edit = EditDeadLetter(dead_letter_id=letter.id, type=START, body=body)
    result = await service.ask(edit)
    new_id = result.data["message_id"]
    assert UUID(new_id) != UUID(int=0)
    assert new_id != "used"
    reply = await service.reply(sent)
    assert (reply["command_id"], reply["problem"]["code"]) == (new_id, "WorkerNotFound")
    again = await service.ask(edit)
    assert again.problem
    assert (again.problem.code, "in its queue again" in again.problem.detail) == ("Conflict", True)


@pytest.mark.parametrize("decided", [True, False])
async def test_a_command_that_its_sender_has_fixed_meanwhile_cannot_be_edited_into_a_second_one(
    service: Service, decided: bool
):
    await service.consume()
    await service.send({**CREATE, "colour": "red"}, "create", kind="cml.worker.create.v1")
    letter = await service.the_letter()
    if not decided:
        service.fail(after=False)
    await service.send(CREATE, "create", kind="cml.worker.create.v1")
    if decided:
        await until(lambda: types(service), ["worker.created", "worker.launch_requested"])
    else:
        await dead_letters(service.operator, 1, cause="HandlerFailed")
    other = json.dumps({**CREATE, "worker_id": str(uuid4())})
    result = await service.ask(EditDeadLetter(dead_letter_id=letter.id, body=other))
    assert result.problem
    assert result.problem.code == "Conflict"
    assert ("was decided" if decided else "another command") in result.problem.detail


@pytest.mark.parametrize("decided", [True, False])
async def test_under_an_id_that_another_user_used_first_the_senders_own_command_counts(
    service: Service, decided: bool
):
    users = {"ann": frozenset({"*"}), "guest": frozenset({"*"})}
    service.let(Access(enforced=True, users=users))
    of_ann = command(create(worker_id=uuid4(), created_by="ann"), "c", user_id="ann", reply_to=None)
    assert await service.lifecycle.on_command(of_ann) == Ack()
    await service.consume()
    fixed = {**CREATE, "created_by": "guest"}
    await service.send({**fixed, "colour": "red"}, "c", kind="cml.worker.create.v1")
    letter = await service.the_letter()
    if decided:
        await service.send(fixed, "c", kind="cml.worker.create.v1")
        await until(lambda: types(service), ["worker.created", "worker.launch_requested"])
    result = await service.ask(EditDeadLetter(dead_letter_id=letter.id, body=json.dumps(fixed)))
    if decided:
        assert result.problem
        assert (result.problem.code, "was decided" in result.problem.detail) == ("Conflict", True)
    else:
        assert str(UUID(result.data["message_id"])) == result.data["message_id"]
        await until(lambda: types(service), ["worker.created", "worker.launch_requested"])


async def test_a_command_without_an_id_gets_one_and_an_unknown_type_can_be_corrected(service: Service):
    await service.consume()
    sent = await service.send({"worker_id": str(uuid4())}, kind="cml.worker.strat.v1", message_id=" ")
    await service.reply(sent)
    letter = await service.the_letter()
    result = await service.ask(EditDeadLetter(dead_letter_id=letter.id, type=START))
    assert str(UUID(result.data["message_id"])) == result.data["message_id"]
    assert (await service.reply(sent, 2))["problem"]["code"] == "WorkerNotFound"


async def test_two_who_edit_it_at_once_make_one_command(service: Service):
    await service.consume()
    await service.send({**CREATE, "colour": "red"}, kind="cml.worker.create.v1", message_id=" ")
    letter = await service.the_letter()
    workers = [str(uuid4()) for _ in range(4)]
    edits = [into_a_creation(letter, worker_id) for worker_id in workers]

    async def made() -> list[int]:
        return sorted([len(await types(service, worker_id)) for worker_id in workers])

    results = await asyncio.gather(*(service.ask(edit) for edit in edits))
    assert sorted(result.outcome for result in results) == ["rejected"] * 3 + ["succeeded"]
    await until(made, [0, 0, 0, 2])
    discarded = await service.ask(DiscardDeadLetter(dead_letter_id=letter.id, reason="late"))
    assert discarded.problem
    assert discarded.problem.code == "Conflict"


async def test_an_edit_that_was_not_recorded_and_another_one_make_one_command(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    await service.consume()
    await service.send({**CREATE, "colour": "red"}, kind="cml.worker.create.v1", message_id=" ")
    letter = await service.the_letter()
    workers = [str(uuid4()) for _ in range(2)]
    edits = [into_a_creation(letter, worker_id) for worker_id in workers]
    with monkeypatch.context() as patch:
        patch.setattr(service.archive, "redriven", nothing)
        await service.ask(edits[0])
    await until(lambda: types(service, workers[0]), ["worker.created", "worker.launch_requested"])
    await service.ask(edits[1])
    now = await service.until(letter, cause="DuplicateCommand", state=DeadLetterState.WAITING)
    assert workers[1] in now.body
    assert await types(service, workers[0]) == ["worker.created", "worker.launch_requested"]
    assert await types(service, workers[1]) == []


async def test_an_edited_one_that_dies_again_is_the_same_one_with_its_new_body(service: Service):
    await service.consume()
    await service.send(b"{", "m-1")
    letter = await service.the_letter()
    await service.ask(EditDeadLetter(dead_letter_id=letter.id, body="[]"))
    now = await service.until(letter, deaths=2, redrives=1)
    assert (now.body, now.state) == ("[]", DeadLetterState.WAITING)
    assert (await service.the_letter()).id == letter.id


async def into_the_reports(service: Service, user: str | None) -> DeadLetterDetails:
    """A letter of a queue within the system, published by this user."""
    message = Message(
        body=b"{}",
        type="stray",
        message_id=str(uuid4()),
        user_id=user,
        headers={QUEUE_HEADER: LIFECYCLE_REPORTS.name, DEATH_HEADER: str(uuid4())},
    )
    await service.letters.collect(message)
    return await service.the_letter(queue=LIFECYCLE_REPORTS.name)


@pytest.mark.parametrize(("user", "may"), [("guest", True), ("cml-ec2-adapter", True), ("mallory", False)])
async def test_what_is_within_the_system_is_redriven_unchanged_if_a_role_of_ours_said_it(
    service: Service, user: str, may: bool
):
    """``guest`` is whom our roles connect as here."""
    service.letters._roles |= {"cml-ec2-adapter"}
    letter = await into_the_reports(service, user)
    edited = await service.ask(EditDeadLetter(dead_letter_id=letter.id, body="[]"))
    assert edited.problem
    assert (edited.problem.code, "nobody edits" in edited.problem.detail) == ("Conflict", True)
    redriven = await service.ask(RedriveDeadLetter(dead_letter_id=letter.id))
    assert (redriven.problem is None) is may
    if redriven.problem:
        assert "'mallory' is none of them" in redriven.problem.detail
    await drained(service, LIFECYCLE_REPORTS.name)
    discarded = await service.ask(DiscardDeadLetter(dead_letter_id=letter.id, reason="a test"))
    assert (discarded.problem is None) is not may


async def test_an_edited_query_is_its_operators_too(service: Service):
    query = Message(
        body=b"{",
        type="cml.worker.get.v1",
        message_id="q",
        user_id="portal",
        headers={QUEUE_HEADER: PROJECTOR_QUERIES.name, DEATH_HEADER: "d"},
    )
    await service.letters.collect(query)
    letter = await service.the_letter(queue=PROJECTOR_QUERIES.name)
    assert letter.user == "portal"
    result = await service.ask(EditDeadLetter(dead_letter_id=letter.id, body="{}"))
    assert result.data["user"] == "guest"
    await drained(service, PROJECTOR_QUERIES.name)


async def drained(service: Service, queue: str) -> None:
    """Nobody consumes it here."""
    async with await aio_pika.connect(service.url) as connection:
        await (await (await connection.channel()).get_queue(queue)).purge()
