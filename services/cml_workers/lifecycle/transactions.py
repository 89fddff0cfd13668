"""From a message to its replies: load the worker, judge, append at the expected version, send what is due.

Everything that changes a worker goes through ``Transactions.transact``, and every message of one is acknowledged there.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import assert_never
from uuid import UUID

import structlog

from cml_contracts.events import CommandRejected, WorkerEvent
from cml_contracts.results import OperationResult
from cml_workers.bus.port import Ack, CallerRefusesError, DeadLetter, Outgoing, Publish, Retry, Verdict
from cml_workers.domain.history import Recorded, fingerprint
from cml_workers.domain.ledger import Entry, Ledger
from cml_workers.domain.messages import CommandMessage
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.command_streams import bind, check_id, load_record
from cml_workers.eventstore.port import EventStore, WrongExpectedVersionError
from cml_workers.eventstore.worker_streams import Workers
from cml_workers.lifecycle.counting import count, count_unrecorded
from cml_workers.lifecycle.replies import metadata_of, replies, result_of, reused

log = structlog.get_logger(__name__)

TRIES = 20
"""Lost races on one stream before the message is retried after a second."""

Due = Callable[[Worker], Awaitable[Sequence[Outgoing]]]
"""What is due for a message beside the replies that its events made due, given the worker after them."""


def these(*outgoing: Outgoing) -> Due:
    """Due whatever the worker is then."""

    async def due(_: Worker) -> Sequence[Outgoing]:
        return outgoing

    return due


@dataclass(frozen=True, slots=True)
class Append:
    """Record these events, then finish."""

    events: Sequence[WorkerEvent]
    due: Due = field(default_factory=these)
    binds: bool = False
    """The command's id is bound to its body first."""
    checks: bool = False
    """It is seen first that the id is not bound by another user."""
    answer: OperationResult | None = None
    """The result of a command that is not recorded."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The command's id belongs to another body."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing is recorded; send what is due. ``answer``: see ``Append``."""

    due: Due = field(default_factory=these)
    answer: OperationResult | None = None


@dataclass(frozen=True, slots=True)
class Compare:
    """Recorded before events had fingerprints: ``repeat``, if the idempotency record does not say that the body is another."""

    repeat: Finish | Retry


Step = Append | Finish | Duplicate | Compare | Retry | DeadLetter
"""What is to be done about a message, given its worker."""
Judge = Callable[[Worker, Ledger | None], Step]
"""The step for a worker; with its ledger where its events name the message, or what the message is about."""


