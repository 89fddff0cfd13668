"""What somebody can do with a token that was made for another: nothing. They see it, e.g. as they share the sender's broker."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from cml_contracts.commands import StopCMLWorker, TerminateCMLWorker, UpdateCMLWorkerTags
from cml_contracts.results import ProblemCode
from cml_contracts.tokens import TOKEN_HEADER
from cml_workers.bus.port import Ack, DeadLetter
from cml_workers.bus.rabbit.messages import to_dead_letters
from cml_workers.bus.topology import LIFECYCLE_COMMANDS
from cml_workers.deadletters.letter import again, letter_of
from cml_workers.domain.history import Redrive
from cml_workers.domain.policy import Access
from support.buses import command, delivered, token_for
from support.service import CREATE, WORKER, Service

KEY = b"k" * 32
ACCESS = Access(
    enforced=True,
    users={"portal": frozenset({"*"}), "other": frozenset({"*"})},
    delegates=frozenset({"portal", "other"}),
    keys=(KEY,),
)
FOR_WHOM_THE_TOKEN_SAYS = StopCMLWorker(worker_id=WORKER)
STOP = StopCMLWorker(worker_id=WORKER, stopped_by="ann")


@pytest.fixture
async def guarded(service: Service) -> Service:
    await service.launched()
    service.handler._access = ACCESS
    service.outbox.sent.clear()
    return service


@pytest.mark.parametrize(
    ("stolen_for", "user"),
    [
        (TerminateCMLWorker(worker_id=WORKER, terminated_by="ann"), "portal"),
        (StopCMLWorker(worker_id=uuid4(), stopped_by="ann"), "portal"),
        (UpdateCMLWorkerTags(worker_id=WORKER, tags={"a": "1"}, updated_by="ann"), "portal"),
        (STOP.model_copy(update={"reason": "another one"}), "portal"),
        (STOP, "other"),
    ],
    ids=["another command", "another worker", "other fields", "another reason", "another delegate"],
)
async def test_a_token_is_for_one_command_of_one_sender(guarded: Service, stolen_for: Any, user: str):
    """Before: whatever came under the command id was done in Ann's name, by any delegate, whose events then bore her name."""
    expires = guarded.now + timedelta(minutes=1)
    token = token_for(KEY, STOP, "c", actor="ann", user="portal", expires=expires)
    before = await guarded.types()
    sent: dict[str, Any] = {"user_id": user, "headers": {TOKEN_HEADER: token}}
    verdict = await guarded.command(stolen_for, "c", **sent)
    assert isinstance(verdict, DeadLetter)
    assert verdict.cause == ProblemCode.UNAUTHORIZED
    assert await guarded.types() == before
    # And the command that it was made for is none the worse for it.
    assert await guarded.command(STOP, "c", user_id="portal", headers={TOKEN_HEADER: token}) == Ack()
    assert (await guarded.types())[-1] == "worker.stop_requested"


@pytest.mark.parametrize(
    "header",
    ["v2." + "x" * 5000, "", 7, b"v2.x.y", ["v2.x.y"]],
    ids=["too long", "empty", "a number", "bytes", "a list"],
)
async def test_a_command_with_what_is_no_token_is_not_done_in_its_senders_own_name(
    guarded: Service, header: Any
):
    """Before: it was, as if nobody had been named, so its events had an actor who had not asked for it."""
    unnamed, before = StopCMLWorker(worker_id=WORKER), await guarded.types()
    verdict = await guarded.command(unnamed, "c", user_id="portal", headers={TOKEN_HEADER: header})
    assert isinstance(verdict, DeadLetter)
    assert verdict.cause == ProblemCode.UNAUTHORIZED
    assert await guarded.types() == before
    assert await guarded.command(unnamed, "c", user_id="portal") == Ack()


