"""One region's trouble is its own: whatever its EC2 does, others are served as if it were not there, and nothing is lost.

The executor behind a broker that hands out so many messages at once, many workers in several regions, in virtual time.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from cml_contracts.commands import UpdateCMLWorkerStatus
from cml_contracts.events import (
    InstanceLaunched,
    LaunchRequested,
    StartRequested,
    StopRequested,
    WorkerEvent,
)
from cml_contracts.instance import InstanceState
from cml_workers.bus.port import Ack, Handler, Message, Outgoing, Retry
from cml_workers.domain.messages import (
    REPORTS,
    AttemptRefused,
    CommandMessage,
    InstanceLookup,
    LookupAnswered,
    LookupRequested,
    OperationSucceeded,
)
from cml_workers.ec2_adapter.errors import (
    EC2AuthenticationException,
    EC2Error,
    EC2QuotaExceededException,
    EC2ThrottledException,
    OutcomeUnknownError,
    Remedy,
)
from cml_workers.ec2_adapter.executor import Executor
from cml_workers.ec2_adapter.limits import AWS_LIMITS, REFRESH_EVERY, Bucket
from cml_workers.ec2_adapter.port import LONGEST_CALL
from cml_workers.ec2_adapter.retry_policy import HANDED_ON
from cml_workers.ec2_adapter.tenure import FRESH
from cml_workers.ec2_adapter.timeouts import LEAST_CALL, longest_call
from cml_workers.ec2_adapter.visits import Places
from cml_workers.eventstore.names import stream_of
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.eventstore.worker_streams import append, load, published
from cml_workers.foundation.failures import ConfigurationError
from support.buses import Outbox
from support.clock import StillClock
from support.fake_ec2 import FakeEc2
from support.given import NOW, created, instance, launch, recorded
from support.given_adapter import CountedStore

GOOD, BAD = "us-east-1", "eu-west-1"
SECOND = timedelta(seconds=1)
Trouble = Callable[[str], Awaitable[None]]
"""What happens to a call before it is carried out, by EC2's name of it in ``FakeEc2``."""


