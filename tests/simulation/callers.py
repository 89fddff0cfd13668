"""Callers: they send a command once and await its answer, and see that each answer is true and comes in time."""

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from cml_contracts.commands import StartCMLWorker, UpdateCMLWorkerStatus, WorkerCommand
from cml_contracts.queries import GetCMLWorker, GetOperation, OperationView, Query, WorkerView
from cml_contracts.results import OperationResult, ProblemCode
from cml_contracts.tokens import TOKEN_HEADER
from cml_contracts.topology import COMMANDS_EXCHANGE, QUERIES_EXCHANGE
from cml_workers.bus.port import BusUnavailableError, Outgoing
from cml_workers.bus.topology import INTERNAL_EXCHANGE
from cml_workers.domain.messages import LookupRequested, OperationSucceeded
from cml_workers.domain.operations import as_sent, of_user
from cml_workers.domain.policy import EVERY_COMMAND, NAMED_ONLY, Access
from simulation import nets
from simulation.bus import CLIENTS, Broker, BusOfProcess
from simulation.coverage import SETTLED, Coverage
from simulation.delivery import SENT_AGAIN
from simulation.store import Log
from simulation.world import Process, World
from support.canaries import CANARY
from support.invariants import NOT_RECORDED

USER, OTHER_USER = "ann", "ben"
TWO_USERS = Access(
    enforced=True,
    users=dict.fromkeys((USER, OTHER_USER), frozenset({EVERY_COMMAND, *NAMED_ONLY})),
    delegates=frozenset(),
)
IMPATIENT = 90.0
"""Seconds after which a caller who is impatient sends its command again."""
BOUND = 60.0
"""Seconds within which who waits is answered: from when the outcome is recorded, or the last fault is over."""
QUERY_AGAIN = 10.0
"""Seconds after which a query that got no answer is asked again: it is not kept where nobody can answer it."""


@dataclass
class Awaited:
    """An address at which a reply is awaited, given by one message that the bus has taken.

    ``command_id``: as everywhere here, that of the operation; the other user's is known by it.
    """

    command_id: str
    since: float
    arrived: asyncio.Future[None]
    answered_at: float | None = None


