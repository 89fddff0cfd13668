"""Deliberate faults of deciding, calling EC2 and keeping a place: classic ones, and some that shipped once."""

import contextlib
from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial
from itertools import count
from typing import Any
from uuid import UUID

import pytest

from cml_contracts.commands import UpdateCMLWorkerTags
from cml_contracts.events import (
    WorkerEvent,
)
from cml_contracts.instance import Ec2Instance, LaunchParameters, WorkerStatus
from cml_workers.bus.port import Ack, Message, Verdict
from cml_workers.domain import decide as rules
from cml_workers.domain.fold import advance
from cml_workers.domain.messages import AttemptRefused, OperationFailed
from cml_workers.domain.situation import Situation
from cml_workers.domain.worker import Worker
from cml_workers.ec2_adapter import executor as adapter
from cml_workers.ec2_adapter import triggers
from cml_workers.ec2_adapter.acting import Acting
from cml_workers.ec2_adapter.attempts import Report, Turn
from cml_workers.ec2_adapter.calls import Calls
from cml_workers.ec2_adapter.errors import EC2InstanceOperationException, OutcomeUnknownError
from cml_workers.ec2_adapter.instances import Gone, Instances
from cml_workers.ec2_adapter.reports import Reports
from cml_workers.ec2_adapter.tenure import Lease
from cml_workers.ec2_adapter.triggers import Trigger
from cml_workers.eventstore import worker_streams as stream
from cml_workers.eventstore.port import (
    CaughtUp,
    Checkpoint,
    StoredEvent,
)
from cml_workers.eventstore.worker_streams import load
from cml_workers.lifecycle.handler import Lifecycle
from cml_workers.lifecycle.transactions import Transactions
from cml_workers.readmodels.folding import Folding, Step
from cml_workers.relay.relay import Relay
from cml_workers.reminders.reminders import Reminders
from simulation.bus import Broker
from simulation.tables import DatabaseOfProcess


def no_token(patch: pytest.MonkeyPatch) -> None:
    """Every call makes a token of its own, as botocore does."""

    original, numbers = Calls.launch, count()

    async def launch(self: Calls, parameters: LaunchParameters, lease: Lease) -> Ec2Instance:
        token = f"{parameters.client_token[:32]}-{next(numbers)}"
        return await original(self, parameters.model_copy(update={"client_token": token}), lease)

    patch.setattr(Calls, "launch", launch)


def ack_before_append(patch: pytest.MonkeyPatch) -> None:
    """The message is done with when the work begins."""
    original = Lifecycle.on_command

    async def on_command(self: Lifecycle, message: Message) -> Verdict:
        async def work() -> None:
            with contextlib.suppress(ConnectionError):
                await original(self, message)

        store: Any = self._store
        store._process.start(work())
        return Ack()

    patch.setattr(Lifecycle, "on_command", on_command)


def checkpoint_before_rows(patch: pytest.MonkeyPatch) -> None:
    """The position is saved first, the rows in a transaction of their own."""
    original = DatabaseOfProcess.write

    async def write(self: DatabaseOfProcess, work: Any, *, lasting: bool = False) -> Any:
        if getattr(work, "func", None) is not None and work.func.__name__ == "_write":
            generations, (generation, rows, position, events) = work.func.__self__, work.args
            generation = await original(self, partial(generations._write, generation, {}, position, events))
            if generation is None:
                return None
            work = partial(generations._write, generation, rows, position, 0)
        return await original(self, work)

    patch.setattr(DatabaseOfProcess, "write", write)


def no_deduplication(patch: pytest.MonkeyPatch) -> None:
    """A repetition is decided as if it were new."""

    original = Transactions.transact

    async def transact(self: Transactions, worker_id: UUID, cause: str, judge: Any, **more: Any) -> Any:
        return await original(self, worker_id, cause, lambda worker, _: judge(worker, None), **more)

    patch.setattr(Transactions, "transact", transact)


def not_found_means_terminated(patch: pytest.MonkeyPatch) -> None:
    """No patience with EC2's eventual consistency."""

    async def see(self: Instances, worker: Worker) -> Ec2Instance:
        assert worker.instance is not None
        instance = await self.calls.describe(worker.aws_region, worker.instance.instance_id)
        if instance is None:
            raise Gone
        return instance

    patch.setattr(Instances, "see", see)
    patch.setattr(Instances, "may_be_invisible", lambda *_: False)


def unknown_means_failed(patch: pytest.MonkeyPatch) -> None:
    """A time-out is an error like any other."""
    original = Acting._carry_out

    async def carry_out(self: Acting, turn: Turn) -> Report:
        try:
            return await original(self, turn)
        except OutcomeUnknownError as error:
            raise EC2InstanceOperationException("time-out") from error

    patch.setattr(Acting, "_carry_out", carry_out)


