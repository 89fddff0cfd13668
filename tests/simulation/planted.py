"""Deliberate faults, each of which a campaign must catch: the test of the test.

The first nine are classic. The others were found in code that shipped, most by the simulation, and are mended.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
import structlog

from cml_contracts.commands import UpdateCMLWorkerTags
from cml_contracts.envelope import worker_of
from cml_contracts.events import WorkerEvent
from cml_contracts.instance import Ec2Instance, LaunchParameters, WorkerStatus
from cml_contracts.queries import OperationView, WorkerView
from cml_contracts.reports import AttemptRefused, OperationFailed
from cml_workers import stream
from cml_workers.bus.port import Done, Message, Verdict
from cml_workers.ec2_adapter import executor as adapter
from cml_workers.ec2_adapter.errors import EC2InstanceOperationException, OutcomeUnknownError
from cml_workers.ec2_adapter.executor import Executor, Gone, Outcome, Turn
from cml_workers.eventstore.port import CaughtUp, Checkpoint, EventStore, StoredEvent
from cml_workers.lifecycle import decide as rules
from cml_workers.lifecycle import handler as lifecycle
from cml_workers.lifecycle.handler import Lifecycle
from cml_workers.projector import projector
from cml_workers.projector.read_model import FOLLOWER
from cml_workers.projector.reminders import Reminders
from cml_workers.projector.rows import operation_rows, worker_row
from cml_workers.relay.relay import Relay
from cml_workers.stream import load
from cml_workers.worker import Worker, evolve
from simulation.bus import Broker
from simulation.tables import ReadModelOfProcess

Plant = Callable[[pytest.MonkeyPatch], None]


def no_token(patch: pytest.MonkeyPatch) -> None:
    """Every call makes a token of its own, as botocore does."""

    async def launch(self: Executor, _: Turn, parameters: LaunchParameters) -> Ec2Instance:
        ec2: Any = self._ec2
        token = ec2._world.new_id().hex
        return await self._ec2.launch(parameters.model_copy(update={"client_token": token}))

    patch.setattr(Executor, "_launch", launch)


def ack_before_append(patch: pytest.MonkeyPatch) -> None:
    """The message is done with when the work begins."""
    original = Lifecycle.on_command

    async def on_command(self: Lifecycle, message: Message) -> Verdict:
        async def work() -> None:
            with contextlib.suppress(ConnectionError):
                await original(self, message)

        store: Any = self._store
        store._process.start(work())
        return Done()

    patch.setattr(Lifecycle, "on_command", on_command)


def checkpoint_before_rows(patch: pytest.MonkeyPatch) -> None:
    """The position is saved first, the rows in a transaction of their own."""
    original = ReadModelOfProcess.write

    async def write(
        self: ReadModelOfProcess,
        workers: Iterable[WorkerView],
        operations: Iterable[OperationView],
        position: str,
    ) -> None:
        await self.save(FOLLOWER, position)
        await original(self, workers, operations, position)

    patch.setattr(ReadModelOfProcess, "write", write)


def no_deduplication(patch: pytest.MonkeyPatch) -> None:
    """A repetition is decided as if it were new."""

    async def forgetful(store: EventStore, worker_id: UUID, *, upto: int | None = None) -> Worker:
        worker = await load(store, worker_id, upto=upto)
        command_id = structlog.contextvars.get_contextvars().get("command_id")
        others = {name: each for name, each in worker.operations.items() if name != command_id}
        return replace(worker, operations=others)

    patch.setattr(lifecycle, "load", forgetful)


def not_found_means_terminated(patch: pytest.MonkeyPatch) -> None:
    """No patience with EC2's eventual consistency."""

    async def see(self: Executor, worker: Worker) -> Ec2Instance:
        assert worker.instance is not None
        instance = await self._ec2.describe(worker.aws_region, worker.instance.instance_id)
        if instance is None:
            raise Gone
        return instance

    patch.setattr(Executor, "_see", see)


def unknown_means_failed(patch: pytest.MonkeyPatch) -> None:
    """A time-out is an error like any other."""
    original = Executor._carry_out

    async def carry_out(self: Executor, turn: Turn) -> Outcome:
        try:
            return await original(self, turn)
        except OutcomeUnknownError as error:
            raise EC2InstanceOperationException("time-out") from error

    patch.setattr(Executor, "_carry_out", carry_out)


def stale_intent(patch: pytest.MonkeyPatch) -> None:
    """The message commands, instead of waking: what has happened since is not looked at."""
    woken: ContextVar[int | None] = ContextVar("woken", default=None)
    original = adapter._woken

    def by_message(message: Message) -> tuple[UUID, int | None, datetime | None]:
        worker_id, revision, tags_doubted_at = original(message)
        woken.set(revision)
        return worker_id, revision, tags_doubted_at

    async def as_of_then(store: EventStore, worker_id: UUID) -> Worker:
        return await load(store, worker_id, upto=woken.get())

    patch.setattr(adapter, "_woken", by_message)
    patch.setattr(adapter, "load", as_of_then)
    _forget_reports(patch)


