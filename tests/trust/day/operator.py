"""An operator, who may stop and tag the workers of a team besides: redrives, and edits within and beyond their rights."""

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

from cml_contracts.commands import StopCMLWorker, TerminateCMLWorker, WorkerCommand
from cml_contracts.deadletters import (
    DeadLetterPage,
    DeadLetterState,
    DeadLetterView,
    EditDeadLetter,
    ListDeadLetters,
    OperatorRequest,
    RedriveDeadLetter,
)
from cml_contracts.model import encoded
from cml_contracts.results import ProblemCode
from cml_workers.bus.topology import LIFECYCLE_COMMANDS, PUBLIC
from trust.day.ledger import Expected, Sent
from trust.day.people import Town

EDITABLE = ("a command for another's worker", "in another's name", "without a user", "with headers of ours")
SETTLED = 10.0
"""Seconds in which a redriven command is decided, where no process is killed."""


class Operator:
    """``busy``: held while a request is under way."""

    def __init__(self, town: Town) -> None:
        self.busy = asyncio.Lock()
        self._town = town
        self._ledger = town.ledger
        self._desk = town.people["desk"]
        self._edited: set[str] = set()

    async def once(self) -> str:
        acts = (self._redrive, self._redrive, self._edit, self._edit_for_another, self._edit_too_much)
        async with self.busy:
            return await self._desk.chance.choice((*acts, self._edit_what_is_internal))()

    async def letters(self) -> list[DeadLetterView]:
        """All that are archived."""
        found: list[DeadLetterView] = []
        cursor = None
        while cursor or not found:
            _, reply = await self._ask(ListDeadLetters(limit=500, cursor=cursor))
            page = DeadLetterPage.model_validate(reply["data"])
            found += page.dead_letters
            if (cursor := page.next_cursor) is None:
                break
        return found

    async def _ask(self, request: OperatorRequest) -> tuple[str, dict[str, Any]]:
        message_id = str(uuid4())
        sent = await self._desk.amqp.publish(
            "cml.operator", request.TYPE, encoded(request), user_id="desk", message_id=message_id
        )
        return message_id, (await self._desk.amqp.replies_to(sent))[-1]

    async def _denied(self, *what: str) -> tuple[DeadLetterView, Sent] | None:
        """A dead letter of a denied command that was not edited before."""
        sent = {
            (each.user, each.message_id): each
            for each in self._ledger.of(Expected.DENIED)
            if not each.open and (not what or each.what in what) and each.message_id not in self._edited
        }
        there = [
            (letter, before)
            for letter in await self.letters()
            if letter.state is DeadLetterState.WAITING
            and (letter.queue, letter.cause) == (LIFECYCLE_COMMANDS.name, ProblemCode.UNAUTHORIZED)
            and (before := sent.get((letter.user, letter.message_id or "")))
        ]
        return self._desk.chance.choice(there) if there else None

    def _sent(self, before: Sent, operator: tuple[str, bool], **changes: Any) -> Sent:
        fields = {name: getattr(before, name) for name in Sent.__slots__}
        sent = Sent(**{**fields, "operator": operator, "open": True, "uncertain": False, **changes})
        self._ledger.sent.append(sent)
        asyncio.get_running_loop().call_later(SETTLED, setattr, sent, "open", False)
        return sent

    async def _redrive(self) -> str:
        """It is denied again."""
        if (chosen := await self._denied()) is None:
            return "nothing"
        letter, before = chosen
        sent = self._sent(before, ("desk", False))
        _, reply = await self._ask(RedriveDeadLetter(dead_letter_id=letter.id, by="ops"))
        if reply["problem"]:
            self._ledger.sent.remove(sent)
            self._ledger.wrong.append(f"a redrive of {before} was answered {reply}")
        return "redrive"

    async def _edit(self) -> str:
        """Into what the operator may send."""
        return await self._edit_into(self._town.people["ben"].workers, Expected.DONE, "edit")

    async def _edit_for_another(self) -> str:
        """Into a command for a worker that is not their team's."""
        workers = self._town.people["ann"].workers
        return await self._edit_into(workers, Expected.DENIED, "edit for another's worker")

    async def _edit_into(self, workers: dict[UUID, str], expected: Expected, what: str) -> str:
        chosen = await self._denied(*EDITABLE)
        if chosen is None or not workers:
            return "nothing"
        letter, before = chosen
        worker_id, reason = self._desk.chance.choice([*workers]), self._desk.reason()
        self._edited.add(before.message_id)
        body = encoded(StopCMLWorker(worker_id=worker_id, reason=reason))
        sent = self._sent(
            before,
            ("desk", True),
            user="desk",
            actor="desk",
            kind=StopCMLWorker.TYPE,
            what=what,
            expected=expected,
            reason=reason,
            body=body,
        )
        edit = EditDeadLetter(dead_letter_id=letter.id, type=StopCMLWorker.TYPE, body=body.decode(), by="ops")
        _, reply = await self._ask(edit)
        if reply["problem"]:
            self._ledger.sent.remove(sent)
            self._ledger.wrong.append(f"an edit of {before} was answered {reply}")
        else:
            sent.message_id = reply["data"]["message_id"]
        return what

    async def _edit_too_much(self) -> str:
        """Into a command that the operator may not send, or in somebody else's name."""
        chosen, workers = await self._denied(*EDITABLE), [*self._town.people["ann"].workers]
        if chosen is None or not workers:
            return "nothing"
        too_much: list[WorkerCommand] = [
            TerminateCMLWorker(worker_id=workers[0]),
            StopCMLWorker(worker_id=workers[0], stopped_by="ann"),
        ]
        body = self._desk.chance.choice(too_much)
        edit = EditDeadLetter(
            dead_letter_id=chosen[0].id, type=body.TYPE, body=encoded(body).decode(), by="ann"
        )
        message_id, reply = await self._ask(edit)
        if (reply["problem"] or {}).get("code") != ProblemCode.UNAUTHORIZED:
            self._ledger.wrong.append(f"the edit {edit} was answered {reply}")
        self._ledger.sent.append(
            Sent("desk", message_id, edit.TYPE, "edit too much", Expected.DEAD, open=False)
        )
        return "edit too much"

    async def _edit_what_is_internal(self) -> str:
        there = [each for each in await self.letters() if each.queue and each.queue not in PUBLIC]
        if not there:
            return "nothing"
        letter = self._desk.chance.choice(there)
        _, reply = await self._ask(EditDeadLetter(dead_letter_id=letter.id, body=json.dumps({})))
        if (reply["problem"] or {}).get("code") != ProblemCode.CONFLICT:
            self._ledger.wrong.append(f"the edit of {letter} was answered {reply}")
        return "edit what is internal"
