"""What those do who keep to their rights: a worker's life, in their own name, or for somebody by a token."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from cml_contracts.commands import (
    CreateCMLWorker,
    ImportCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    UpdateCMLWorkerTags,
    WorkerCommand,
)
from cml_contracts.tokens import TOKEN_HEADER
from cml_embedded.ec2_simulator import DEMO_IMAGES
from support.buses import token_for
from trust.day.ledger import Expected
from trust.day.people import ACTORS, IN_TEAM, KEY, TEAM, Person

REGION = "us-east-1"
ENOUGH = 3
"""Workers of one actor."""
WEIGHTS = {"start": 5, "stop": 5, "update_tags": 6, "update_status": 4, "terminate": 1, "again": 3}


class Honest:
    """One person's commands, for one actor."""

    def __init__(self, person: Person, actor: str | None = None) -> None:
        self._person = person
        self._actor = actor or person.name
        self._last: tuple[WorkerCommand, dict[str, Any]] | None = None

    async def once(self) -> str:
        person = self._person
        own = [each for each, actor in person.workers.items() if actor == self._actor]
        if len(own) < ENOUGH:
            await self._create()
            return "create"
        kind = person.chance.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
        if kind == "again" and self._last:
            command, properties = self._last
            await person.send(command, kind, actor=self._actor, **properties)
        else:
            worker_id = person.chance.choice(own)
            await self._send(kind, of_worker(kind, worker_id, person.reason()))
            if kind == "terminate":
                del person.workers[worker_id]
        return kind

    async def _create(self) -> None:
        worker_id = uuid4()
        ledger = self._person.ledger
        ledger.owners[worker_id] = self._actor
        ledger.launched.add(worker_id)
        if self._person.name == "ben":
            ledger.teams["ben"] = IN_TEAM
        command = CreateCMLWorker(
            name="lab",
            aws_region=REGION,
            ami_id=DEMO_IMAGES[REGION],
            worker_id=worker_id,
            created_by=self._actor,
            tags={"team": TEAM} if self._person.name == "ben" else {},
            reason=self._person.reason(),
        )
        reply = await self._send("create", command)
        if reply is None or reply["outcome"] != "succeeded":
            ledger.wrong.append(f"a create of {self._actor} was answered {reply}")
        self._person.workers[worker_id] = self._actor

    async def _send(self, what: str, command: WorkerCommand) -> dict[str, Any] | None:
        properties: dict[str, Any] = {"message_id": str(uuid4())}
        if self._actor != self._person.name:
            properties["headers"] = for_another(
                command, properties["message_id"], self._actor, self._person.name
            )
        self._last = command, properties
        _, reply = await self._person.send(command, what, actor=self._actor, **properties)
        return reply


def of_worker(kind: str, worker_id: UUID, reason: str) -> WorkerCommand:
    """A command of that kind, that names no actor."""
    match kind:
        case "start":
            return StartCMLWorker(worker_id=worker_id, reason=reason)
        case "stop" | "again":
            return StopCMLWorker(worker_id=worker_id, reason=reason)
        case "update_tags":
            return UpdateCMLWorkerTags(worker_id=worker_id, tags={"n": reason[-4:]}, reason=reason)
        case "terminate":
            return TerminateCMLWorker(worker_id=worker_id, reason=reason)
        case _:
            return UpdateCMLWorkerStatus(worker_id=worker_id, reason=reason)


def for_another(
    command: WorkerCommand,
    command_id: str,
    actor: str,
    user: str,
    *,
    key: str = KEY,
    seconds: float = 300,
) -> dict[str, Any]:
    """The headers by which a delegate sends it."""
    expires = datetime.now(UTC) + timedelta(seconds=seconds)
    return {
        TOKEN_HEADER: token_for(key.encode(), command, command_id, actor=actor, user=user, expires=expires)
    }


class Team:
    """Who created none of the workers that they may command."""

    def __init__(self, person: Person, of: Person) -> None:
        self._person = person
        self._of = of

    async def once(self) -> str:
        if not self._of.workers:
            return "nothing"
        kind = self._person.chance.choice(("start", "stop"))
        worker_id = self._person.chance.choice([*self._of.workers])
        await self._person.send(of_worker(kind, worker_id, self._person.reason()), f"{kind} of the team's")
        return f"{kind} of the team's"


class Importer:
    """Imports instances, some of which nobody may have. ``consented``, ``others``: their ids."""

    def __init__(self, person: Person, consented: list[str], others: list[str]) -> None:
        self._person = person
        self._consented = consented
        self._others = others

    async def once(self) -> str:
        with_consent = bool(self._consented) and self._person.chance.random() < 0.5
        instance_id = self._consented.pop() if with_consent else self._person.chance.choice(self._others)
        command = ImportCMLWorker(
            aws_region=REGION,
            instance_id=instance_id,
            created_by=self._person.name,
            reason=self._person.reason(),
        )
        self._person.ledger.owners[command.worker("")] = self._person.name
        what = "import" if with_consent else "import without consent"
        _, reply = await self._person.send(command, what, Expected.DONE)
        if reply is None or (reply["outcome"] == "succeeded") != with_consent:
            self._person.ledger.wrong.append(f"{what} was answered {reply}")
        return what


def lives(person: Person) -> list[Honest]:
    """In whose names they act."""
    return [Honest(person, actor) for actor in (ACTORS if person.name == "portal" else (person.name,))]
