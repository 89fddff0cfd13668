"""Reminders of what has been pending for too long."""

from datetime import timedelta
from pathlib import Path

from structlog.testing import capture_logs

from cml_contracts.events import InstanceLaunched, OperationOverdue
from cml_contracts.instance import InstanceState
from cml_workers.bus.topology import INTERNAL_EXCHANGE
from cml_workers.domain.messages import REPORTS, OperationOutstanding, Reminder
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.readmodels.workers.queries import operation
from cml_workers.reminders.reminders import Reminders
from support.buses import Outbox
from support.given import NOW, instance
from support.projecting import CREATED, LAUNCH, LAUNCHED, TAGS, Projected, a_database


async def test_what_is_pending_for_too_long_is_reminded_of_at_every_round(tmp_path: Path):
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    async with a_database("sqlite", tmp_path) as database:
        await _reminded(Projected(store, database))
    await store.close()


async def _reminded(projected: Projected) -> None:
    transition = InstanceLaunched(operation_id="create", instance=instance(InstanceState.PENDING))
    (waiting,) = await projected.workers(1, CREATED, LAUNCH)
    (changing,) = await projected.workers(1, CREATED, LAUNCH, transition)
    await projected.workers(1, CREATED, LAUNCH, LAUNCHED, *TAGS)
    await projected.catch_up()
    outbox, age = Outbox(), timedelta()
    reminders = Reminders(
        database=projected.database,
        publish=outbox,
        now=lambda: NOW + age,
        after=timedelta(seconds=30),
        deadline=timedelta(minutes=15),
    )

    async def reminded() -> list[object]:
        outbox.sent.clear()
        await reminders.round()
        return [
            {**REPORTS, Reminder.TYPE: Reminder}[each.type].model_validate_json(each.body)
            for each in outbox.on(INTERNAL_EXCHANGE.name)
        ]

    assert await reminded() == [Reminder(worker_id=changing)]
    age = timedelta(minutes=1)
    for _ in range(2):
        assert await reminded() == [Reminder(worker_id=waiting), Reminder(worker_id=changing)]
    age = timedelta(minutes=16)
    overdue = OperationOutstanding(worker_id=waiting, operation_id=f"create/{waiting}")
    with capture_logs() as logged:
        assert (await reminded())[-1] == overdue
    assert [each["since"] for each in logged if each["event"] == "operation overdue"] == [NOW.isoformat()]
    await projected.record(waiting, OperationOverdue(operation_id="create"))
    await projected.catch_up()
    assert await reminded() == [Reminder(worker_id=waiting), Reminder(worker_id=changing)]
    found = await operation(projected.database, f"create/{waiting}")
    assert found is not None
    assert found.overdue_at == NOW
