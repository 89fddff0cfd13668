"""Events that cannot be folded or written: their workers wait, all others are shown, and nothing is missing once they go on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import pytest

from cml_contracts.events import InstanceStateObserved, TagsUpdated, TagsUpdateRequested, WorkerEvent
from cml_workers.domain import fold
from cml_workers.domain.history import EventMetadata, Recorded
from cml_workers.domain.worker import Worker
from cml_workers.eventstore import worker_streams
from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.names import WORKER_STREAMS, stream_of
from cml_workers.eventstore.port import NO_STREAM, EventStore, StoredEvent
from cml_workers.eventstore.quarantine import Decision, Quarantine, What
from cml_workers.foundation.tasks import ended
from cml_workers.readmodels import folding, rebuild
from cml_workers.readmodels.rebuild import Rebuild
from cml_workers.readmodels.runner import Runner
from cml_workers.readmodels.workers import WORKERS_VIEW
from cml_workers.readmodels.workers.fold import worker_row
from cml_workers.readmodels.workers.queries import operation, worker
from cml_workers.sql.adapters import PostgresqlDatabase
from support.broken import NAMES_OF_OTHERS, NEWER, NOT_FOLDED, Mortal, append_raw, binary, newer_type, raw
from support.kurrentdb_standin import KurrentDbStandIn
from support.projecting import CREATED, LAUNCH, LAUNCHED, TAGS, Projected

TAKE_UP = Decision(What.TAKEN_UP, "ann", None, "it is repaired")
SKIP = Decision(What.SKIPPED, "ann", None, "of no use")


@asynccontextmanager
async def process(projected: Projected, store: EventStore | None = None) -> AsyncIterator[Runner]:
    """A projector's runner, until the process is killed."""

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))

    runner = Runner(
        model=WORKERS_VIEW,
        store=store or projected.store,
        database=projected.database,
        backoff=lambda _: 0.01,
        sleep=sleep,
    )
    task = asyncio.create_task(runner.run())
    try:
        yield runner
    finally:
        await ended(task)


async def quarantine(projected: Projected) -> Quarantine:
    found = Quarantine(projected.store, "projector-workers")
    await found.load()
    return found


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def until_held(projected: Projected, stream: str, revision: int) -> Quarantine:
    async with asyncio.timeout(60):
        while True:
            found = await quarantine(projected)
            if found.holds(stream) and found.cases[stream].broken.revision == revision:
                return found
            await asyncio.sleep(0.01)


async def until_shown(projected: Projected, worker_id: UUID, revision: int) -> None:
    async with asyncio.timeout(60):
        while True:
            row = await worker(projected.database, worker_id)
            if row is not None and row.revision == revision:
                return
            await asyncio.sleep(0.01)


async def shows(projected: Projected, worker_id: UUID) -> None:
    """All of the worker is shown."""
    assert await worker(projected.database, worker_id) == worker_row(await projected.folded(worker_id))


async def record_behind(projected: Projected, worker_id: UUID, *events: WorkerEvent) -> None:
    """As a later version does, which can read what is broken for this one."""
    for event in events:
        operation = getattr(event, "operation_id", None)
        own = {} if operation is None else {"operation_id": f"{operation}/{worker_id}"}
        data = event.model_copy(update=own).model_dump_json(exclude_none=True).encode()
        stored = raw(event.TYPE, data, command_id=own.get("operation_id"))
        await append_raw(projected.store, stream_of(worker_id), stored)


@pytest.mark.parametrize("kind", NOT_FOLDED)
async def test_a_broken_event_holds_its_worker_and_nobody_else(projected: Projected, kind: str):
    stuck, other = await projected.workers(2, CREATED, LAUNCH)
    async with process(projected) as runner:
        await append_raw(projected.store, stream_of(stuck), NOT_FOLDED[kind]())
        await record_behind(projected, stuck, LAUNCHED)
        await projected.record(other, LAUNCHED, *TAGS)
        await projected.caught_up()
        await shows(projected, other)
        assert runner.counts()["workers_held"] == 1
        warning = runner.warning()
        assert warning is not None
        assert f"{stream_of(stuck)}@2 at position" in warning
        assert runner.problem() is None
    row = await worker(projected.database, stuck)
    assert row is not None
    assert row.revision == 1  # as it was before, not half of it
    case = (await quarantine(projected)).cases[stream_of(stuck)]
    event = (await projected.store.read(stream_of(stuck)))[2]
    assert (case.broken.revision, case.broken.position, case.broken.event_id) == (
        2,
        event.position,
        event.event_id,
    )
    assert (await projected.active()).events == len(await projected.stored())