class Callers:
    """Everybody who sends commands and queries, on a process that never dies."""

    def __init__(self, world: World, broker: Broker, log: Log, coverage: Coverage) -> None:
        self.world = world
        self.broker = broker
        self.log = log
        self.coverage = coverage
        self.replies: dict[str, list[OperationResult]] = {}
        """By command id."""
        self.awaited: dict[str, Awaited] = {}
        """By address."""
        self.confirmed: dict[str, WorkerCommand] = {}
        """Every command that the bus took, by its id."""
        self.status_updates: dict[str, UUID] = {}
        """The worker of each status update that was sent, by its id."""
        self.rubbish: set[str] = set()
        self.are_two = False
        """Users, of whom the broker vouches for each, and not everybody who may do everything in any name."""
        self._asked_at: dict[str, str] = {}
        """The command of each address."""
        self._queries: dict[str, tuple[Query, asyncio.Future[OperationResult]]] = {}
        self._process = Process(world, "client", mortal=False)
        self._publish = BusOfProcess(self._process, broker)
        self._addresses = 0
        broker.on_reply = self._on_reply

    # -- sending ------------------------------------------------------------------------------------------

    async def post(self, command_id: str, command: WorkerCommand) -> None:
        """Send a command until the broker has it, and ask no more. Not a status update, whose result is not recorded."""
        await self._until_confirmed(self._message(command_id, command), command)

    async def call(self, command_id: str, command: WorkerCommand, *, impatient: bool = False) -> None:
        """Send a command once and await its answer; again only if one is ``impatient``.

        The bus may take a message and fail to say so. Who gets no confirm sends again, or gives up.
        """
        if isinstance(command, UpdateCMLWorkerStatus):
            self.status_updates[command_id] = command.worker_id
        address = self._address(self._user(command_id))
        self._asked_at[address] = command_id
        message = self._message(command_id, command, reply_to=address)
        arrived = self.world.loop.create_future()
        self.awaited[address] = Awaited(command_id, self.world.loop.time(), arrived)
        if not await self._until_confirmed(message, command, gives_up=True):
            del self.awaited[address]  # nobody knows whether it was taken, and nobody waits
            return
        self.awaited[address].since = self.world.loop.time()
        while not arrived.done():
            await asyncio.wait([arrived], timeout=IMPATIENT if impatient else None)
            if not arrived.done():
                with contextlib.suppress(BusUnavailableError):
                    await self._publish(replace(message, headers={**message.headers, SENT_AGAIN: "1"}))

    async def _until_confirmed(
        self, message: Outgoing, command: WorkerCommand, *, gives_up: bool = False
    ) -> bool:
        while True:
            try:
                await self._publish(message)
            except BusUnavailableError:
                self.world.nets[nets.PUBLISHED_AGAIN, "caller"] += 1
                if gives_up and self.world.random.random() < 0.5:
                    return False
                await asyncio.sleep(1)
            else:
                command_id = name_of(message.message_id, message.user_id)
                self.confirmed[command_id] = command
                worker_id = command.worker(command_id)
                name = command.TYPE.split(".")[2]
                self.coverage.sent(command_id, name, worker_id, self.world.loop.time())
                return True

    async def send_rubbish(self, name: str) -> None:
        """Send what no handler can read, to one of the queues."""
        exchange, kind = self.world.random.choice(
            (
                (COMMANDS_EXCHANGE, StartCMLWorker.TYPE),
                (INTERNAL_EXCHANGE, OperationSucceeded.TYPE),
                (INTERNAL_EXCHANGE, LookupRequested.TYPE),
            )
        )
        message = Outgoing(exchange=exchange, routing_key=kind, body=b"{", type=kind, message_id=name)
        self.rubbish.add(name)
        try:
            await self._publish(message)
        except BusUnavailableError:
            self.rubbish.discard(name)

    # -- replies ------------------------------------------------------------------------------------------

    def _on_reply(self, message: Outgoing) -> None:
        result = OperationResult.model_validate_json(message.body)
        asked = self._queries.get(message.routing_key)
        if asked is not None:
            self._on_answer(*asked, result)
            return
        command_id = self._asked_at[message.routing_key]
        if result.command_id != as_sent(command_id):
            self.world.broken.append(f"6: {command_id} is answered as {result.command_id}")
        self.replies.setdefault(command_id, []).append(result)
        self.world.trace("client", f"{command_id} {result.outcome}")
        awaited = self.awaited.get(message.routing_key)
        if awaited is not None and awaited.answered_at is None:
            awaited.answered_at = self.world.loop.time()
            awaited.arrived.set_result(None)
        if result.problem and result.problem.code in NOT_RECORDED:
            return
        if command_id in self.status_updates:
            self.coverage.reached(command_id, SETTLED, self.world.loop.time())
            self._check_status(self.status_updates[command_id], result)
        elif self.recorded_at(command_id) is None:
            self.world.broken.append(f"6: {command_id} is answered, but not recorded: {result}")

    def recorded_at(self, command_id: str) -> float | None:
        """When the outcome of a command was recorded, in virtual seconds; None if it is not."""
        for ledger in self.log.ledgers.values():
            entry = ledger.entries.get(command_id)
            if entry is not None and entry.settled_at is not None:
                return self.world.seconds(entry.settled_at)
        return None

    def _check_status(self, worker_id: UUID, result: OperationResult) -> None:
        """What a status update is answered agrees with what is recorded by then."""
        worker = self.log.workers.get(worker_id)
        ended = result.problem is not None and result.problem.code is ProblemCode.WORKER_TERMINATED
        if result.data is not None:
            ended = result.data["instance_state"] == "terminated"
        if ended and not (worker and (worker.terminated or worker.instance is None)):
            self.world.broken.append(
                f"6: the worker is terminated, as answered, but not as recorded: {result}"
            )

    def late(self) -> list[str]:
        """Who is not answered within the bound, or at all."""
        found = []
        for address, awaited in self.awaited.items():
            recorded_at = self.recorded_at(awaited.command_id)
            due = max(recorded_at or 0.0, awaited.since, self.world.trouble_until) + BOUND
            at = awaited.answered_at
            if at is None and self.world.loop.time() > due:
                found.append(f"10: {awaited.command_id} is not answered at {address} by {due:.0f} s")
            elif at is not None and recorded_at is not None and at > due:
                found.append(f"10: {awaited.command_id} was answered at {at:.0f} s, due by {due:.0f} s")
        return found

    # -- queries ------------------------------------------------------------------------------------------

    async def ask(self, query: Query) -> OperationResult:
        """Ask until there is an answer."""
        while True:
            address = self._address()
            answered: asyncio.Future[OperationResult] = self.world.loop.create_future()
            self._queries[address] = query, answered
            with contextlib.suppress(BusUnavailableError):
                await self._publish(_query_message(address, query))
                await asyncio.wait([answered], timeout=QUERY_AGAIN)
            if answered.done():
                return answered.result()
            await asyncio.sleep(1)

    async def until_shown(self, command_id: str) -> None:
        """Ask for an operation until its outcome is shown, as a caller does who gave no address."""
        while True:
            result = await self.ask(GetOperation(command_id=command_id))
            shown = result.data is not None and OperationView.model_validate(result.data).result is not None
            now, recorded_at = self.world.loop.time(), self.recorded_at(command_id)
            if recorded_at is not None and now > max(recorded_at, self.world.trouble_until) + BOUND:
                self.world.broken.append(
                    f"11: {command_id}, recorded at {recorded_at:.0f} s, is shown at {now:.0f} s"
                )
                return
            if shown:
                return
            await asyncio.sleep(5)

    def _on_answer(
        self, query: Query, answered: asyncio.Future[OperationResult], result: OperationResult
    ) -> None:
        """What is shown must be what is, or was, recorded."""
        if not answered.done():
            answered.set_result(result)
        if result.data is None:
            return
        if isinstance(query, GetOperation):
            shown: Any = OperationView.model_validate(result.data).result
            true = shown is None or self._is_recorded(shown)
        else:
            shown = WorkerView.model_validate(result.data)
            true = shown in self.log.rows.get(shown.id, [])
        if not true:
            self.world.broken.append(f"11: {query} was answered {result.data}, which never was")

    def _is_recorded(self, shown: OperationResult) -> bool:
        command_id = shown.command_id or ""
        for ledger in self.log.ledgers.values():
            if command_id in ledger.entries:
                results = (ledger.entries[command_id].result, self.log.corrected.get(command_id))
                return any(each is not None and _plain(each) == _plain(shown) for each in results)
        return False

    async def look_at(self, worker_id: UUID) -> None:
        """Ask for a worker."""
        await self.ask(GetCMLWorker(worker_id=worker_id))

    def _message(self, command_id: str, command: WorkerCommand, reply_to: str | None = None) -> Outgoing:
        return Outgoing(
            exchange=COMMANDS_EXCHANGE,
            routing_key=command.TYPE,
            body=command.model_dump_json(exclude_none=True).encode(),
            type=command.TYPE,
            message_id=as_sent(command_id),
            reply_to=reply_to,
            user_id=self._user(command_id),
            headers={} if self.are_two else {TOKEN_HEADER: f"{CANARY} of {command_id}"},
        )

    def _user(self, command_id: str) -> str | None:
        """Whom the broker vouches for."""
        user = USER if command_id == as_sent(command_id) else OTHER_USER
        return user if self.are_two else None

    def _address(self, user: str | None = None) -> str:
        self._addresses += 1
        return f"{CLIENTS}{user or 'client'}.{self._addresses}"


def name_of(command_id: str, user: str | None) -> str:
    """What the command is called here."""
    return of_user(command_id, user) if user == OTHER_USER else command_id


def _plain(result: OperationResult) -> Any:
    return result.model_dump(mode="json")


def _query_message(address: str, query: Query) -> Outgoing:
    return Outgoing(
        exchange=QUERIES_EXCHANGE,
        routing_key=query.TYPE,
        body=query.model_dump_json(exclude_none=True).encode(),
        type=query.TYPE,
        message_id=f"query-{address}",
        reply_to=address,
    )
