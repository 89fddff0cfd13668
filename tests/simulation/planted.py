"""Deliberate faults, each of which the simulation must catch: the test of the test.

Some are classic. Others were found in code that shipped, most by the simulation, and are fixed. The rest take away what a
promise rests on: a reply on one path, a trigger, an event in one queue, a safety net.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from cml_contracts.commands import UpdateCMLWorkerTags
from cml_contracts.events import (
    EVENTS,
    InstanceStarting,
    OperationRefused,
    StartFailed,
    StopFailed,
    TagsUpdateFailed,
    TerminationFailed,
    WorkerEvent,
    WorkerImported,
)
from cml_contracts.instance import Ec2Instance, LaunchParameters, WorkerStatus
from cml_contracts.topology import EVENTS_EXCHANGE
from cml_workers.bus.port import Ack, BusUnavailableError, Message, Outgoing, Retry, Verdict
from cml_workers.bus.topology import EC2_TRIGGERS
from cml_workers.domain import decide as rules
from cml_workers.domain.ledger import Entry
from cml_workers.domain.messages import AttemptRefused, OperationFailed
from cml_workers.domain.worker import Worker, advance
from cml_workers.ec2_adapter import executor as adapter
from cml_workers.ec2_adapter import triggers
from cml_workers.ec2_adapter.acting import Acting
from cml_workers.ec2_adapter.attempts import Report, Turn
from cml_workers.ec2_adapter.calls import Calls
from cml_workers.ec2_adapter.errors import EC2InstanceOperationException, OutcomeUnknownError
from cml_workers.ec2_adapter.executor import Executor
from cml_workers.ec2_adapter.instances import Gone, Instances
from cml_workers.ec2_adapter.reports import Reports
from cml_workers.ec2_adapter.retry_policy import HANDED_ON
from cml_workers.ec2_adapter.tenure import Lease
from cml_workers.ec2_adapter.triggers import Trigger
from cml_workers.ec2_adapter.watching import Poller
from cml_workers.eventstore import worker_streams as stream
from cml_workers.eventstore.following import follow_from
from cml_workers.eventstore.port import (
    CaughtUp,
    Checkpoint,
    StoredEvent,
    WrongExpectedVersionError,
)
from cml_workers.eventstore.worker_streams import load
from cml_workers.lifecycle.handler import Lifecycle
from cml_workers.lifecycle.transactions import Transactions
from cml_workers.readmodels.folding import Folding, Step
from cml_workers.relay.relay import Relay
from cml_workers.reminders.reminders import Reminders
from simulation import fleet
from simulation.bus import Broker
from simulation.delivery import Consumer, Delivery, QueueState
from simulation.planted_messages import MESSAGES
from simulation.run import Outcome, simulate, simulate_script
from simulation.sweep import Plan, scripts, swept
from simulation.tables import DatabaseOfProcess
from simulation.world import Process

Plant = Callable[[pytest.MonkeyPatch], None]


def no_token(patch: pytest.MonkeyPatch) -> None:
    """Every call makes a token of its own, as botocore does."""

    original = Calls.launch

    async def launch(self: Calls, parameters: LaunchParameters, lease: Lease) -> Ec2Instance:
        ec2: Any = self._ec2
        token = ec2._world.new_id().hex
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

    async def write(self: DatabaseOfProcess, work: Any) -> Any:
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
                await self._save(item.position)
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

    def update_tags(command: UpdateCMLWorkerTags, command_id: str, worker: Worker) -> list[WorkerEvent]:
        met = {**worker.tags, **command.tags} == worker.tags
        return [] if met else original(command, command_id, worker)

    patch.setattr(rules, "_update_tags", update_tags)


def pending_power_forgotten(patch: pytest.MonkeyPatch) -> None:
    """What was asked of EC2 counts as done."""

    def status(worker: Worker) -> WorkerStatus:
        return worker.status

    patch.setattr(rules, "_at_rest", status)


# -- a reply that is forgotten on one path ----------------------------------------------------------------


_PARTIAL: ContextVar[bool] = ContextVar("partly", default=False)


def _forget_others(patch: pytest.MonkeyPatch) -> None:
    """Whoever handles a message while ``_PARTIAL`` is set does not see what it settled."""

    original = Transactions._finish

    async def without_some(self: Transactions, settled: Sequence[Entry], due: Any) -> Ack:
        return await original(self, [] if _PARTIAL.get() else settled, due)

    patch.setattr(Transactions, "_finish", without_some)


def _finishes_without_others(patch: pytest.MonkeyPatch, *, pending: bool) -> None:
    original = Transactions.transact

    async def transact(self: Transactions, worker_id: UUID, cause: str, judge: Any, **more: Any) -> Any:
        found = await self.entry(worker_id, cause)
        token = _PARTIAL.set(found is not None and (found.result is None) is pending)
        try:
            return await original(self, worker_id, cause, judge, **more)
        finally:
            _PARTIAL.reset(token)

    _forget_others(patch)
    patch.setattr(Transactions, "transact", transact)


def reply_forgotten_while_pending(patch: pytest.MonkeyPatch) -> None:
    """A command that is found pending is done, and what it settled of others is forgotten (found on a real store)."""
    _finishes_without_others(patch, pending=True)


def reply_forgotten_when_settled(patch: pytest.MonkeyPatch) -> None:
    """A command that is found settled is answered, and nobody else."""
    _finishes_without_others(patch, pending=False)


def reply_forgotten_by_a_report(patch: pytest.MonkeyPatch) -> None:
    """A report of nothing new is done, and the replies of its first delivery are forgotten."""
    original = Lifecycle._settle

    async def settle(self: Lifecycle, report: Any, report_id: str, attempt: int) -> Verdict:
        ledger = await stream.load_ledger(self._store, report.worker_id)
        if ledger.settled_by(report_id):
            return Ack()
        return await original(self, report, report_id, attempt)

    patch.setattr(Lifecycle, "_settle", settle)


def reply_forgotten_of_a_rejection(patch: pytest.MonkeyPatch) -> None:
    """A rejection that is recorded and gets no reply."""
    original = Transactions._finish

    async def not_rejected(self: Transactions, settled: Sequence[Entry], due: Any) -> Ack:
        others = [each for each in settled if each.result and each.result.outcome != "rejected"]
        return await original(self, others, due)

    patch.setattr(Transactions, "_finish", not_rejected)


def reply_forgotten_by_a_status_update(patch: pytest.MonkeyPatch) -> None:
    """A status update answers its own caller, and forgets whose operations it ended."""
    original = Lifecycle._decide_status

    async def decide_status(self: Lifecycle, message: Any, *arguments: Any) -> Verdict:
        token = _PARTIAL.set(True)
        try:
            return await original(self, message, *arguments)
        finally:
            _PARTIAL.reset(token)

    _forget_others(patch)
    patch.setattr(Lifecycle, "_decide_status", decide_status)


# -- an event that does not arrive ------------------------------------------------------------------------


def event_missing_in_one_queue(patch: pytest.MonkeyPatch) -> None:
    """The broker has the event, and one subscriber's queue never gets it."""
    original = Broker.to_subscriber

    def to_subscriber(self: Broker, message: Outgoing) -> None:
        if message.type != InstanceStarting.TYPE:
            original(self, message)

    patch.setattr(Broker, "to_subscriber", to_subscriber)