class Transactions:
    """The transactions of all workers; knows nothing but the streams."""

    def __init__(
        self,
        *,
        store: EventStore,
        publish: Publish,
        now: Callable[[], datetime],
        new_id: Callable[[], UUID],
    ) -> None:
        self._store = store
        self._workers = Workers(store)
        self._publish = publish
        self._now = now
        self._new_id = new_id

    async def entry(self, worker_id: UUID, command_id: str) -> Entry | None:
        """What became of a command of the worker, as its stream says now; None if it was never recorded."""
        worker = await self._workers.newest(worker_id)
        if self._workers.is_new(worker, command_id):
            return None
        return (await self._workers.ledger(worker_id)).entries.get(command_id)

    async def transact(
        self,
        worker_id: UUID,
        cause: str,
        judge: Judge,
        *,
        about: str | None = None,
        origin: CommandMessage | None = None,
    ) -> Verdict:
        """Take the worker at hand, judge, append at the expected version, and finish; all ways go through here.

        A worker that is kept may be old. An append shows that by its conflict; where nothing is appended, the
        newest is read first. Raises IdTakenError, as ``judge`` may.

        ``cause``: the id of the message; ``about``: of the operation that it reports on.
        """
        async with self._workers.turn(worker_id):
            worker = self._workers.at_hand(worker_id)
            read = worker is None
            if worker is None:
                worker = await self._workers.newest(worker_id)
            for _ in range(TRIES):
                ledger = None
                if not all(self._workers.is_new(worker, each) for each in _asked(worker, cause, about)):
                    ledger = await self._workers.ledger(worker_id)
                    worker, read = ledger.worker, True
                step = judge(worker, ledger)
                replied = ledger.settled_by(cause) if ledger else []
                if isinstance(step, Append):
                    if step.checks and origin:
                        await check_id(self._store, origin)
                    if step.binds and origin and not await bind(self._store, origin, self._new_id()):
                        step = Duplicate()
                        break
                    try:
                        worker, fresh = await self._record(worker, step.events, cause=cause, origin=origin)
                        replied = [*replied, *fresh]
                        break
                    except WrongExpectedVersionError:
                        worker, read = await self._workers.newest(worker_id), True
                elif read:
                    break
                else:
                    worker, read = await self._workers.newest(worker_id), True
            else:
                return Retry(1)
        if isinstance(step, Compare):
            assert origin is not None  # noqa: S101 - reports have no body of a caller's
            record = await load_record(self._store, origin.operation_id)
            same = record is None or record.fingerprint == fingerprint(origin.command)
            step = step.repeat if same else Duplicate()
        match step:
            case Retry() | DeadLetter():
                return step
            case Duplicate():
                assert origin is not None  # noqa: S101 - reports have no body of a caller's
                problem = reused(origin.command_id)
                result = result_of(origin, "rejected", problem=problem)
                for each in replies(result, origin.reply):
                    await self._publish(each)
                count_unrecorded(origin.command_type, result, None, self._now())
                return DeadLetter(problem.detail, problem.code)
            case Append() | Finish():
                done = await self._finish(replied, await step.due(worker))
                if origin is not None and step.answer is not None:
                    count_unrecorded(origin.command_type, step.answer, worker, self._now())
                return done
        assert_never(step)

    async def _finish(self, replied: Sequence[Entry], due: Sequence[Outgoing]) -> Ack:
        """The only way in which the message of a worker is acknowledged: all that it caused is out.

        Which replies its events made due is read from the stream, never remembered: a delivery that finds the
        events there, as the one that appended them died or never learned of it, sends the same replies.
        ``due``: what else is due, e.g. a reply to an address that is not on record.

        Raises:
            BusUnavailableError: the message has to come again.
            CallerRefusesError: a caller does not take its reply; all others have theirs.
        """
        recorded = [each for entry in replied for each in replies(entry.result, entry.requested.reply)]
        refused: CallerRefusesError | None = None
        for each in [*recorded, *(each for each in due if each not in recorded)]:
            try:
                await self._publish(each)
            except CallerRefusesError as error:
                refused = error
        if refused is not None:
            raise refused
        return Ack()

    async def _record(
        self,
        worker: Worker,
        events: Sequence[WorkerEvent],
        *,
        cause: str,
        origin: CommandMessage | None = None,
    ) -> tuple[Worker, Sequence[Entry]]:
        """Append the events; the worker after them, and what they settled. Raises WrongExpectedVersionError.

        The event ids are new at every attempt: with ids that follow from the command, the store would take
        the append of a concurrent repetition for the first one's and answer both with success, and the
        second delivery would never learn that its reply is not on its way.
        """
        now = self._now()
        recorded = [
            Recorded(
                revision=worker.revision + 1 + index,
                event=event,
                metadata=metadata_of(worker, event, now, self._new_id(), cause, origin),
            )
            for index, event in enumerate(events)
        ]
        after = await self._workers.append(worker, recorded)
        log.info("recorded", events=[_named(event) for event in events], revision=after.revision)
        ledger = Ledger(worker)
        for each in recorded:
            ledger.add(each)
        settled = ledger.settled_by(cause)
        count(events, settled, after, now)
        return after, settled


def _asked(worker: Worker, cause: str, about: str | None) -> Iterable[str]:
    """What the worker's events may say more of than the worker does."""
    return (cause,) if about is None or about in worker.operations else (cause, about)


def _named(event: WorkerEvent) -> str:
    """The event in a line of the log."""
    return f"{event.TYPE} ({event.problem.code})" if isinstance(event, CommandRejected) else event.TYPE
