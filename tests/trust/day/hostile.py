"""What those try who do not keep to their rights, each with what must become of it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

from cml_contracts.commands import (
    CreateCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    WorkerCommand,
)
from cml_contracts.deadletters import RedriveDeadLetter
from cml_contracts.model import encoded
from cml_embedded.ec2_simulator import DEMO_IMAGES
from cml_workers.bus.headers import (
    OPERATOR_HEADER,
    QUEUE_HEADER,
    REDRIVE_HEADER,
    SIGNATURE_HEADER,
    USER_HEADER,
)
from cml_workers.bus.topology import (
    DEAD_LETTER_EXCHANGE,
    EC2_LOOKUPS,
    EC2_TRIGGERS,
    INTERNAL_EXCHANGE,
    LIFECYCLE_COMMANDS,
    LIFECYCLE_REPORTS,
    PROJECTOR_OPERATOR,
)
from cml_workers.domain.history import ReplyAddress
from cml_workers.domain.messages import (
    CommandMessage,
    InstanceLookup,
    LookupAnswered,
    LookupRequested,
    LookupResult,
    OperationSucceeded,
)
from trust.day.honest import REGION, for_another, of_worker
from trust.day.ledger import Expected, Sent
from trust.day.people import ACTORS, Town

KINDS = ("start", "stop", "update_tags", "update_status", "terminate")
LIFECYCLE, RELAY, ADAPTER, PROJECTOR = "cml-lifecycle", "cml-relay", "cml-ec2-adapter", "cml-projector"
MADE_UP = {
    USER_HEADER: "ann",
    OPERATOR_HEADER: '{"edited": false, "user": "desk", "by": "desk"}',
    REDRIVE_HEADER: f"{uuid4()}/1",
    QUEUE_HEADER: "cml.lifecycle.commands",
    "x-delivery-count": 100,
    "x-death": [{"queue": "cml.lifecycle.reports", "reason": "delivery_limit", "count": 99, "exchange": ""}],
}
"""Headers of ours and of the broker's, as any sender can write them."""
MALFORMED = (
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[" * 5000,
    b'{"worker_id": 7}',
    b'{"worker_id": "%s", "stopped_by": "ann", "user": "ann"}' % str(uuid4()).encode(),
    b'{"worker_id": "%s", "reason": "\\u0000"}' % str(uuid4()).encode(),
    json.dumps({"worker_id": str(uuid4()), "reason": "x" * 70_000}).encode(),
)
LONG = 15.0
"""Seconds after which a message that nobody is answered for has been handled, where no process is killed."""

Attack = Callable[[], Awaitable[object]]


class Hostile:
    """Every attack by its name; those of one user without a right, of a delegate, and of who has a role's password."""

    def __init__(self, town: Town) -> None:
        self._town = town
        self._chance = town.chance
        self._mallory = town.people["mallory"]
        self._cleo = town.people["cleo"]
        self._portal = town.people["portal"]
        self.senders: dict[str, Attack] = {
            "a command for another's worker": self._for_anothers,
            "in another's name": self._in_anothers_name,
            "with headers of ours": self._with_headers_of_ours,
            "without a user": self._without_a_user,
            "as another user": self._as_another_user,
            "another's command id": self._anothers_id,
            "another's create, sent again": self._anothers_create,
            "a malformed body": self._malformed,
            "a reply to others": self._reply_to_others,
            "another type than the key's": self._another_type,
            "a key without a right": self._key_without_a_right,
            "a query for another's worker": self._query_for_anothers,
            "a token by a user that is no delegate": self._token_of_no_delegate,
            "an operator's request": self._operators_request,
        }
        self.delegate: dict[str, Attack] = {
            "a forged token": lambda: self._bad_token("a forged token", key="x" * 32),
            "an expired token": lambda: self._bad_token("an expired token", seconds=-1),
            "a long-lived token": lambda: self._bad_token("a long-lived token", seconds=7200),
            "a token of another command": lambda: self._bad_token(
                "a token of another command", other_id=True
            ),
            "a token of another body": lambda: self._bad_token("a token of another body", other_body=True),
            "a token of another user": lambda: self._bad_token("a token of another user", user="mallory"),
            "no token": lambda: self._bad_token("no token", none=True),
            "for an actor whose worker it is not": self._wrong_actor,
        }
        self.passwords: dict[str, Attack] = {
            "a command as somebody": self._command_as_somebody,
            "a command as a role": self._command_as_a_role,
            "the relay to a queue": self._relay_to_a_queue,
            "a report of another role": self._report_of_another,
            "a lookup of another role": self._lookup_of_another,
            "a trigger of another role": self._trigger_of_another,
            "a lookup result of no command": self._lookup_result_of_no_command,
            "a lookup result of a status update": self._lookup_result_of_a_status_update,
            "a kind of another role": self._kind_of_another,
            "a command by its exchange": self._command_by_its_exchange,
            "an operator's request as somebody": self._request_as_somebody,
            "a dead letter as somebody": self._dead_letter_as_somebody,
        }

    def _victim(self, of: str = "mallory") -> UUID | None:
        there = self._town.victims(of)
        return self._chance.choice(there) if there else None

    def _command(self, worker_id: UUID | None, kind: str | None = None) -> WorkerCommand:
        kind = kind or self._chance.choice(KINDS)
        return of_worker(kind, worker_id or uuid4(), self._mallory.reason())

    # -- senders ------------------------------------------------------------------------------------------

    async def _for_anothers(self) -> None:
        if victim := self._victim():
            await self._mallory.send(self._command(victim), "a command for another's worker", Expected.DENIED)

    async def _in_anothers_name(self) -> None:
        worker_id = self._victim() or uuid4()
        commands: list[WorkerCommand] = [
            StopCMLWorker(worker_id=worker_id, stopped_by="ann"),
            TerminateCMLWorker(worker_id=worker_id, terminated_by="ops"),
            CreateCMLWorker(
                name="x",
                aws_region=REGION,
                ami_id=DEMO_IMAGES[REGION],
                created_by="ann",
                worker_id=uuid4(),
            ),
        ]
        await self._mallory.send(self._chance.choice(commands), "in another's name", Expected.DENIED)

    async def _with_headers_of_ours(self) -> None:
        if victim := self._victim():
            what = "with headers of ours"
            await self._mallory.send(self._command(victim), what, Expected.DENIED, headers=MADE_UP)
        if own := [*self._mallory.workers]:
            command = self._command(own[0], "update_tags")
            await self._mallory.send(command, "its own, with headers of ours", headers=MADE_UP)

    async def _without_a_user(self) -> None:
        await self._mallory.send(
            self._command(self._victim()), "without a user", Expected.DENIED, named=False
        )

    async def _as_another_user(self) -> None:
        command = self._command(self._victim(), "terminate")
        await self._town.publish(
            "mallory",
            command.TYPE,
            command.TYPE,
            "as another user",
            Expected.REFUSED,
            exchange="cml.commands",
            body=encoded(command),
            named="ann",
        )

    def _decided(self, *kinds: str) -> Sent | None:
        """A command of somebody else that is on record."""
        there = [
            each
            for each in self._town.ledger.of(Expected.DONE)
            if not each.open and each.user == "ann" and each.what in kinds
        ]
        return self._chance.choice(there) if there else None

    async def _anothers_id(self) -> None:
        if theirs := self._decided("start", "stop", "update_tags"):
            await self._again(theirs)

    async def _anothers_create(self) -> None:
        if theirs := self._decided("create"):
            await self._again(theirs)

    async def _again(self, theirs: Sent) -> None:
        """It is a command of mallory's own, for a worker of somebody else."""
        command = StopCMLWorker(worker_id=uuid4()).model_copy(update={"reason": theirs.reason})
        await self._mallory.send(
            command,
            "another's command, sent again",
            Expected.DENIED,
            message_id=theirs.message_id,
            body=theirs.body,
            type=theirs.kind,
            routing_key=theirs.kind,
        )

    async def _malformed(self) -> None:
        command = self._command(self._victim(), "stop")
        body = self._chance.choice(MALFORMED)
        await self._mallory.send(command, "a malformed body", Expected.DEAD, body=body or b" ")

    async def _reply_to_others(self) -> None:
        own = [*self._mallory.workers]
        addresses = ["cml.lifecycle.reports", "cml.replies.ann.inbox", "cml.subscribers.watcher.all", "x"]
        await self._mallory.send(
            self._command(own[0] if own else None, "stop"),
            "a reply to others",
            Expected.DEAD,
            reply_to=self._chance.choice(addresses),
        )

    async def _another_type(self) -> None:
        command = self._command(self._victim("cleo"), "terminate")
        await self._cleo.send(
            command, "another type than the key's", Expected.DENIED, routing_key=StartCMLWorker.TYPE
        )

    async def _key_without_a_right(self) -> None:
        command = self._command(self._victim("cleo"), "terminate")
        for user in ("cleo", "dashboard", "watcher", "desk"):
            await self._town.publish(
                user,
                command.TYPE,
                command.TYPE,
                "a key without a right",
                Expected.REFUSED,
                exchange="cml.commands",
                body=encoded(command),
            )

    async def _query_for_anothers(self) -> None:
        if victim := self._victim():
            answer = await self._mallory.amqp.publish(
                "cml.queries",
                "cml.worker.get.v1",
                json.dumps({"worker_id": str(victim)}).encode(),
                user_id="mallory",
            )
            reply = (await self._mallory.amqp.replies_to(answer))[-1]
            if reply["data"] is not None:
                self._town.ledger.wrong.append(f"mallory sees {reply}")

    async def _token_of_no_delegate(self) -> None:
        command = self._command(self._victim())
        message_id = str(uuid4())
        headers = for_another(command, message_id, "dora", "mallory")
        what = "a token by a user that is no delegate"
        await self._mallory.send(command, what, Expected.DENIED, message_id=message_id, headers=headers)

    async def _operators_request(self) -> None:
        request = RedriveDeadLetter(dead_letter_id=uuid4())
        for user in ("mallory", "dashboard", "watcher"):
            await self._town.publish(
                user,
                request.TYPE,
                request.TYPE,
                "an operator's request",
                Expected.REFUSED,
                exchange="cml.operator",
                body=encoded(request),
            )

    # -- a delegate ---------------------------------------------------------------------------------------

    async def _bad_token(
        self,
        what: str,
        *,
        none: bool = False,
        other_id: bool = False,
        other_body: bool = False,
        user: str = "portal",
        **how: Any,
    ) -> None:
        actor = self._chance.choice(ACTORS)
        own = [each for each, of in self._portal.workers.items() if of == actor]
        command = StopCMLWorker(
            worker_id=own[0] if own else uuid4(),
            reason=self._portal.reason(),
            # Also without: the token alone says for whom.
            stopped_by=actor if none or self._chance.random() < 0.5 else None,
        )
        message_id = str(uuid4())
        signed = command.model_copy(update={"reason": "another"}) if other_body else command
        headers = for_another(signed, str(uuid4()) if other_id else message_id, actor, user, **how)
        await self._portal.send(
            command,
            what,
            Expected.DENIED,
            actor=actor,
            message_id=message_id,
            headers={} if none else headers,
        )

    async def _wrong_actor(self) -> None:
        theirs = [each for each, of in self._portal.workers.items() if of == "dora"]
        if theirs:
            command = of_worker("stop", theirs[0], self._portal.reason())
            message_id = str(uuid4())
            headers = for_another(command, message_id, "emil", "portal")
            what = "for an actor whose worker it is not"
            await self._portal.send(command, what, Expected.DENIED, message_id=message_id, headers=headers)

    # -- who has a role's password ------------------------------------------------------------------------

    async def _steal(
        self, user: str, key: str, kind: str, what: str, expected: Expected, **more: Any
    ) -> None:
        sent = await self._town.publish(user, key, kind, what, expected, **more)
        asyncio.get_running_loop().call_later(LONG, setattr, sent, "open", False)

    async def _command_as_somebody(self) -> None:
        command = self._command(self._victim(), "terminate")
        for user in (ADAPTER, PROJECTOR):
            for more in ({}, {SIGNATURE_HEADER: "0" * 64}):
                await self._steal(
                    user,
                    self._chance.choice([LIFECYCLE_COMMANDS.name, LIFECYCLE_COMMANDS.retry_queue(1)]),
                    command.TYPE,
                    "a command as somebody",
                    Expected.DEAD,
                    body=encoded(command),
                    headers={USER_HEADER: self._chance.choice(("ann", "ops")), **more},
                )

    async def _command_as_a_role(self) -> None:
        command = self._command(self._victim())
        user = self._chance.choice((ADAPTER, PROJECTOR))
        what = "a command as a role"
        await self._steal(
            user, LIFECYCLE_COMMANDS.name, command.TYPE, what, Expected.DENIED, body=encoded(command)
        )

    async def _relay_to_a_queue(self) -> None:
        command = self._command(self._victim())
        what, headers = "the relay to a queue", {USER_HEADER: "ann"}
        await self._steal(
            RELAY, LIFECYCLE_COMMANDS.name, command.TYPE, what, Expected.REFUSED, headers=headers
        )

    async def _report_of_another(self) -> None:
        report = OperationSucceeded(worker_id=self._victim() or uuid4(), operation_id="made-up")
        user = self._chance.choice((LIFECYCLE, PROJECTOR))
        await self._steal(
            user,
            LIFECYCLE_REPORTS.name,
            report.TYPE,
            "a report of another role",
            Expected.DEAD,
            body=report.model_dump_json().encode(),
        )

    async def _lookup_of_another(self) -> None:
        user = self._chance.choice((ADAPTER, PROJECTOR))
        what = "a lookup of another role"
        await self._steal(user, EC2_LOOKUPS.name, LookupRequested.TYPE, what, Expected.DEAD)

    async def _trigger_of_another(self) -> None:
        user = self._chance.choice((LIFECYCLE, PROJECTOR))
        kind = "cml.worker.start_requested.v1"
        await self._steal(user, EC2_TRIGGERS.name, kind, "a trigger of another role", Expected.DEAD)

    def _looked_up(self, command: WorkerCommand, user: str) -> LookupAnswered:
        return LookupAnswered(
            origin=CommandMessage(
                command_id=str(uuid4()),
                command=command,
                command_type=command.TYPE,
                correlation_id=str(uuid4()),
                actor=user,
                user=user,
                reply=ReplyAddress(reply_to=self._town.people["ann"].amqp.reply_to),
            ),
            lookup=InstanceLookup(aws_region=REGION, instance_id="i-11111111111111111", seen_revision=2**40),
            looked_up=LookupResult(),
        )

    async def _lookup_result_of_no_command(self) -> None:
        report = self._looked_up(self._command(self._victim(), "terminate"), "ops")
        report = report.model_copy(update={"origin": report.origin.model_copy(update={"reply": None})})
        await self._steal(
            ADAPTER,
            LIFECYCLE_REPORTS.name,
            report.TYPE,
            "a lookup result of no command",
            Expected.DEAD,
            body=report.model_dump_json().encode(),
        )

    async def _lookup_result_of_a_status_update(self) -> None:
        """Of somebody whose worker it is not: no such attempt was made."""
        bens = [*self._town.people["ben"].workers]
        if bens:
            report = self._looked_up(UpdateCMLWorkerStatus(worker_id=bens[0]), "ann")
            report = report.model_copy(update={"origin": report.origin.model_copy(update={"reply": None})})
            await self._steal(
                ADAPTER,
                LIFECYCLE_REPORTS.name,
                report.TYPE,
                "a lookup result of a status update",
                Expected.NOTHING,
                body=report.model_dump_json().encode(),
            )

    async def _kind_of_another(self) -> None:
        for user in (LIFECYCLE, RELAY, PROJECTOR):
            await self._steal(
                user,
                OperationSucceeded.TYPE,
                OperationSucceeded.TYPE,
                "a kind of another role",
                Expected.REFUSED,
                exchange=INTERNAL_EXCHANGE.name,
            )

    async def _command_by_its_exchange(self) -> None:
        kind = TerminateCMLWorker.TYPE
        for user in (LIFECYCLE, RELAY, ADAPTER, PROJECTOR):
            what = "a command by its exchange"
            await self._steal(user, kind, kind, what, Expected.REFUSED, exchange="cml.commands")

    async def _request_as_somebody(self) -> None:
        request = RedriveDeadLetter(dead_letter_id=uuid4(), by="desk")
        for user in (LIFECYCLE, ADAPTER, PROJECTOR):
            await self._steal(
                user,
                PROJECTOR_OPERATOR.name,
                request.TYPE,
                "an operator's request as somebody",
                Expected.DEAD,
                body=encoded(request),
                headers={USER_HEADER: "desk"},
            )

    async def _dead_letter_as_somebody(self) -> None:
        command = self._command(self._victim(), "terminate")
        died = {USER_HEADER: "ops", QUEUE_HEADER: LIFECYCLE_COMMANDS.name}
        for user in (ADAPTER, PROJECTOR):
            await self._steal(
                user,
                "",
                command.TYPE,
                "a dead letter as somebody",
                Expected.DEAD,
                exchange=DEAD_LETTER_EXCHANGE.name,
                body=encoded(command),
                headers=died,
            )
