"""Following the store into a read model: equal to the fold of the streams, however often it is interrupted."""

import asyncio
from dataclasses import replace

import pytest
import sqlalchemy as sa

from cml_contracts.events import WorkerEvent
from cml_workers.eventstore.names import worker_of
from cml_workers.eventstore.port import CaughtUp, StoreUnavailableError
from cml_workers.readmodels import writing
from cml_workers.readmodels.folding import Folding
from cml_workers.readmodels.generation import GENERATIONS, Generation
from cml_workers.readmodels.generations import CheckpointMovedError
from cml_workers.readmodels.workers.fold import worker_row
from cml_workers.readmodels.workers.queries import operation, worker
from cml_workers.readmodels.writing import NotResumedError
from support.projecting import CREATED, LAUNCH, LAUNCHED, TAGS, Projected


async def equal_to_the_streams(projected: Projected) -> Generation:
    for worker_id in {worker_of(each.stream) for each in await projected.stored()}:
        folded = await projected.folded(worker_id)
        assert await worker(projected.database, worker_id) == worker_row(folded)
    active = await projected.generations.active()
    assert active is not None
    return active


async def test_the_read_model_is_the_fold_of_the_streams(projected: Projected):
    workers = await projected.workers(5, CREATED, LAUNCH)
    await projected.catch_up()
    for worker_id in workers:
        await projected.record(worker_id, LAUNCHED, *TAGS)
    await projected.catch_up()
    await equal_to_the_streams(projected)
    for worker_id in workers:
        found = await operation(projected.database, f"tag/{worker_id}")
        assert found is not None
        assert found.result is not None
        assert found.result.outcome == "succeeded"


@pytest.mark.parametrize("crash_after", range(1, 8))
async def test_a_crash_anywhere_leaves_rows_and_checkpoint_in_step(projected: Projected, crash_after: int):
    one, _ = await projected.workers(2, CREATED, LAUNCH)
    await projected.record(one, LAUNCHED, *TAGS)
    await projected.catch_up(items=crash_after)
    await projected.catch_up()
    assert (await equal_to_the_streams(projected)).events == 7


async def test_events_delivered_again_change_nothing(projected: Projected):
    await projected.workers(1, CREATED, LAUNCH, LAUNCHED)
    await projected.catch_up()
    events = await projected.stored()
    for batch in (events, events[:1], events[1:]):
        await projected.writer.handle(batch)
    assert (await equal_to_the_streams(projected)).events == 3


async def test_a_gap_is_filled_from_the_stream(projected: Projected):
    """The store leaves out events, as one does after a scavenge."""
    await projected.workers(2, CREATED, LAUNCH, LAUNCHED, *TAGS)
    events = await projected.stored()
    await projected.writer.resumed()
    for event in (events[0], *events[4:]):
        await projected.writer.handle([event])
    await equal_to_the_streams(projected)


async def test_a_writer_that_lags_does_not_write_over_another(projected: Projected):
    (worker_id,) = await projected.workers(1, CREATED, LAUNCH)
    slow, fast = projected.new_writer(), projected.new_writer()
    for writer in (slow, fast):
        await writer.resumed()
    await projected.record(worker_id, LAUNCHED, *TAGS)
    events = await projected.stored()
    await fast.handle(events)
    with pytest.raises(CheckpointMovedError):
        await slow.handle(events[:2])
    await equal_to_the_streams(projected)
    with pytest.raises(NotResumedError):  # else it would go on as if it had written them
        await slow.handle(events[2:])
    assert await slow.resumed() == events[-1].position


async def test_who_has_nothing_to_write_notices_that_the_checkpoint_went_back(
    projected: Projected, monkeypatch: pytest.MonkeyPatch
):
    """A standby that took over lacks the last rows, and no event comes after which they would be written."""
    monkeypatch.setattr(writing, "LOOKS_EVERY", -1.0)
    await projected.workers(2, CREATED, LAUNCH)
    events = await projected.stored()
    writer = projected.new_writer()
    await writer.resumed()
    await writer.handle(events[:2])
    older = writer.at
    assert older
    await writer.handle(events[2:])
    await writer.handle([CaughtUp()])

    def fail_over(connection: sa.Connection) -> None:
        connection.execute(sa.update(GENERATIONS).values(position=older.position, events=older.events))

    await projected.database.write(fail_over)
    with pytest.raises(CheckpointMovedError):
        await writer.handle([CaughtUp()])
    assert await writer.resumed() == older.position


async def test_two_writers_side_by_side_come_to_the_same_rows(projected: Projected):
    await projected.workers(4, CREATED, LAUNCH, LAUNCHED, *TAGS)
    events = await projected.stored()
    places = [each.position for each in events]

    async def write(size: int) -> None:
        writer = projected.new_writer()
        while True:
            position = await writer.resumed()
            rest = events[places.index(position) + 1 :] if position else events
            if not rest:
                return
            try:
                await writer.handle(rest[:size])
            except CheckpointMovedError:
                await asyncio.sleep(0)

    await asyncio.gather(write(1), write(3))
    active = await equal_to_the_streams(projected)
    assert (active.position, active.events) == (places[-1], len(events))


async def test_part_of_a_stream_is_never_folded(projected: Projected):
    """A replica that lags does not have what came before the event yet."""
    (worker_id,) = await projected.workers(1, CREATED, LAUNCH)
    ahead = replace((await projected.stored())[-1], revision=7)
    with pytest.raises(StoreUnavailableError, match=f"no cml_worker-{worker_id}@6 yet"):
        await Folding(projected.store).step(ahead)


async def test_no_more_workers_are_remembered_than_may_be(projected: Projected):
    events: list[WorkerEvent] = [CREATED, LAUNCH, LAUNCHED]
    await projected.workers(5, *events)
    folding = Folding(projected.store, remembered=2)
    for number, stored in enumerate(sorted(await projected.stored(), key=lambda each: each.revision)):
        step = await folding.step(stored)
        assert step is not None
        assert step[2].revision == number // 5
        assert len(folding._folded) <= 2