def _without_trigger(event: type[WorkerEvent]) -> Plant:
    """The adapter's queue is not bound to this type of event."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        original = Broker.__init__

        def init(self: Broker, *arguments: Any) -> None:
            original(self, *arguments)
            state = self.queues[EC2_TRIGGERS.name]
            left = tuple(each for each in EC2_TRIGGERS.bindings if each.routing_key != event.TYPE)
            assert len(left) == len(EC2_TRIGGERS.bindings) - 1
            state.queue = replace(EC2_TRIGGERS, bindings=left)

        patch.setattr(Broker, "__init__", init)

    return plant


# -- a safety net that is taken away ----------------------------------------------------------------------


def no_redelivery(patch: pytest.MonkeyPatch) -> None:
    """What a consumer had when it was lost is gone."""

    def give_back(self: Broker, state: QueueState, consumer: Consumer, delivery: Delivery) -> None:
        if delivery.owner is consumer and delivery in state.taken:
            state.taken.remove(delivery)
            consumer.holding -= 1

    patch.setattr(Broker, "_give_back", give_back)


def not_retried(patch: pytest.MonkeyPatch) -> None:
    """What cannot be done as a part is unavailable is acknowledged all the same."""
    original = Broker._settle

    async def settle(self: Broker, state: QueueState, delivery: Delivery, verdict: Verdict, bus: Any) -> None:
        if delivery.after_error and isinstance(verdict, Retry):
            return
        await original(self, state, delivery, verdict, bus)

    patch.setattr(Broker, "_settle", settle)


def no_redrive(patch: pytest.MonkeyPatch) -> None:
    """No operator ever looks at the dead letters."""
    patch.setattr(Broker, "redrive", lambda _: None)


def not_published_again(patch: pytest.MonkeyPatch) -> None:
    """The relay goes on where an event was not confirmed."""

    async def once(self: Relay, message: Outgoing) -> None:
        with contextlib.suppress(BusUnavailableError):
            await self._publish(message)

    patch.setattr(Relay, "_until_confirmed", once)


def not_decided_again(patch: pytest.MonkeyPatch) -> None:
    """Whoever loses the race for a stream takes it for done."""
    original = Transactions._record

    async def record(self: Transactions, worker: Worker, *arguments: Any, **circumstances: Any) -> Any:
        try:
            return await original(self, worker, *arguments, **circumstances)
        except WrongExpectedVersionError:
            return worker, []

    patch.setattr(Transactions, "_record", record)


def not_followed_again(patch: pytest.MonkeyPatch) -> None:
    """A follower that has lost the store does not come back."""
    original = follow_from

    async def once(*arguments: Any, **options: Any) -> None:
        def never(_: int) -> float:
            return 1e9

        await original(*arguments, **{**options, "backoff": never})

    patch.setattr(fleet, "follow_from", once)


def not_consumed_again(patch: pytest.MonkeyPatch) -> None:
    """Who has lost the connection to the broker does not come back, and does not end either."""
    patch.setattr(Process, "_return", lambda _: None)


def not_rechecked(patch: pytest.MonkeyPatch) -> None:
    """A call that is carried out late is nobody's business."""

    async def nothing(_: Reports, __: UUID) -> None:
        return

    patch.setattr(Reports, "recheck", nothing)