async def test_a_redriven_command_that_had_a_token_is_not_its_senders_own(guarded: Service):
    """Before: a dead letter keeps no token, so what was denied as Ann's, her token having expired, was done as the delegate's."""
    unnamed = StopCMLWorker(worker_id=WORKER)
    expires = guarded.now - timedelta(minutes=1)
    token = token_for(KEY, unnamed, "c", actor="ann", user="portal", expires=expires)
    message = command(unnamed, "c", user_id="portal", headers={TOKEN_HEADER: token})
    verdict, before = await guarded.handler.on_command(message), await guarded.types()
    assert isinstance(verdict, DeadLetter)
    by_us: dict[str, Any] = {"queue": LIFECYCLE_COMMANDS, "own_user": "cml-lifecycle"}
    for died in (delivered(to_dead_letters(message, message.headers, verdict, **by_us)), message):
        letter = letter_of(died)
        assert token not in str(letter)
        redriven = again(letter, 1, "cml-projector", Redrive(edited=False, user="cml-operator"))
        verdict = await guarded.handler.on_command(delivered(redriven, user_id="portal"))
        assert isinstance(verdict, DeadLetter)
        assert verdict.cause == ProblemCode.UNAUTHORIZED
    assert await guarded.types() == before


async def test_a_token_that_expired_while_we_were_away_can_be_replaced_under_the_same_id(service: Service):
    """The queue held the command back for longer than its token was valid: the sender is asked for another one."""
    service.handler._access = ACCESS
    expires = service.now + timedelta(minutes=1)
    late = token_for(KEY, CREATE, "create", actor="ann", user="portal", expires=expires)
    service.now += timedelta(hours=1)
    verdict = await service.command(CREATE, "create", user_id="portal", headers={TOKEN_HEADER: late})
    assert isinstance(verdict, DeadLetter)
    (result,) = service.outbox.results()
    assert result.problem
    assert result.problem.retryable
    assert "with another token" in result.problem.detail
    expires = service.now + timedelta(minutes=1)
    fresh = token_for(KEY, CREATE, "create", actor="ann", user="portal", expires=expires)
    assert await service.command(CREATE, "create", user_id="portal", headers={TOKEN_HEADER: fresh}) == Ack()
    assert await service.types() == ["worker.created", "worker.launch_requested"]


async def test_whoever_sends_anothers_command_again_gets_none_of_its_result(guarded: Service):
    """Before: the same id and body, from any user with the right, were answered with the other's result."""
    create = CREATE.model_copy(update={"worker_id": uuid4(), "created_by": "portal"})
    assert await guarded.command(create, "theirs", user_id="portal") == Ack()
    stolen = create.model_copy(update={"created_by": "other"})
    for body, token in ((stolen, None), (create, "portal")):
        expires = guarded.now + timedelta(minutes=1)
        headers = (
            {TOKEN_HEADER: token_for(KEY, body, "theirs", actor=token, user="other", expires=expires)}
            if token
            else {}
        )
        sent: dict[str, Any] = {"user_id": "other", "reply_to": "other", "headers": headers}
        await guarded.command(body, "theirs", **sent)
        result = guarded.outbox.results("other")[-1]
        assert (result.outcome, result.data) == ("rejected", None)
    assert await guarded.command(create, "theirs", user_id="portal") == Ack()


@pytest.mark.parametrize("died", ["by us", "by the broker"])
@pytest.mark.parametrize("key", [KEY, b"x" * 32], ids=["expired", "forged"])
async def test_a_command_whose_token_is_gone_is_not_done_in_its_senders_own_name(
    guarded: Service, key: bytes, died: str
):
    """Before: tokens are not archived, so what had been denied was done when an operator redrove it, and its events named the delegate."""
    expires = guarded.now - timedelta(minutes=1)
    token = token_for(key, FOR_WHOM_THE_TOKEN_SAYS, "c", actor="ann", user="portal", expires=expires)
    sent = command(FOR_WHOM_THE_TOKEN_SAYS, "c", user_id="portal", headers={TOKEN_HEADER: token})
    before = await guarded.types()
    verdict = await guarded.handler.on_command(sent)
    assert isinstance(verdict, DeadLetter)
    dead = to_dead_letters(sent, sent.headers, verdict, queue=LIFECYCLE_COMMANDS, own_user="cml-lifecycle")
    letter = letter_of(delivered(dead, user_id="portal") if died == "by us" else sent)
    assert token not in str(letter)
    redriven = again(letter, 1, "cml-projector", Redrive(edited=False, user="desk"))
    verdict = await guarded.handler.on_command(delivered(redriven, user_id="portal"))
    assert isinstance(verdict, DeadLetter)
    assert (verdict.cause, "send the command again" in verdict.reason) == (ProblemCode.UNAUTHORIZED, True)
    assert await guarded.types() == before