async def test_streams_of_others_are_left_out_and_counted(projected: Projected):
    for name in NAMES_OF_OTHERS:
        await append_raw(projected.store, f"{WORKER_STREAMS}{name}", binary())
    (ours,) = await projected.workers(1, CREATED)
    async with process(projected) as runner:
        await projected.caught_up()
        assert runner.counts() == {"events_not_ours": len(NAMES_OF_OTHERS), "workers_held": 0}
        assert runner.warning() is None
    await shows(projected, ours)
    assert (await projected.active()).events == 1


async def test_a_fold_that_fails_is_that_events_fault(projected: Projected, monkeypatch: pytest.MonkeyPatch):
    stuck, other = await projected.workers(2, CREATED, LAUNCH)

    def fails(worker: Worker, event: TagsUpdated, recorded: Recorded) -> Worker:
        raise KeyError(event.tags)

    async with process(projected) as runner:
        with monkeypatch.context() as patch:
            patch.setitem(fold._AFTER, TagsUpdated, fails)
            await record_behind(projected, stuck, *TAGS)
            await record_behind(projected, other, LAUNCHED)
            await until(lambda: runner.counts()["workers_held"])
            await projected.caught_up()
        await shows(projected, other)
        found = await until_held(projected, stream_of(stuck), 3)
        assert found.cases[stream_of(stuck)].broken.reason == "KeyError"  # and not what is in it
        await found.decide(stream_of(stuck), 3, TAKE_UP)
        await until_shown(projected, stuck, 3)
        await shows(projected, stuck)


async def test_a_row_that_the_database_does_not_take_is_that_events_fault(projected: Projected):
    """Its id is longer than the column, or has a character that PostgreSQL does not store; SQLite takes both."""
    long, nul, other = await projected.workers(3, CREATED, LAUNCH)
    ids = {long: "x" * 300, nul: "a\0b", other: "tag"}
    strict = isinstance(projected.database, PostgresqlDatabase)
    for worker_id, operation_id in ids.items():
        event = TagsUpdateRequested(operation_id=operation_id, tags={"a": "1"})
        data = event.model_dump_json().encode()
        await append_raw(
            projected.store, stream_of(worker_id), raw(event.TYPE, data, command_id=operation_id)
        )
        await record_behind(projected, worker_id, LAUNCHED)
    async with process(projected) as runner:  # all of them in one batch
        await projected.caught_up()
        await shows(projected, other)
        assert runner.counts()["workers_held"] == (2 if strict else 0)
        for worker_id in (long, nul):
            if strict:
                row = await worker(projected.database, worker_id)
                assert row is not None
                assert row.revision == 1
                found = await until_held(projected, stream_of(worker_id), 2)
                assert ids[worker_id] not in found.cases[stream_of(worker_id)].broken.reason
                await found.decide(stream_of(worker_id), 2, SKIP)
                await until_shown(projected, worker_id, 3)
            else:
                await shows(projected, worker_id)
    assert (await projected.active()).events == len(await projected.stored())


async def test_what_an_operator_skips_changes_nothing_and_the_rest_is_shown(projected: Projected):
    (stuck,) = await projected.workers(1, CREATED, LAUNCH)
    await append_raw(projected.store, stream_of(stuck), newer_type())
    await record_behind(projected, stuck, LAUNCHED)
    async with process(projected) as runner:
        found = await until_held(projected, stream_of(stuck), 2)
        await found.decide(stream_of(stuck), 2, SKIP)
        await until_shown(projected, stuck, 3)
        await record_behind(projected, stuck, *TAGS)
        await until_shown(projected, stuck, 5)
        assert (runner.warning(), runner.counts()["workers_held"]) == (None, 0)
    done = await operation(projected.database, f"tag/{stuck}")
    assert done is not None
    assert done.result is not None
    async with process(projected):  # reads the whole stream again
        await record_behind(projected, stuck, *TAGS)
        await until_shown(projected, stuck, 7)
    rebuilt = await Rebuild(projected.store, projected.generations, switch=False, keep=False).run()
    assert rebuilt.differences == []


async def test_a_replica_that_lags_behind_what_has_passed_is_asked_again(projected: Projected):
    (stuck,) = await projected.workers(1, CREATED, LAUNCH)
    stream = stream_of(stuck)
    await append_raw(projected.store, stream, newer_type())
    await record_behind(projected, stuck, LAUNCHED, *TAGS)

    class Lagging(Mortal):
        shown = 3

        async def read(
            self, stream: str, *, after: int = NO_STREAM, limit: int | None = None
        ) -> list[StoredEvent]:
            found = await super().read(stream, after=after, limit=limit)
            return [each for each in found if each.stream != stream_of(stuck) or each.revision <= self.shown]

    lagging = Lagging(projected.store, 10_000, late=True)
    async with process(projected, lagging) as runner:
        await (await until_held(projected, stream, 2)).decide(stream, 2, SKIP)
        await projected.caught_up()
        await asyncio.sleep(0.2)  # it may look a few times
        assert runner.counts()["workers_held"] == 1
        lagging.shown = 5
        await until_shown(projected, stuck, 5)
        await until(lambda: not runner.counts()["workers_held"])


