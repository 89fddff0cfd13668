"""Collects dead letters into the archive, and handles operators' requests about them."""

import asyncio
from collections.abc import Callable, Collection
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
from cml_contracts.tokens import TOKEN_HEADER
from cml_workers.bus.codec import BadMessageError, identity, read, reply, reply_address
from cml_workers.bus.port import Ack, DeadLetter, Message, NoKeyError, Publish, UnroutableError, Verdict
from cml_workers.bus.topology import LIFECYCLE_COMMANDS, PUBLIC
from cml_workers.deadletters.archive import Archive, ArchivedLetter, OperatorAction
from cml_workers.deadletters.letter import Letter, again, letter_of
from cml_workers.deadletters.quarantined import Quarantined
from cml_workers.domain.authorization import UnauthorizedError, authorized_actor
from cml_workers.domain.history import Redrive, ReplyAddress, fingerprint, is_anothers
from cml_workers.domain.operations import of_user
from cml_workers.domain.policy import Access
from cml_workers.eventstore.command_streams import IdempotencyRecord, load_record
from cml_workers.eventstore.port import EventStore
from cml_workers.eventstore.quarantine import NotHeldError, What
from cml_workers.eventstore.worker_streams import load_ledger
from cml_workers.foundation.ids import bind

log = structlog.get_logger(__name__)

LONGEST_REQUEST = 8 * MAX_BODY
"""Bytes: a whole body to edit, quoted as JSON."""