def stale_intent(patch: pytest.MonkeyPatch) -> None:
    """The message commands, instead of triggering: what has happened since is not looked at."""
    commanded: ContextVar[int | None] = ContextVar("commanded", default=None)
    original = triggers.read_trigger

    def by_message(message: Message) -> Trigger:
        trigger = original(message)
        commanded.set(None if trigger.event is None else trigger.event.revision)
        return trigger

    async def as_of_then(self: stream.Workers, worker_id: UUID) -> Worker:
        return await load(self._store, worker_id, upto=commanded.get())

    patch.setattr(adapter, "read_trigger", by_message)
    patch.setattr(adapter, "Workers", type("Workers", (stream.Workers,), {"newest": as_of_then}))
    _forget_reports(patch)


def _forget_reports(patch: pytest.MonkeyPatch) -> None:
    original = Acting.act

    async def act(self: Acting, turn: Turn, **why: bool) -> None:
        turn.attempt.report = None
        await original(self, turn, **why)

    patch.setattr(Acting, "act", act)


def reply_before_append(patch: pytest.MonkeyPatch) -> None:
    """The reply is sent first."""
    original = Transactions._record

    async def record(self: Transactions, worker: Worker, events: Any, **circumstances: Any) -> Any:
        held: list[Any] = []

        async def hold(_: stream.Workers, worker: Worker, recorded: Any) -> Worker:
            held.extend(recorded)
            return advance(worker, recorded)

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(stream.Workers, "append", hold)
            _, settled = await original(self, worker, events, **circumstances)
        await self._finish(settled, [])
        return await self._workers.append(worker, held), settled

    patch.setattr(Transactions, "_record", record)


def two_executors(patch: pytest.MonkeyPatch) -> None:
    """The queue of triggers has no single active consumer."""
    original = Broker.__init__

    def init(self: Broker, *arguments: Any) -> None:
        original(self, *arguments)
        self.single_active = False

    patch.setattr(Broker, "__init__", init)


def refused_means_failed(patch: pytest.MonkeyPatch) -> None:
    """A definite error is the operation's failure at once, and until the stream shows it the intent is acted on again."""
    original = Reports.outcome

    async def at_once(self: Reports, turn: Turn, report: Report) -> None:
        if isinstance(report, AttemptRefused):
            report = OperationFailed(
                worker_id=report.worker_id, operation_id=report.operation_id, problem=report.problem
            )
        await original(self, turn, report)

    patch.setattr(Reports, "outcome", at_once)
    _forget_reports(patch)


def done_is_not_uncertain(patch: pytest.MonkeyPatch) -> None:
    """What was done, but could not be reported, is not remembered when the next attempt is refused."""
    original = Acting._attempt

    async def attempt(self: Acting, turn: Turn) -> Report:
        report = await original(self, turn)
        turn.attempt.uncertain_since = None
        return report

    patch.setattr(Acting, "_attempt", attempt)
    _forget_reports(patch)


def standby_trusts_itself(patch: pytest.MonkeyPatch) -> None:
    """A standby that takes over takes the operations of before for untouched."""
    patch.setattr(Acting, "_suspect", lambda *_, **__: None)


def lagging_fold(patch: pytest.MonkeyPatch) -> None:
    """The projector folds whatever part of a stream a replica has."""

    async def before(self: Folding, worker_id: UUID, stored: StoredEvent) -> Worker:
        there = await load(self._store, worker_id, upto=stored.revision - 1) if stored.revision else None
        return there or Worker(worker_id)

    original = Folding.step

    async def step(self: Folding, stored: StoredEvent) -> Step | None:
        self.forget()
        return await original(self, stored)

    patch.setattr(Folding, "_before", before)
    patch.setattr(Folding, "step", step)


def checkpoint_before_confirm(patch: pytest.MonkeyPatch) -> None:
    """The relay saves how far it is before the broker has confirmed."""
    original = Relay.handle

    async def handle(self: Relay, items: Sequence[StoredEvent | Checkpoint | CaughtUp]) -> None:
        for item in items:
            if isinstance(item, StoredEvent):
                await self._save(item.position, None)
        await original(self, items)

    patch.setattr(Relay, "handle", handle)


def no_reminders(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks for what was forgotten."""

    async def nothing(_: Reminders) -> int:
        return 0

    patch.setattr(Reminders, "round", nothing)


def pending_tags_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A tag update is met as soon as what is recorded is as it wants it, whatever is still pending."""
    original = rules._update_tags

    def update_tags(
        command: UpdateCMLWorkerTags, command_id: str, worker: Worker, at: Situation
    ) -> list[WorkerEvent]:
        met = {**worker.tags, **command.tags} == worker.tags
        return [] if met else original(command, command_id, worker, at)

    patch.setattr(rules, "_update_tags", update_tags)


def pending_power_forgotten(patch: pytest.MonkeyPatch) -> None:
    """What was asked of EC2 counts as done."""

    def status(worker: Worker) -> WorkerStatus:
        return worker.status

    patch.setattr(rules, "_at_rest", status)


FAULTS = (
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
    done_is_not_uncertain,
    standby_trusts_itself,
    lagging_fold,
    checkpoint_before_confirm,
    no_reminders,
    pending_tags_forgotten,
    pending_power_forgotten,
)
"""Each is caught by runs by chance."""