def not_watched(patch: pytest.MonkeyPatch) -> None:
    """Nobody sees how an instance gets on."""
    patch.setattr(Poller, "watch", lambda *_: None)


def waits_in_memory_only(patch: pytest.MonkeyPatch) -> None:
    """The message of an operation that waits is acknowledged, and whoever waits dies."""
    original = Executor.on_trigger

    async def on_trigger(self: Executor, message: Message) -> Verdict:
        verdict = await original(self, message)
        return Ack() if verdict == Retry(HANDED_ON) else verdict

    patch.setattr(Executor, "on_trigger", on_trigger)


# -- catching them ----------------------------------------------------------------------------------------

SEEDS, SWEEP, CALM_RUNS = "seeds", "sweep", "runs without a fault"


@dataclass(frozen=True, slots=True)
class Planted:
    """A fault, and how it is caught; ``script``: with the sweep, a part of the names of the scripts that catch it."""

    plant: Plant
    by: str = SEEDS
    script: str = ""


TRIGGERS = [EVENTS[each.routing_key] for each in EC2_TRIGGERS.bindings if each.exchange == EVENTS_EXCHANGE]
SEEN_BY_THE_WALK = {StartFailed, StopFailed, TerminationFailed, TagsUpdateFailed, WorkerImported}
"""Triggers that are needed only where more comes together than in a script: ``tests/ec2_adapter/test_triggers.py``.

An import requests its tags in the same append, and the trigger of that begins the watch as well.
"""

PLANTED: Mapping[str, Planted] = {
    **{
        each.__name__: Planted(each)
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
            done_is_not_uncertain,
            standby_trusts_itself,
            lagging_fold,
            checkpoint_before_confirm,
            no_reminders,
            pending_tags_forgotten,
            pending_power_forgotten,
            no_redelivery,
            not_retried,
            no_redrive,
            not_published_again,
            not_decided_again,
            not_followed_again,
            not_consumed_again,
            *MESSAGES,
        )
    },
    "reply_forgotten_while_pending": Planted(
        reply_forgotten_while_pending, SWEEP, "start, terminate when it is requested"
    ),
    "reply_forgotten_when_settled": Planted(
        reply_forgotten_when_settled, SWEEP, "start, terminate when it is requested"
    ),
    "reply_forgotten_by_a_report": Planted(reply_forgotten_by_a_report, SWEEP, "stop, terminate, terminate"),
    "reply_forgotten_of_a_rejection": Planted(reply_forgotten_of_a_rejection, CALM_RUNS),
    "reply_forgotten_by_a_status_update": Planted(
        reply_forgotten_by_a_status_update, SWEEP, "terminate, update_status when it is called"
    ),
    "event_missing_in_one_queue": Planted(event_missing_in_one_queue, CALM_RUNS),
    "not_watched": Planted(not_watched, CALM_RUNS),
    "waits_in_memory_only": Planted(waits_in_memory_only, SWEEP, "create, stop when it is settled"),
    "not_rechecked": Planted(not_rechecked, SWEEP, "update_tags, update_tags when it is"),
    **{
        f"no_trigger_{event.__name__}": Planted(_without_trigger(event), CALM_RUNS)
        for event in TRIGGERS
        if event is not OperationRefused and event not in SEEN_BY_THE_WALK
    },
    "no_trigger_OperationRefused": Planted(
        _without_trigger(OperationRefused), SWEEP, "start, stop when it is req"
    ),
}


def caught_by(name: str, *, enough: int = 2, most: int = 2000) -> str:
    """What caught a planted fault, and how soon; empty if nothing did."""
    planted = PLANTED[name]
    with pytest.MonkeyPatch.context() as patch:
        planted.plant(patch)
        if planted.by == SEEDS:
            runs = (simulate(seed) for seed in range(most))
            last = most
        else:
            names = [each for each in scripts() if planted.script in each]
            if planted.by == CALM_RUNS:
                runs = (simulate_script(scripts()[each]) for each in names)
                last = len(names)
            else:
                points = Plan.of(names, 1).points
                runs = (outcome for each in points for outcome in swept([each]))
                last = len(points)
        failed: list[Outcome] = []
        for tried, outcome in enumerate(runs, 1):
            if outcome.violations:
                failed.append(outcome)
            if len(failed) == enough or (failed and tried == last):
                return (
                    f"{planted.by}: {len(failed)} of the first {tried} of {last}, e.g. {failed[0].name}: "
                    f"{failed[0].violations[0][:100]}"
                )
        return ""