class RequestRejectedError(Exception):
    """The operator's request is rejected; says what to do instead."""

    def __init__(self, code: ProblemCode, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem.of(code, detail)


class DeadLetters:
    """``store`` is only read, to know whether a command's id has been used; ``quarantined``: what no message has brought.

    ``own_user``: whom we publish as; ``roles``: the users of all our roles.
    """

    def __init__(
        self,
        *,
        archive: Archive,
        quarantined: Quarantined,
        store: EventStore,
        publish: Publish,
        own_user: str,
        access: Access,
        now: Callable[[], datetime],
        roles: Collection[str] = frozenset(),
    ) -> None:
        self._archive = archive
        self._quarantined = quarantined
        self._store = store
        self._publish = publish
        self._own_user = own_user
        self._roles = {own_user, *roles}
        self._access = access
        self._now = now
        self._doing = asyncio.Lock()

    async def collect(self, message: Message) -> Verdict:
        """Archive a message of the dead-letter queue; it is acknowledged when it is on disk."""
        letter = letter_of(message)
        is_command = letter.queue == LIFECYCLE_COMMANDS.name
        bind(command_id=letter.message_id if is_command else None)
        if await self._archive.keep(letter, self._now()):
            log.warning(
                "dead letter archived",
                dead_letter_id=str(letter.id),
                died_in=letter.queue,
                cause=letter.cause,
                reason=letter.reason,
            )
        return Ack()

    async def on_request(self, message: Message) -> Verdict:
        """Handle an operator's request, and reply."""
        verdict: Verdict = Ack()
        address: ReplyAddress | None = None
        try:
            address = reply_address(message, own=self._access.enforced)
            request: OperatorRequest = read(message, OPERATOR_REQUESTS, limit=LONGEST_REQUEST)
            self._authorize(message.user_id)
            data = await self._answer(request, message.user_id)
            result = OperationResult(
                command_id=message.message_id, outcome="succeeded", data=data.model_dump(mode="json")
            )
        except (BadMessageError, RequestRejectedError) as error:
            problem = error.problem
            result = OperationResult(command_id=message.message_id, outcome="rejected", problem=problem)
            if problem.code in (ProblemCode.VALIDATION_FAILED, ProblemCode.UNAUTHORIZED):
                verdict = DeadLetter(problem.detail, problem.code)
        if address is not None:
            await self._publish(reply(result, address))
        return verdict

    def _authorize(self, user: str | None) -> None:
        if self._access.enforced and (user is None or user not in self._access.operators):
            raise RequestRejectedError(
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
                    raise RequestRejectedError(
                        ProblemCode.VALIDATION_FAILED,
                        "the cursor is none that a page came with; omit it to begin with the first page",
                    ) from error
            case GetDeadLetter():
                details = await self._archive.details(request.dead_letter_id)
                if details is None:
                    raise _unknown(request.dead_letter_id)
                return details
            case RedriveDeadLetter() | EditDeadLetter() | DiscardDeadLetter():
                async with self._doing:  # the second of two operators sees what the first did
                    return await self._do(request, await self._find(request.dead_letter_id), user)

    async def _do(
        self,
        request: RedriveDeadLetter | EditDeadLetter | DiscardDeadLetter,
        archived: ArchivedLetter,
        user: str | None,
    ) -> DeadLetterView:
        if self._quarantined.has(archived.letter.queue):
            return await self._decide(request, archived.letter, user)
        match request:
            case RedriveDeadLetter():
                return await self._redrive(archived, archived.letter, self._action("redriven", request, user))
            case EditDeadLetter():
                _not_in_its_queue(archived, "edited")
                edited = await self._edited(archived.letter, request, user)
                return await self._redrive(archived, edited, self._action("edited", request, user))
            case DiscardDeadLetter():
                _not_in_its_queue(archived, "discarded")
                await self._archive.discarded(archived, self._action("discarded", request, user))
                return (await self._find(request.dead_letter_id)).view

    async def _decide(
        self,
        request: RedriveDeadLetter | EditDeadLetter | DiscardDeadLetter,
        letter: Letter,
        user: str | None,
    ) -> DeadLetterView:
        try:
            match request:
                case RedriveDeadLetter():
                    action = self._action("redriven", request, user)
                    await self._quarantined.decide(letter, What.TAKEN_UP, action)
                case DiscardDeadLetter():
                    action = self._action("discarded", request, user)
                    await self._quarantined.decide(letter, What.SKIPPED, action)
                case EditDeadLetter():
                    raise RequestRejectedError(
                        ProblemCode.CONFLICT,
                        "an event is never changed; redrive it, or discard it to skip it",
                    )
        except NotHeldError as error:
            raise RequestRejectedError(ProblemCode.CONFLICT, str(error)) from error
        return (await self._find(letter.id)).view

    async def _find(self, dead_letter_id: UUID) -> ArchivedLetter:
        kept = await self._archive.find(dead_letter_id)
        if kept is None:
            raise _unknown(dead_letter_id)
        return kept

    def _action(
        self,
        what: Literal["redriven", "edited", "discarded"],
        request: RedriveDeadLetter | EditDeadLetter | DiscardDeadLetter,
        user: str | None,
    ) -> OperatorAction:
        return OperatorAction(what, self._now(), user, request.by, request.reason)

    async def _redrive(
        self, archived: ArchivedLetter, letter: Letter, action: OperatorAction
    ) -> DeadLetterView:
        # Published first, recorded second: after a death in between it waits here although it is in its queue, which is
        # harmless. In the other order it would be lost.
        if archived.letter.is_cut:
            raise RequestRejectedError(
                ProblemCode.CONFLICT,
                f"of its body of {archived.letter.whole_size} bytes, more than its queue takes, only the first "
                f"{MAX_BODY} are kept; it can only be discarded, and its sender can send a shorter one",
            )
        if not letter.queue:
            raise RequestRejectedError(
                ProblemCode.CONFLICT, "the queue in which it died is not known; it can only be discarded"
            )
        self._check_origin(letter)
        redrive = Redrive(edited=action.what == "edited", user=action.user, by=action.by)
        try:
            await self._publish(again(letter, archived.next_redrive, self._own_user, redrive))
        except NoKeyError as error:
            raise RequestRejectedError(ProblemCode.CONFLICT, f"it cannot be redriven: {error}") from error
        except UnroutableError as error:
            raise RequestRejectedError(
                ProblemCode.CONFLICT, f"queue {letter.queue!r} is gone; declare it again, or discard this"
            ) from error
        await self._archive.redriven(archived, letter, action)
        log.info(
            action.what,
            dead_letter_id=str(letter.id),
            died_in=letter.queue,
            **({"command_id": letter.message_id} if letter.queue == LIFECYCLE_COMMANDS.name else {}),
            user=action.user,
            by=action.by,
        )
        return (await self._find(letter.id)).view

    def _check_origin(self, letter: Letter) -> None:
        """Whoever gets a message of their own into a queue within the system needs an operator to get further; not here."""
        if letter.queue not in PUBLIC and letter.user is not None and letter.user not in self._roles:
            raise RequestRejectedError(
                ProblemCode.CONFLICT,
                f"queue {letter.queue!r} is for messages of our own roles, and user {letter.user!r} is none of them; "
                "it can only be discarded",
            )

    async def _edited(self, letter: Letter, request: EditDeadLetter, user: str | None) -> Letter:
        """The dead letter as its operator's own message. Raises RequestRejectedError."""
        if letter.queue and letter.queue not in PUBLIC:
            raise RequestRejectedError(
                ProblemCode.CONFLICT,
                f"queue {letter.queue!r} is for messages of our own roles, which nobody edits; redrive this one "
                "unchanged, or discard it",
            )
        body = letter.body if request.body is None else request.body.encode()
        headers = {name: value for name, value in letter.headers.items() if name != TOKEN_HEADER}
        edited = replace(letter, body=body, type=request.type or letter.type, user=user, headers=headers)
        if letter.queue != LIFECYCLE_COMMANDS.name:
            return edited
        self._check_right(edited)
        if await self._keeps_its_id(letter):
            return edited
        return replace(
            edited,
            # One id for each death: after a death before this is recorded, another edit makes no second command.
            message_id=str(uuid5(letter.id, letter.death)),
            # So the sender recognises its reply, and the audit the original command.
            correlation_id=letter.correlation_id or letter.message_id,
        )

    def _check_right(self, edited: Letter) -> None:
        """Lifecycle judges it, too; here its operator learns it at once. Raises RequestRejectedError."""
        try:
            command: WorkerCommand = read(Message(body=edited.body, type=edited.type), COMMANDS)
        except BadMessageError:
            return  # it comes back with the reason
        try:
            authorized_actor(
                command,
                "",
                body=edited.body,
                user_id=edited.user,
                token=None,
                access=self._access,
                now=self._now(),
            )
        except UnauthorizedError as error:
            raise RequestRejectedError(
                ProblemCode.UNAUTHORIZED,
                f"{error}: an edited command is its operator's own; it is unchanged. See CML_COMMAND_USERS",
            ) from error

    async def _keeps_its_id(self, letter: Letter) -> bool:
        """Whether the command can keep its id with another body. Raises RequestRejectedError if it must not be edited.

        Keeping it is best: if its sender also fixes and repeats it, one of the two is a repetition. It needs a new id
        if its own is not valid, or if its idempotency record has the old body, which was not decided.
        """
        message = Message(body=letter.body, type=letter.type, message_id=letter.message_id)
        try:
            command_id = identity(message)
        except BadMessageError:
            return False
        try:
            command: WorkerCommand | None = read(message, COMMANDS)
        except BadMessageError:
            command = None
        decided, record, taken = await self._used(command_id, command, letter.user)
        if not decided and record is None:
            return not taken
        if not decided and record and command and record.fingerprint == fingerprint(command):
            return False
        what = "was decided" if decided else "belongs to another command of its sender"
        raise RequestRejectedError(
            ProblemCode.CONFLICT,
            f"command {command_id} {what}: an edited one would be a second command. See its outcome (cml-workers "
            f"operation {command_id}); then redrive this one unchanged, for its reply, or discard it",
        )

    async def _used(
        self, command_id: str, command: WorkerCommand | None, user: str | None
    ) -> tuple[bool, IdempotencyRecord | None, bool]:
        """Of the user's command under the id: whether it was decided, and its record; and whether another user's has the id."""
        decided, own, taken = False, None, False
        for each in dict.fromkeys((command_id, of_user(command_id, user))):
            record = await load_record(self._store, each)
            workers = {command.worker(each)} if command else set[UUID]()
            if record is not None and is_anothers(record.sender, user):
                taken = True
            else:
                own = record or own
            for worker_id in workers | ({record.worker_id} if record else set[UUID]()):
                entry = (await load_ledger(self._store, worker_id)).entries.get(each)
                if entry is not None and is_anothers(entry.requested.sender, user):
                    taken = True
                else:
                    decided |= entry is not None
        return decided, own, taken


def _not_in_its_queue(archived: ArchivedLetter, done: str) -> None:
    if archived.view.state in (DeadLetterState.REDRIVEN, DeadLetterState.EDITED):
        raise RequestRejectedError(
            ProblemCode.CONFLICT,
            f"it is in its queue again; it can be {done} when it has died there again",
        )


def _unknown(dead_letter_id: UUID) -> RequestRejectedError:
    return RequestRejectedError(
        ProblemCode.DEAD_LETTER_NOT_FOUND,
        f"no dead letter {dead_letter_id} is archived; `list` shows which are",
    )
