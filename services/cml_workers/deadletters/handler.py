"""Collects dead letters into the archive, and does with them what operators ask for."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Literal
from uuid import UUID, uuid5

import structlog

from cml_contracts.commands import COMMANDS, WorkerCommand
from cml_contracts.deadletters import (
    OPERATOR_REQUESTS,
    DeadLetterDetails,
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
from cml_contracts.envelope import MAX_BODY
from cml_contracts.results import OperationResult, Problem, ProblemCode
from cml_workers.bus.codec import BadMessageError, identity, read, reply, reply_address
from cml_workers.bus.port import Ack, DeadLetter, Message, Publish, UnroutableError, Verdict
from cml_workers.bus.topology import LIFECYCLE_COMMANDS
from cml_workers.deadletters.archive import Archive, Deed, Kept
from cml_workers.deadletters.letter import Letter, again, dead_letter
from cml_workers.domain.policy import Access
from cml_workers.eventstore.command_streams import fingerprint, load_claim
from cml_workers.eventstore.port import EventStore
from cml_workers.eventstore.worker_streams import load

log = structlog.get_logger(__name__)

LONGEST_REQUEST = 8 * MAX_BODY
"""Bytes: a whole body to edit, quoted as JSON."""


class RefusedError(Exception):
    """The operator's request cannot be met; says what to do instead."""

    def __init__(self, code: ProblemCode, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem.of(code, detail)


class DeadLetters:
    """The store is only read: to know whether a command's id is used up."""

    def __init__(
        self,
        *,
        archive: Archive,
        store: EventStore,
        publish: Publish,
        own_user: str,
        access: Access,
        now: Callable[[], datetime],
    ) -> None:
        self._archive = archive
        self._store = store
        self._publish = publish
        self._own_user = own_user
        self._access = access
        self._now = now
        self._doing = asyncio.Lock()

    async def collect(self, message: Message) -> Verdict:
        """Keep what came out of the dead-letter queue; it is acknowledged when it is on disk."""
        letter = dead_letter(message)
        if await self._archive.keep(letter, self._now()):
            log.warning(
                "dead letter kept", dead_letter_id=str(letter.id), queue=letter.queue, cause=letter.cause
            )
        return Ack()

    async def on_request(self, message: Message) -> Verdict:
        """Do what an operator asks for, and answer."""
        verdict: Verdict = Ack()
        try:
            request: OperatorRequest = read(message, OPERATOR_REQUESTS, limit=LONGEST_REQUEST)
            self._authorize(message.user_id)
            data = await self._answer(request, message.user_id)
            result = OperationResult(
                command_id=message.message_id, outcome="succeeded", data=data.model_dump(mode="json")
            )
        except (BadMessageError, RefusedError) as error:
            problem = error.problem
            result = OperationResult(command_id=message.message_id, outcome="rejected", problem=problem)
            if problem.code in (ProblemCode.VALIDATION_FAILED, ProblemCode.UNAUTHORIZED):
                verdict = DeadLetter(problem.detail, problem.code)
        address = reply_address(message)
        if address is not None:
            await self._publish(reply(result, address))
        return verdict

    def _authorize(self, user: str | None) -> None:
        if self._access.enforced and (user is None or user not in self._access.operators):
            raise RefusedError(
                ProblemCode.UNAUTHORIZED,
                f"user {user!r} may not deal with dead letters; CML_OPERATOR_USERS says who may",
            )

    async def _answer(
        self, request: OperatorRequest, user: str | None
    ) -> DeadLetterPage | DeadLetterDetails | DeadLetterView:
        match request:
            case ListDeadLetters():
                try:
                    return await self._archive.page(request)
                except ValueError as error:
                    raise RefusedError(
                        ProblemCode.VALIDATION_FAILED,
                        "the cursor is not one that was returned; omit it to begin again",
                    ) from error
            case GetDeadLetter():
                details = await self._archive.details(request.dead_letter_id)
                if details is None:
                    raise _unknown(request.dead_letter_id)
                return details
            case RedriveDeadLetter() | EditDeadLetter() | DiscardDeadLetter():
                async with self._doing:  # of two operators at one letter, the second sees what the first did
                    return await self._do(request, await self._find(request.dead_letter_id), user)

    async def _do(
        self, request: RedriveDeadLetter | EditDeadLetter | DiscardDeadLetter, kept: Kept, user: str | None
    ) -> DeadLetterView:
        match request:
            case RedriveDeadLetter():
                return await self._redrive(kept, kept.letter, self._deed("redriven", request, user))
            case EditDeadLetter():
                _not_on_its_way(kept, "edited")
                edited = await self._edited(kept.letter, request)
                return await self._redrive(kept, edited, self._deed("edited", request, user))
            case DiscardDeadLetter():
                _not_on_its_way(kept, "discarded")
                await self._archive.discarded(kept, self._deed("discarded", request, user))
                return (await self._find(request.dead_letter_id)).view

    async def _find(self, dead_letter_id: UUID) -> Kept:
        kept = await self._archive.find(dead_letter_id)
        if kept is None:
            raise _unknown(dead_letter_id)
        return kept

    def _deed(
        self,
        what: Literal["redriven", "edited", "discarded"],
        request: RedriveDeadLetter | EditDeadLetter | DiscardDeadLetter,
        user: str | None,
    ) -> Deed:
        return Deed(what, self._now(), user, request.by, request.reason)

    async def _redrive(self, kept: Kept, letter: Letter, deed: Deed) -> DeadLetterView:
        # Published first and recorded then: if we die in between, it waits here although it is on its way, which
        # is harmless; the other way round it would be nowhere.
        if not letter.queue:
            raise RefusedError(
                ProblemCode.CONFLICT, "nobody knows in which queue it died; it can only be discarded"
            )
        try:
            await self._publish(again(letter, kept.next_redrive, self._own_user))
        except UnroutableError as error:
            raise RefusedError(
                ProblemCode.CONFLICT, f"queue {letter.queue!r} is gone; declare it again, or discard this"
            ) from error
        await self._archive.redriven(kept, letter, deed)
        log.info(deed.what, dead_letter_id=str(letter.id), queue=letter.queue, user=deed.user, by=deed.by)
        return (await self._find(letter.id)).view

    async def _edited(self, letter: Letter, request: EditDeadLetter) -> Letter:
        body = letter.body if request.body is None else request.body.encode()
        edited = replace(letter, body=body, type=request.type or letter.type)
        if letter.queue != LIFECYCLE_COMMANDS.name or await self._keeps_its_id(letter):
            return edited
        return replace(
            edited,
            # One id for each death: if we die before this is recorded, another edit cannot make a second command.
            message_id=str(uuid5(letter.id, letter.death)),
            # By this the sender knows its reply, and the audit what the new command came from.
            correlation_id=letter.correlation_id or letter.message_id,
        )

    async def _keeps_its_id(self, letter: Letter) -> bool:
        """Whether the command can keep its id with another body. Raises RefusedError if it must not be edited.

        Keeping it is best: should its sender still repeat it, mended, one of the two is a repetition. It cannot if
        there is no valid one, or if it was bound to the old body, which then was not decided.
        """
        message = Message(body=letter.body, type=letter.type, message_id=letter.message_id)
        try:
            command_id = identity(message)
        except BadMessageError:
            return False
        claim = await load_claim(self._store, command_id)
        if claim is None:
            return True
        worker = await load(self._store, claim.worker_id)
        decided = claim.answered or command_id in worker.operations
        if not decided and _fingerprint(message) == claim.fingerprint:
            return False
        what = "was decided" if decided else "belongs to another command of its sender"
        raise RefusedError(
            ProblemCode.CONFLICT,
            f"command {command_id} {what}: an edited one would be a second command. See what became of it (cml-workers "
            f"operation {command_id}); then redrive this one as it is, to have it answered, or discard it",
        )


def _not_on_its_way(kept: Kept, done: str) -> None:
    if kept.view.state in (DeadLetterState.REDRIVEN, DeadLetterState.EDITED):
        raise RefusedError(
            ProblemCode.CONFLICT,
            f"it went into its queue again, and to whom it is for; it can be {done} when it has died there again",
        )


def _fingerprint(message: Message) -> str | None:
    try:
        command: WorkerCommand = read(message, COMMANDS)
    except BadMessageError:
        return None
    return fingerprint(command)


def _unknown(dead_letter_id: UUID) -> RefusedError:
    return RefusedError(
        ProblemCode.DEAD_LETTER_NOT_FOUND, f"no dead letter {dead_letter_id} is kept; list shows which are"
    )