async def test_what_is_taken_up_too_early_comes_into_quarantine_again(projected: Projected):
    (stuck,) = await projected.workers(1, CREATED, LAUNCH)
    await append_raw(projected.store, stream_of(stuck), newer_type())
    await record_behind(projected, stuck, LAUNCHED)
    async with process(projected):
        found = await until_held(projected, stream_of(stuck), 2)
        await found.decide(stream_of(stuck), 2, TAKE_UP)
        async with asyncio.timeout(60):
            while (case := (await quarantine(projected)).cases[stream_of(stuck)]).number < 2:
                await asyncio.sleep(0.01)
    assert case.decision is None
    row = await worker(projected.database, stuck)
    assert row is not None
    assert row.revision == 1


def readable(patch: pytest.MonkeyPatch) -> None:
    """As a later version knows the type: it changes nothing that is shown."""
    original = worker_streams.decode

    def decode(stored: StoredEvent) -> Recorded:
        if stored.type != NEWER:
            return original(stored)
        observed = InstanceStateObserved.model_validate(OBSERVED)
        return Recorded(stored.revision, observed, EventMetadata.model_validate_json(stored.metadata))

    patch.setattr(worker_streams, "decode", decode)
    patch.setattr(folding, "decode", decode)


OBSERVED = {
    "instance_state": "running",
    "instance_status_check": "ok",
    "ec2_system_status_check": "ok",
    "changed": [],
}


async def test_after_an_upgrade_it_goes_on_by_itself(projected: Projected, monkeypatch: pytest.MonkeyPatch):
    (stuck,) = await projected.workers(1, CREATED, LAUNCH)
    await append_raw(projected.store, stream_of(stuck), newer_type())
    await record_behind(projected, stuck, LAUNCHED, *TAGS)
    async with process(projected):
        await until_held(projected, stream_of(stuck), 2)
        await projected.caught_up()
    readable(monkeypatch)
    async with process(projected) as runner:
        await until_shown(projected, stuck, 5)
        await until(lambda: runner.warning() is None)
    await shows(projected, stuck)
    case = (await quarantine(projected)).cases[stream_of(stuck)]
    assert case.decision is not None
    assert (case.decision.what, case.decision.by) == (What.TAKEN_UP, "cml-workers")


@pytest.mark.parametrize("late", [False, True])
async def test_nothing_is_missing_wherever_the_process_dies(
    projected: Projected, late: bool, monkeypatch: pytest.MonkeyPatch
):
    """At each call to the store: while it records the broken event, and while it catches up."""
    for calls in range(2, 12):
        (stuck,) = await projected.workers(1, CREATED, LAUNCH)
        stream = stream_of(stuck)
        await append_raw(projected.store, stream, newer_type())
        await self_destructing(projected, calls, late=late)
        await record_behind(projected, stuck, LAUNCHED)
        async with process(projected):
            await until_held(projected, stream, 2)
            await projected.caught_up()
        with monkeypatch.context() as patch:
            readable(patch)
            await self_destructing(projected, calls, late=late)
            await record_behind(projected, stuck, *TAGS)
            async with process(projected) as runner:
                await until_shown(projected, stuck, 5)
                await until(lambda: runner.warning() is None)
                await projected.caught_up()
            await shows(projected, stuck)
            verified = await Rebuild(projected.store, projected.generations, switch=False, keep=False).run()
            assert verified.differences == []


async def self_destructing(projected: Projected, calls: int, *, late: bool) -> None:
    """A process that dies at this call to the store, or has had time for all there is to do before."""
    mortal = Mortal(projected.store, calls, late=late)
    async with process(projected, mortal):
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                while not mortal.died:
                    await asyncio.sleep(0.005)


async def test_two_projectors_for_a_moment_come_to_the_same_rows(projected: Projected):
    (stuck,) = await projected.workers(1, CREATED, LAUNCH)
    stream = stream_of(stuck)
    async with process(projected), process(projected):
        await append_raw(projected.store, stream, newer_type())
        await record_behind(projected, stuck, LAUNCHED)
        found = await until_held(projected, stream, 2)
        await projected.caught_up()
        await found.decide(stream, 2, SKIP)
        await record_behind(projected, stuck, *TAGS)
        await until_shown(projected, stuck, 5)
        await projected.caught_up()
    assert [each.type for each in await projected.store.read("cml_quarantine-projector-workers")] == [
        "cml.quarantine.held.v1",
        "cml.quarantine.skipped.v1",
    ]
    verified = await Rebuild(projected.store, projected.generations, switch=False, keep=False).run()
    assert verified.differences == []