def _forget_reports(patch: pytest.MonkeyPatch) -> None:
    original = Executor._act

    async def act(self: Executor, turn: Turn, message: Message) -> bool:
        self._reported.clear()
        return await original(self, turn, message)

    patch.setattr(Executor, "_act", act)


def reply_before_append(patch: pytest.MonkeyPatch) -> None:
    """The caller is told first."""
    original = Lifecycle._record

    async def record(self: Lifecycle, worker: Worker, events: Any, **circumstances: Any) -> Worker:
        held: list[Any] = []

        async def hold(*arguments: Any) -> None:
            held.append(arguments)

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(lifecycle, "append", hold)
            after = await original(self, worker, events, **circumstances)
        await self._finish(after, circumstances["cause"])
        await stream.append(*held[0])
        return after

    patch.setattr(Lifecycle, "_record", record)


def two_executors(patch: pytest.MonkeyPatch) -> None:
    """The queue of wake-ups has no single active consumer."""
    original = Broker.__init__

    def init(self: Broker, *arguments: Any) -> None:
        original(self, *arguments)
        self.single_active = False

    patch.setattr(Broker, "__init__", init)


def refused_means_failed(patch: pytest.MonkeyPatch) -> None:
    """A definite error is the operation's failure at once, and until the stream shows it the intent is acted on again."""
    original = Executor._report_outcome

    async def at_once(self: Executor, turn: Turn, report: Outcome) -> None:
        if isinstance(report, AttemptRefused):
            report = OperationFailed(
                worker_id=report.worker_id, operation_id=report.operation_id, problem=report.problem
            )
        await original(self, turn, report)

    patch.setattr(Executor, "_report_outcome", at_once)
    _forget_reports(patch)


def done_is_not_in_doubt(patch: pytest.MonkeyPatch) -> None:
    """What was done, but could not be reported, is not remembered when the next attempt is refused."""
    original = Executor._carry_out

    async def carry_out(self: Executor, turn: Turn) -> Outcome:
        done = await original(self, turn)
        self._in_doubt = _Trusting()
        return done

    patch.setattr(Executor, "_carry_out", carry_out)
    _forget_reports(patch)


class _Trusting(dict[str, datetime]):
    def __setitem__(self, key: str, value: datetime) -> None:
        """Nothing is ever in doubt."""


def standby_trusts_itself(patch: pytest.MonkeyPatch) -> None:
    """A standby that takes over takes the intents of before for untouched."""
    patch.setattr(Executor, "_suspect", lambda *_: False)


def lagging_fold(patch: pytest.MonkeyPatch) -> None:
    """The projector folds whatever part of a stream a replica has."""

    async def apply(self: projector.Projector, stored: StoredEvent) -> None:
        worker_id = worker_of(stored.stream)
        before = await load(self._store, worker_id, upto=stored.revision - 1) if stored.revision else None
        after = evolve(before or Worker(worker_id), stream.decode(stored))
        row = worker_row(after)
        if row is not None:
            self._workers[worker_id] = row
        for operation in operation_rows(after, before or Worker(worker_id)):
            self._operations[operation.command_id] = operation

    patch.setattr(projector.Projector, "_apply", apply)


def checkpoint_before_confirm(patch: pytest.MonkeyPatch) -> None:
    """The relay saves how far it is before the broker has confirmed."""
    original = Relay.handle

    async def handle(self: Relay, item: StoredEvent | Checkpoint | CaughtUp) -> None:
        if isinstance(item, StoredEvent):
            await self._save(item.position)
        await original(self, item)

    patch.setattr(Relay, "handle", handle)


def no_reminders(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks for what was forgotten."""

    async def nothing(_: Reminders) -> int:
        return 0

    patch.setattr(Reminders, "round", nothing)


def status_decided_anew(patch: pytest.MonkeyPatch) -> None:
    """A status update is answered by whatever is true at each delivery."""

    async def unbound(_: EventStore, result: Any, __: UUID) -> Any:
        return result

    patch.setattr(lifecycle, "bind_answer", unbound)


def owed_tags_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A tag update is met as soon as what is recorded is as it wants it, whatever is still owed."""
    original = rules._update_tags

    def update_tags(command: UpdateCMLWorkerTags, command_id: str, worker: Worker) -> list[WorkerEvent]:
        met = {**worker.tags, **command.tags} == worker.tags
        return [] if met else original(command, command_id, worker)

    patch.setattr(rules, "_update_tags", update_tags)


def owed_power_forgotten(patch: pytest.MonkeyPatch) -> None:
    """What was asked of EC2 counts as done."""

    def status(worker: Worker) -> WorkerStatus:
        return worker.status

    patch.setattr(rules, "_at_rest", status)


PLANTED: Mapping[str, Plant] = {
    each.__name__: each
    for each in (
        no_token,
        ack_before_append,
        checkpoint_before_rows,
        no_deduplication,
        not_found_means_terminated,
        unknown_means_failed,
        stale_intent,
        reply_before_append,
        two_executors,
        refused_means_failed,
        done_is_not_in_doubt,
        standby_trusts_itself,
        lagging_fold,
        checkpoint_before_confirm,
        no_reminders,
        status_decided_anew,
        owed_tags_forgotten,
        owed_power_forgotten,
    )
}
