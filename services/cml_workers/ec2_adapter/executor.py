"""Carries out the pending operations of workers on EC2, one at a time for each worker, and watches unsettled instances.

A message only triggers a visit to the worker: before anything is changed, what is pending is read from its stream, so stale and
repeated messages are harmless. The message waits for the visit where its region has a place for that (decision 29). What has to wait is on an agenda in memory, and instances that are on their way are watched by one poller
for each region. The message of an operation that waits comes back from the broker all the same, and reminders bring back
what is watched, in case this process dies (decision 17).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import Context
from datetime import datetime, timedelta
from functools import partial
from typing import assert_never
from uuid import UUID

from cml_contracts.events import TerminationRequested
from cml_contracts.instance import Ec2Instance, InstanceState
from cml_contracts.results import Problem, ProblemCode
from cml_workers.bus.codec import BadMessageError
from cml_workers.bus.port import Ack, DeadLetter, Message, Publish, Retry, Verdict
from cml_workers.domain.operations import ids_of
from cml_workers.domain.policy import VISIBILITY_GRACE
from cml_workers.domain.worker import Worker
from cml_workers.ec2_adapter.acting import Acting
from cml_workers.ec2_adapter.agenda import Agenda
from cml_workers.ec2_adapter.attempts import Attempts, Turn
from cml_workers.ec2_adapter.calls import Calls
from cml_workers.ec2_adapter.handover import Handover
from cml_workers.ec2_adapter.instances import Instances, InTransition
from cml_workers.ec2_adapter.limits import AWS_LIMITS, Bucket, Limits
from cml_workers.ec2_adapter.lookups import Lookups
from cml_workers.ec2_adapter.next_action import Act, Watch, next_actions
from cml_workers.ec2_adapter.port import Ec2
from cml_workers.ec2_adapter.recheck import recheck
from cml_workers.ec2_adapter.reports import NOBODY, Reports
from cml_workers.ec2_adapter.retry_policy import HANDED_ON, rules
from cml_workers.ec2_adapter.tenure import FRESH, TAKEOVER, Lease, NotYet, Tenure
from cml_workers.ec2_adapter.triggers import Trigger, advanced, read_trigger
from cml_workers.ec2_adapter.visits import Places, Visit, Visits
from cml_workers.ec2_adapter.watching import Poller
from cml_workers.eventstore.port import EventStore
from cml_workers.eventstore.worker_streams import UNSEEN_ATTEMPTS, Workers
from cml_workers.foundation.ids import about, bind
from cml_workers.foundation.outages import NO_OUTAGES, Outages
from cml_workers.foundation.tracing import REGION, span

NOT_SEEN = -2
"""No revision of an event."""
PLACES = 100
LEAVING = 2.0
"""Seconds for calls that are under way when the process is stopped."""


class Executor:
    """The one that acts on AWS. One instance at a time is the leader in a deployment (single active consumer)."""

    def __init__(
        self,
        *,
        store: EventStore,
        ec2: Ec2,
        publish: Publish,
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float],
        limits: Mapping[str, Bucket] | None = AWS_LIMITS,
        visibility_grace: timedelta = VISIBILITY_GRACE,
        authentication_grace: timedelta = timedelta(minutes=1),
        fresh: timedelta = FRESH,
        takeover: timedelta = TAKEOVER,
        places: int = PLACES,
        outages: Outages = NO_OUTAGES,
    ) -> None:
        """``places``: messages of a queue that the broker hands out at once; ``outages``: of the store."""
        calls = Calls(ec2, Limits(limits, now=now, sleep=sleep, random=random), sleep)
        self._reports = Reports(publish, now, sleep)
        self._here = Instances(calls, self._reports, now=now, sleep=sleep, visibility_grace=visibility_grace)
        self._workers = Workers(store)
        self._outages = outages
        self._tenure = Tenure(now, fresh=fresh, takeover=takeover)
        self._attempts = Attempts()
        self._acting = Acting(self._here, self._tenure, rules(authentication_grace))
        self._places = Places(places)
        self._visits = Visits(self._visit, self._failed)
        self._agenda: Agenda[UUID] = Agenda(self._due, now=now, sleep=sleep, random=random)
        self._poller = Poller(self._here, self._moved, now=now, sleep=sleep, random=random)
        self._seen: dict[UUID, tuple[int, Ec2Instance | None]] = {}
        """Instances that have moved since the event of that revision, None: gone; their workers are on the agenda."""
        self._handover = Handover(self._reports.remind, sleep)
        self._leaving = False
        self._lookups = Lookups(calls, self._reports, sleep, Places(places))
        self.on_lookup = self._lookups.on_lookup

    # -- leadership ---------------------------------------------------------------------------------------

    async def announce(self) -> None:
        """Trigger the leader, so that it knows that it is."""
        await self._reports.announce()

    def disconnected(self) -> None:
        """The broker has lost this process, and another may act: what is known here may be superseded."""
        self._tenure.lose()
        self._handover.add(self._in_memory())
        self._attempts.clear()
        self._visits.clear()
        self._agenda.clear()
        self._poller.clear()
        self._seen.clear()

    def connected(self) -> None:
        """The next trigger shows that this process is the leader; it, or who is, goes on with what was forgotten."""
        self._tenure.regain()
        self._handover.start()

    async def hand_over(self) -> None:
        """Leave to the next leader what is in memory: publish a reminder of it, and handle nothing any more."""
        self._leaving = True
        self._handover.add(self._in_memory())
        await self._visits.leave(LEAVING)
        if self._tenure.held:
            await self._handover.publish()

    def _in_memory(self) -> Iterable[UUID]:
        return (*self._visits.workers, *self._agenda.keys, *self._poller.workers)

    async def close(self) -> None:
        """End what is under way in memory."""
        await self._handover.close()
        await self._visits.close()
        await self._lookups.close()
        await self._agenda.close()
        await self._poller.close()

    # -- what brings a worker here ------------------------------------------------------------------------

    async def on_trigger(self, message: Message) -> Verdict:
        """Do what the worker's stream shows as pending."""
        if self._leaving:
            return Retry(1)
        self._tenure.begin()
        if not self._tenure.held:
            return Retry(1)  # the connection is lost, or not wholly restored: nothing is remembered here
        try:
            trigger = read_trigger(message)
        except BadMessageError as error:
            return DeadLetter(error.problem.detail, ProblemCode.VALIDATION_FAILED)
        bind(worker_id=trigger.worker_id if trigger.worker_id != NOBODY else None)
        if trigger.event is not None:
            bind(command_id=trigger.event.command_id, revision=trigger.event.revision)
        if await self._done_without_reading(trigger):
            return Ack()
        with self._places.held(await self._region(trigger)) as has_place:
            if trigger.recheck_since is not None and not has_place:
                return Retry()  # whether it is done nobody would know
            visit = self._asked(trigger, message)
            if not has_place:
                return self._handed_on(trigger)
            if not await visit.end():
                return Retry(1)
            return self._verdict(visit, trigger, message)

    async def _done_without_reading(self, trigger: Trigger) -> bool:
        """Whether the worker after the event of the trigger is at hand and nothing is pending: nothing will be changed."""
        if trigger.event is None or trigger.worker_id in self._visits:
            return False
        worker = advanced(self._workers, trigger.event)
        if worker is None or _has_pending(worker):
            return False
        await self._attend(Visit(worker.id, Context()), worker, self._tenure.lease())
        return True

    async def _region(self, trigger: Trigger) -> str:
        worker = self._workers.at_hand(trigger.worker_id)
        if worker is None and trigger.region is not None:
            return trigger.region
        return (worker or await self._workers.newest(trigger.worker_id)).aws_region

    def _asked(self, trigger: Trigger, message: Message) -> Visit:
        visit = self._visits.ask(trigger.worker_id)
        visit.suspect |= message.redelivered
        visit.remind |= trigger.event is None
        if trigger.event is not None:
            visit.upto = max(visit.upto, trigger.event.revision)
        if trigger.recheck_since is not None:
            visit.rechecks[trigger.recheck_since] = False
        return visit

    def _verdict(self, visit: Visit, trigger: Trigger, message: Message) -> Verdict:
        """What becomes of a message that has waited for the visit."""
        if trigger.event is not None and visit.revision < trigger.event.revision:
            if message.attempt < UNSEEN_ATTEMPTS:
                return Retry(1)  # a replica of the store that lags behind
            return DeadLetter(
                f"worker {visit.worker_id} has no event {trigger.event.revision}; the last is {visit.revision}",
                ProblemCode.VALIDATION_FAILED,
            )
        if trigger.recheck_since is not None and not visit.rechecks[trigger.recheck_since]:
            return Retry()
        return self._handed_on(trigger) if visit.waits else Ack()

    def _handed_on(self, trigger: Trigger) -> Verdict:
        """What waits in memory goes on there; its message comes back in case this process dies."""
        if not self._tenure.held:
            return Retry(1)  # the connection was lost meanwhile, and what waited was forgotten
        return Retry(HANDED_ON) if trigger.is_durable else Ack()

    def _moved(self, worker: Worker, instance: Ec2Instance | None) -> None:
        """The poller has seen that the instance is not as it was."""
        self._seen[worker.id] = worker.observed_revision, instance
        self._agenda.ring_in(worker.id, 0)

    async def _due(self, worker_id: UUID) -> None:
        """Go on with what waited, or report how the instance has moved."""
        await self._outages.over()
        if self._tenure.held:
            self._visits.ask(worker_id)

    def _failed(self, worker_id: UUID, error: Exception) -> None:
        """A visit for which no message waits is made again. A part that is unavailable has been logged by its port."""
        self._outages.suspect(error)
        if not isinstance(error, ConnectionError):
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"a visit to worker {worker_id} failed", "exception": error}
            )
        if self._tenure.held:
            self._agenda.again(worker_id)

    # -- one worker at a time -----------------------------------------------------------------------------

    async def _visit(self, visit: Visit) -> None:
        """Do what is due, and what the messages have asked for. Raises ConnectionError: once more."""
        worker_id = visit.worker_id
        with about(worker_id=worker_id):
            since, seen = self._seen.pop(worker_id, (NOT_SEEN, None))
            worker = self._poller.worker(worker_id)
            if worker is not None and worker.observed_revision == since and not _has_pending(worker):
                with span("observe", {REGION: worker.aws_region}, link=self._poller.origin(worker)):
                    await self._observe(worker, seen)
                if not visit.is_asked_by_message:
                    return
                since = NOT_SEEN
            lease = self._tenure.lease(partial(self._workers.newest, worker_id))
            worker = await lease.read()
            visit.revision = worker.revision
            if worker.revision < visit.upto:
                return
            # What happened since is newer than what was seen.
            seen = seen if worker.observed_revision == since else None
            visit.waits = await self._attend(visit, worker, lease, seen)
            if visit.rechecks:
                ledger = await self._workers.ledger(worker_id)
                for recheck_since in visit.rechecks:
                    visit.rechecks[recheck_since] = await recheck(ledger, recheck_since, lease, self._here)

    async def _attend(
        self, visit: Visit, worker: Worker, lease: Lease, seen: Ec2Instance | None = None
    ) -> bool:
        """Do what is due; whether an operation waits: then it is on the agenda, or its instance is watched."""
        if worker.instance is not None:
            bind(instance_id=worker.instance.instance_id)
        self._attempts.keep_pending(worker)
        watched: Ec2Instance | None = None
        unsuccessful: list[tuple[Turn, Problem]] = []
        waits = moving = False
        for action in next_actions(worker):
            match action:
                case Act(operation, intent):
                    attempt = self._attempts.at(worker, operation)
                    turn = Turn(worker, operation, intent, attempt, lease, seen)
                    with about(**ids_of(operation.command_id)):
                        try:
                            await self._acting.act(turn, suspect=visit.suspect, remind=visit.remind)
                            if isinstance(intent, TerminationRequested) and attempt.is_done:
                                self._attempts.forget(worker.id)
                        except InTransition as on_its_way:
                            moving, watched = True, on_its_way.instance
                            attempt.waits_since = attempt.waits_since or self._here.now()
                            await self._here.noted(worker, watched)
                        except NotYet as later:
                            waits = True
                            attempt.waits_since = attempt.waits_since or self._here.now()
                            if later.problem is not None:
                                unsuccessful.append((turn, later.problem))
                case Watch():
                    watched = worker.instance
                case _:
                    assert_never(action)
        if self._tenure.held:  # or the connection was lost meanwhile, and nothing is to be done here any more
            again_at = self._remember(worker, watched, waits=waits)
            if again_at is not None:
                for turn, problem in unsuccessful:
                    await self._reports.delayed(turn, problem, again_at)
        return waits or moving

    def _remember(self, worker: Worker, watched: Ec2Instance | None, *, waits: bool) -> datetime | None:
        """When what waits is gone on with."""
        if watched is not None:
            self._poller.watch(worker, watched)
        else:
            self._poller.unwatch(worker)
        if not waits:
            self._agenda.done(worker.id)
            return None
        again_at = self._agenda.again(worker.id)
        if self._tenure.is_young:
            return self._agenda.ring_in(worker.id, self._tenure.young_for)
        return again_at

    async def _observe(self, worker: Worker, instance: Ec2Instance | None) -> None:
        """Report how the instance has moved; it is watched until the event of that shows it settled."""
        await self._reports.observed(worker, instance)
        if instance is None or instance.state is InstanceState.TERMINATED:
            self._poller.unwatch(worker)  # no trigger comes of that
        else:
            self._poller.watch(worker, instance)


def _has_pending(worker: Worker) -> bool:
    return any(isinstance(action, Act) for action in next_actions(worker))