async def test_a_rebuild_ends_with_the_same_workers_held_and_they_go_on_after_it(projected: Projected):
    stuck, other = await projected.workers(2, CREATED, LAUNCH)
    stream = stream_of(stuck)
    await append_raw(projected.store, stream, newer_type())
    await record_behind(projected, stuck, LAUNCHED)
    async with process(projected):
        await until_held(projected, stream, 2)
        await projected.caught_up()
        rebuilt = await Rebuild(projected.store, projected.generations).run()
        assert (rebuilt.switched, rebuilt.differences) == (True, [])
        await projected.record(other, LAUNCHED)
        await projected.caught_up()
        await shows(projected, other)
        assert len(await projected.store.read("cml_quarantine-projector-workers")) == 1
        await (await quarantine(projected)).decide(stream, 2, SKIP)
        await until_shown(projected, stuck, 3)


async def test_a_rebuild_that_meets_a_broken_event_first_records_it(projected: Projected):
    (stuck,) = await projected.workers(1, CREATED, LAUNCH)
    await append_raw(projected.store, stream_of(stuck), newer_type())
    await Rebuild(projected.store, projected.generations).run()
    assert (await quarantine(projected)).holds(stream_of(stuck))
    async with process(projected) as runner:
        await until(lambda: runner.counts()["workers_held"] == 1)


async def test_a_rebuild_that_was_passing_when_it_was_decided_shows_all(projected: Projected):
    """It holds the worker as well, in its own tables, and is interrupted."""
    (stuck,) = await projected.workers(1, CREATED, LAUNCH)
    stream = stream_of(stuck)
    await append_raw(projected.store, stream, newer_type())
    await record_behind(projected, stuck, LAUNCHED)
    async with process(projected):
        await until_held(projected, stream, 2)
        await projected.caught_up()
    prepared = (await Rebuild(projected.store, projected.generations, switch=False).run()).generation
    assert await projected.generations.held(prepared)
    async with process(projected):
        await (await quarantine(projected)).decide(stream, 2, SKIP)
        await until_shown(projected, stuck, 3)
    rebuilt = await Rebuild(projected.store, projected.generations).run()
    assert (rebuilt.generation.number, rebuilt.differences) == (prepared.number, [])
    assert await projected.generations.held(rebuilt.generation) == {}
    await until_shown(projected, stuck, 3)


async def test_a_truncated_stream_breaks_its_worker_and_not_the_read_model(
    projected: Projected, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rebuild, "PATIENCE", 0.1)  # as there are fewer events than before
    stuck, other = await projected.workers(2, CREATED, LAUNCH)
    stream = stream_of(stuck)
    await projected.catch_up()
    await projected.record(stuck, LAUNCHED)
    await projected.store.trim(stream, 1)
    await projected.record(other, LAUNCHED)
    async with process(projected) as runner:
        found = await until_held(projected, stream, 2)
        assert found.cases[stream].broken.gone
        await projected.caught_up()
        await shows(projected, other)
        await found.decide(stream, 2, SKIP)  # nothing of it can be folded any more
        await until(lambda: not runner.counts()["workers_held"])
        await record_behind(projected, stuck, *TAGS)
        await projected.caught_up()
        assert (runner.warning(), runner.counts()["workers_held"]) == (None, 0)
    row = await worker(projected.database, stuck)
    assert row is not None
    assert row.revision == 1
    rebuilt = await Rebuild(projected.store, projected.generations).run()
    assert await projected.generations.held(rebuilt.generation) == {}
    assert await worker(projected.database, stuck) is None  # nothing is left that says what it was
    await shows(projected, other)


async def test_a_limit_of_a_workers_stream_that_is_taken_back_before_a_scavenge(projected: Projected):
    """``$maxCount``, or ``$maxAge``: what it hides is there again."""
    node = KurrentDbStandIn()
    await node.start()
    store = KurrentDbEventStore(node.uri)
    beside = Projected(store, projected.database)
    (stuck,) = await beside.workers(1, CREATED, LAUNCH)
    stream = stream_of(stuck)
    await beside.catch_up()
    node.log.describe(stream, {"$maxCount": 1})
    await record_behind(beside, stuck, LAUNCHED)
    async with process(beside):
        found = await until_held(beside, stream, 2)
        assert found.cases[stream].broken.gone
        node.log.describe(stream, {})
        await found.decide(stream, 2, TAKE_UP)
        await until_shown(beside, stuck, 2)
    await shows(beside, stuck)
    await store.close()
    await node.stop()