class RegionalEc2:
    """``FakeEc2`` in which every region has troubles of its own."""

    def __init__(self, clock: StillClock) -> None:
        self.fake = FakeEc2()
        self.clock = clock
        self.troubles: dict[str, Trouble] = {}
        self.made: list[tuple[float, str, str]] = []
        """When which call was made in which region."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.fake, name)

        async def call(*arguments: Any) -> Any:
            if name == "refresh":
                return await method(*arguments)
            region = arguments[0].aws_region if name == "launch" else arguments[name == "switch"]
            self.made.append(((self.clock.now() - NOW).total_seconds(), region, name))
            if region in self.troubles:
                await self.troubles[region](name)
            return await method(*arguments)

        return call

    def calls(self, region: str, *names: str) -> list[float]:
        """When they were made."""
        return [at for at, where, name in self.made if where == region and (not names or name in names)]

    # -- troubles -----------------------------------------------------------------------------------------

    async def hangs(self, _name: str) -> None:
        await self.clock.sleep(LONGEST_CALL.total_seconds())
        raise OutcomeUnknownError("no answer")

    async def is_throttled(self, _name: str) -> None:
        raise EC2ThrottledException("slow down", remedy=Remedy.RETRY, retryable=True)

    async def does_not_know_us(self, _name: str) -> None:
        raise EC2AuthenticationException("AuthFailure", remedy=Remedy.REFRESH, retryable=True)

    def is_slow(self, seconds: float, *names: str, error: EC2Error | None = None) -> Trouble:
        async def slow(name: str) -> None:
            if name in names:
                await self.clock.sleep(seconds)
                if error is not None:
                    raise error

        return slow


class Deployment:
    """An adapter with its broker, which hands out ``prefetch`` messages of a queue at once, and workers anywhere."""

    def __init__(self, path: Path, prefetch: int = 100) -> None:
        self.sqlite = SqliteEventStore(path)
        self.store = CountedStore(self.sqlite)
        self.clock = StillClock(NOW, self.store)
        self.ec2 = RegionalEc2(self.clock)
        self.outbox = Outbox()
        self.prefetch = prefetch
        self.succeeded: dict[UUID, float] = {}
        self.refused: list[UUID] = []
        self.looked_up: dict[str, float] = {}
        self.answered: list[tuple[str, str]] = []
        self.unsettled = 0
        """Messages that are in a queue or in a handler."""
        self.random = 0.0
        self._prefetched: dict[str, asyncio.Semaphore] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.executor = self.started()

    def started(self, limits: Any = None) -> Executor:
        """Another process."""
        self._prefetched = {queue: asyncio.Semaphore(self.prefetch) for queue in ("triggers", "lookups")}
        ec2: Any = self.ec2
        return Executor(
            store=self.store,
            ec2=ec2,
            publish=self._publish,
            now=self.clock.now,
            sleep=self.clock.sleep,
            random=self._chance,
            limits=limits,
            takeover=timedelta(),
            authentication_grace=timedelta(hours=1),
            places=self.prefetch,
        )

    def _chance(self) -> float:
        self.random = (self.random + 0.618034) % 1.0  # evenly, and the same in every run
        return self.random

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.executor.close()
        await self.store.close()

    # -- workers ------------------------------------------------------------------------------------------

    async def workers(self, region: str, number: int, state: InstanceState) -> list[UUID]:
        """So many, whose instances are in that state."""
        found = [_id(f"{region} {state} {each}") for each in range(number)]
        for worker_id in found:
            there = instance(state, instance_id=f"i-{worker_id.int:017x}"[:19], aws_region=region)
            self.ec2.fake.put(there)
            parameters = launch(aws_region=region, client_token=str(worker_id))
            await self.happened(worker_id, created(aws_region=region))
            await self.happened(worker_id, LaunchRequested(operation_id="create", launch=parameters))
            await self.happened(worker_id, InstanceLaunched(operation_id="create", instance=there))
        return found

    async def happened(self, worker_id: UUID, event: WorkerEvent) -> None:
        worker = await load(self.store, worker_id)
        metadata = recorded(worker, event, self.clock.now(), "cause").metadata
        await append(self.store, worker, [(event, metadata)])

    async def create(self, region: str, number: int) -> list[UUID]:
        """Launches of new workers are requested, and triggered."""
        workers = [_id(f"{region} {each}") for each in range(number)]
        for worker_id in workers:
            await self.happened(worker_id, created(aws_region=region))
            parameters = launch(aws_region=region, client_token=str(worker_id))
            await self.happened(worker_id, LaunchRequested(operation_id="create", launch=parameters))
            await self.trigger(worker_id)
        return workers

    async def order(self, workers: Sequence[UUID], event: WorkerEvent) -> None:
        """The event happens to each, and triggers."""
        for worker_id in workers:
            await self.happened(worker_id, event)
            await self.trigger(worker_id)

    async def trigger(self, worker_id: UUID) -> None:
        newest = (await self.store.read(stream_of(worker_id)))[-1]
        body = json.dumps(published("/test", newest).to_cloudevent()).encode()
        self._send("triggers", Message(body=body, type=newest.type))

    def look_up(self, region: str, workers: Sequence[UUID], *, by: str = "t") -> None:
        """Their status is asked for, by a caller."""
        for worker_id in workers:
            status = UpdateCMLWorkerStatus(worker_id=worker_id)
            lookup = InstanceLookup(
                aws_region=region, instance_id=f"i-{worker_id.int:017x}"[:19], seen_revision=2
            )
            origin = CommandMessage(
                command_id=str(worker_id), command=status, command_type=status.TYPE, correlation_id=by
            )
            request = LookupRequested(origin=origin, lookup=lookup)
            body = request.model_dump_json().encode()
            self._send("lookups", Message(body=body, type=request.TYPE, message_id=f"lookup-{worker_id}"))

    # -- the broker ---------------------------------------------------------------------------------------

    def _send(self, queue: str, message: Message) -> None:
        task = asyncio.get_running_loop().create_task(self._deliver(queue, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, queue: str, message: Message) -> None:
        self.unsettled += 1
        while True:
            async with self._prefetched[queue]:
                handler: Handler = (
                    self.executor.on_trigger if queue == "triggers" else self.executor.on_lookup
                )
                verdict = await handler(message)
            if not isinstance(verdict, Retry):
                assert verdict == Ack()
                break
            await self.clock.sleep(verdict.seconds or 1)
            message = replace(message, attempt=message.attempt + 1)
        self.unsettled -= 1

    async def _publish(self, message: Outgoing, /) -> None:
        at = (self.clock.now() - NOW).total_seconds()
        if message.type == LookupAnswered.TYPE:
            answer = LookupAnswered.model_validate_json(message.body)
            self.answered.append((answer.origin.command_id, answer.origin.correlation_id))
            if answer.looked_up.instance is not None:
                self.looked_up.setdefault(answer.origin.command_id, at)
        elif message.type in REPORTS:
            report = REPORTS[message.type].model_validate_json(message.body)
            if isinstance(report, OperationSucceeded):
                self.succeeded.setdefault(report.worker_id, at)
            elif isinstance(report, AttemptRefused):
                self.refused.append(report.worker_id)
        await self.outbox(message)


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    made = Deployment(tmp_path / "events.sqlite3")
    yield made
    await made.close()


def _id(of: str) -> UUID:
    return UUID(int=int.from_bytes(sha256(of.encode()).digest()[:8], "big"))


STOP, START = StopRequested(operation_id="stop"), StartRequested(operation_id="start")
TROUBLES: Sequence[Callable[[RegionalEc2], Trouble]] = (
    lambda ec2: ec2.hangs,
    lambda ec2: ec2.is_throttled,
    lambda ec2: ec2.does_not_know_us,
)


# -- others are served ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", TROUBLES, ids=["hangs", "throttles", "AuthFailure"])
async def test_creates_starts_and_stops_elsewhere_take_no_longer_and_nothing_is_lost(
    deployment: Deployment, trouble: Callable[[RegionalEc2], Trouble]
):
    bad = await deployment.workers(BAD, 120, InstanceState.RUNNING)
    running = await deployment.workers(GOOD, 5, InstanceState.RUNNING)
    stopped = await deployment.workers(GOOD, 5, InstanceState.STOPPED)
    deployment.ec2.troubles[BAD] = trouble(deployment.ec2)
    await deployment.order(bad, STOP)
    await deployment.clock.passes(2)
    created = await deployment.create(GOOD, 5)
    await deployment.order(running, STOP)
    await deployment.order(stopped, START)
    await deployment.clock.passes(0.5)
    assert {deployment.succeeded.get(each, 99) for each in (*created, *running, *stopped)} <= {2, 2.005}
    await deployment.clock.passes(100)
    assert not deployment.succeeded.keys() & set(bad)

    deployment.ec2.troubles.clear()
    await deployment.clock.passes(120)
    assert deployment.succeeded.keys() >= set(bad)
    assert deployment.unsettled == 0


async def test_the_places_of_three_regions_that_hang_are_not_those_of_a_fourth(deployment: Deployment):
    for region in ("eu-west-1", "eu-west-2", "eu-west-3"):
        deployment.ec2.troubles[region] = deployment.ec2.hangs
        await deployment.order(await deployment.workers(region, 60, InstanceState.RUNNING), STOP)
    await deployment.clock.passes(1)
    created = await deployment.create(GOOD, 20)
    await deployment.clock.passes(0.5)
    assert deployment.succeeded.keys() >= set(created)


async def test_status_is_looked_up_elsewhere_while_a_region_hangs_and_there_later(deployment: Deployment):
    bad = await deployment.workers(BAD, 150, InstanceState.RUNNING)
    good = await deployment.workers(GOOD, 5, InstanceState.RUNNING)
    deployment.ec2.troubles[BAD] = deployment.ec2.hangs
    deployment.look_up(BAD, bad)
    await deployment.clock.passes(1)
    deployment.look_up(GOOD, good)
    await deployment.clock.passes(0.5)
    assert deployment.looked_up.keys() == {str(each) for each in good}
    deployment.ec2.troubles.clear()
    await deployment.clock.passes(120)
    assert deployment.looked_up.keys() == {str(each) for each in (*good, *bad)}
    assert deployment.unsettled == 0


async def test_an_answered_lookup_whose_message_comes_back_is_not_looked_up_again(deployment: Deployment):
    workers = await deployment.workers(GOOD, 150, InstanceState.RUNNING)
    deployment.look_up(GOOD, workers)
    await deployment.clock.passes(1)
    assert len(deployment.looked_up) == 150
    assert deployment.unsettled == 100  # there were places for fifty
    made = len(deployment.ec2.made)
    await deployment.clock.passes(HANDED_ON + 1)
    assert deployment.unsettled == 0
    assert len(deployment.ec2.made) == made


async def test_two_callers_who_send_one_command_are_both_answered(deployment: Deployment):
    """Their lookups have one id, and the later one may come while the first is under way, or was handed on."""
    workers = await deployment.workers(BAD, 150, InstanceState.RUNNING)
    deployment.ec2.troubles[BAD] = deployment.ec2.is_slow(3, "describe_many")
    for caller in ("ann", "bob"):
        deployment.look_up(BAD, workers, by=caller)
    await deployment.clock.passes(60)
    assert set(deployment.answered) == {(str(each), by) for each in workers for by in ("ann", "bob")}


async def test_a_burst_of_one_healthy_region_is_done_at_once(deployment: Deployment):
    workers = await deployment.workers(GOOD, 300, InstanceState.RUNNING)
    await deployment.order(workers, STOP)
    await deployment.clock.passes(0.5)
    assert deployment.succeeded.keys() == set(workers)
    await deployment.clock.passes(HANDED_ON + 1)
    assert deployment.unsettled == 0
    assert len(deployment.ec2.calls(GOOD, "switch")) == 300


async def test_launches_that_wait_for_their_turn_hold_back_no_stop_of_their_region(deployment: Deployment):
    deployment.executor = deployment.started(AWS_LIMITS)
    running = await deployment.workers(GOOD, 5, InstanceState.RUNNING)
    await deployment.create(GOOD, 200)
    await deployment.clock.passes(1)
    await deployment.order(running, STOP)
    await deployment.clock.passes(0.5)
    assert deployment.succeeded.keys() >= set(running)


def test_a_region_takes_no_more_places_than_it_leaves():
    places = Places(8)
    taken: Counter[str] = Counter()
    with ExitStack() as held:
        for region in ("a", "b", "c", "d"):
            for _ in range(8):
                taken[region] += held.enter_context(places.held(region))
    assert taken == {"a": 4, "b": 2, "c": 1, "d": 1}


async def test_what_was_handed_on_is_done_by_the_next_process(deployment: Deployment):
    bad = await deployment.workers(BAD, 150, InstanceState.RUNNING)
    deployment.ec2.troubles[BAD] = deployment.ec2.hangs
    await deployment.order(bad, STOP)
    await deployment.clock.passes(1)
    waiting = deployment.unsettled
    dead, deployment.executor = deployment.executor, deployment.started()
    await dead.close()  # with all that it had in memory; what it held is delivered again
    deployment.ec2.troubles.clear()
    await deployment.clock.passes(HANDED_ON + 2)
    assert waiting == 150
    assert deployment.succeeded.keys() == set(bad)


# -- slow is slow, and still done -------------------------------------------------------------------------


async def test_a_stop_is_sent_though_it_takes_ec2_longer_to_describe_than_what_was_read_may_be_acted_on(
    deployment: Deployment,
):
    assert FRESH < timedelta(seconds=21) < LONGEST_CALL
    (worker,) = await deployment.workers(BAD, 1, InstanceState.PENDING)
    deployment.ec2.fake.settle()  # and nobody has reported it
    deployment.ec2.troubles[BAD] = deployment.ec2.is_slow(21, "describe_many")
    await deployment.order([worker], STOP)
    await deployment.clock.passes(43)
    assert deployment.ec2.calls(BAD, "switch") == [21]
    assert deployment.succeeded == {worker: 42}


@pytest.mark.parametrize("error", [None, EC2QuotaExceededException("no vCPU")], ids=["launched", "refused"])
async def test_an_answer_that_takes_long_is_an_answer(deployment: Deployment, error: EC2Error | None):
    deployment.ec2.troubles[BAD] = deployment.ec2.is_slow(25, "launch", error=error)
    (worker,) = await deployment.create(BAD, 1)
    await deployment.clock.passes(26)
    assert deployment.ec2.calls(BAD, "launch") == [0]
    assert (worker in deployment.succeeded) is (error is None)
    assert deployment.refused == ([] if error is None else [worker])


@pytest.mark.parametrize("event", [STOP, START], ids=["stop", "start"])
async def test_a_call_that_is_answered_late_is_not_repeated(deployment: Deployment, event: WorkerEvent):
    state = InstanceState.RUNNING if event is STOP else InstanceState.STOPPED
    (worker,) = await deployment.workers(BAD, 1, state)
    deployment.ec2.troubles[BAD] = deployment.ec2.is_slow(25, "switch")
    await deployment.order([worker], event)
    await deployment.clock.passes(26)
    assert deployment.ec2.calls(BAD, "switch") == [0]
    assert worker in deployment.succeeded


# -- who was refused comes back spread out ----------------------------------------------------------------


@pytest.mark.parametrize("limits", [None, AWS_LIMITS], ids=["no limits of our own", "those of AWS"])
async def test_forty_throttled_workers_come_back_spread_out_and_not_in_waves(
    deployment: Deployment, limits: dict[str, Bucket] | None
):
    """EC2 takes two starts a second and no burst, as others of the account have taken it."""
    deployment.executor = deployment.started(limits)
    workers = await deployment.workers(BAD, 40, InstanceState.STOPPED)
    taken: Counter[float] = Counter()

    async def two_a_second(name: str) -> None:
        if name == "switch":
            second = (deployment.clock.now() - NOW).total_seconds() // 1
            taken[second] += 1
            if taken[second] > 2:
                await deployment.ec2.is_throttled(name)

    deployment.ec2.troubles[BAD] = two_a_second
    await deployment.order(workers, START)
    await deployment.clock.passes(180)
    assert deployment.succeeded.keys() == set(workers)
    after_the_first = [count for second, count in taken.items() if second > 0]
    assert max(after_the_first) <= 8
    assert taken.total() <= 3 * len(workers)


async def test_credentials_are_read_again_seldom_however_many_are_refused(deployment: Deployment):
    bad = await deployment.workers(BAD, 100, InstanceState.RUNNING)
    deployment.ec2.troubles[BAD] = deployment.ec2.does_not_know_us
    await deployment.order(bad, STOP)
    await deployment.clock.passes(60)
    refreshed = deployment.ec2.fake.refreshed
    assert set(refreshed) == {BAD}
    assert 1 <= len(refreshed) <= 60 / REFRESH_EVERY.total_seconds() + 1
    assert len([at for at in deployment.ec2.calls(BAD, "switch") if at > 5]) < 100


# -- time-outs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heartbeat", "grace", "seconds"),
    [
        (60, 300, LONGEST_CALL.total_seconds()),
        (2, 20, 16),
        (2, 14, LEAST_CALL.total_seconds()),
        (60, 3, LONGEST_CALL.total_seconds()),
    ],
)
def test_a_call_may_take_as_long_as_what_depends_on_it_allows(heartbeat: float, grace: float, seconds: float):
    found = longest_call(None, heartbeat=heartbeat * SECOND, grace=grace * SECOND)
    assert found.total_seconds() == seconds


@pytest.mark.parametrize(
    ("heartbeat", "grace", "most"), [(60, 300, 38), (10, 300, 48), (2, 20, 16), (3600, 45, 23)]
)
def test_a_time_out_that_is_longer_than_what_depends_on_it_is_refused(
    heartbeat: float, grace: float, most: float
):
    longest_call(most, heartbeat=heartbeat * SECOND, grace=grace * SECOND)
    with pytest.raises(ConfigurationError, match=rf"CML_EC2_CALL_SECONDS is .* at most {most}:"):
        longest_call(most + 1, heartbeat=heartbeat * SECOND, grace=grace * SECOND)
