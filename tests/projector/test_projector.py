"""The read model: equal to the fold of the streams, however often and wherever it is interrupted."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from cml_contracts.events import (
    CommandRejected,
    InstanceLaunched,
    LaunchRequested,
    OperationOverdue,
    StopRequested,
    TagsUpdated,
    TagsUpdateRequested,
    WorkerCreated,
    WorkerEvent,
)
from cml_contracts.instance import InstanceState, WorkerStatus
from cml_contracts.queries import GetCMLWorker, GetOperation, ListCMLWorkers, OperationView, WorkerPage
from cml_contracts.results import OperationResult, Problem, ProblemCode
from cml_workers.bus.port import Ack, DeadLetter, Message
from cml_workers.bus.topology import INTERNAL_EXCHANGE
from cml_workers.domain.messages import REPORTS, OperationOutstanding, Reminder
from cml_workers.domain.worker import Worker
from cml_workers.eventstore.port import CaughtUp, StoredEvent
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.eventstore.worker_streams import append, load
from cml_workers.projector.projector import Projector
from cml_workers.projector.read_model import ReadModel
from cml_workers.projector.reminders import Reminders
from cml_workers.projector.rows import operation_rows, worker_row
from cml_workers.sql.database import DatabaseUnavailableError, migrate, open_database
from support.buses import Outbox
from support.given import NOW, given, instance, launch, recorded
from support.postgresql import emptied

CREATED = WorkerCreated(
    name="lab", aws_region="us-east-1", instance_type="m5.large", ami_id="ami-11111111", created_by="ann"
)
LAUNCH = LaunchRequested(operation_id="create", launch=launch())
LAUNCHED = InstanceLaunched(operation_id="create", instance=instance())
TAGS = (
    TagsUpdateRequested(operation_id="tag", tags={"a": "1"}),
    TagsUpdated(operation_id="tag", tags={"Name": "lab", "a": "1"}),
)


FORGED = [
    base64.urlsafe_b64encode(json.dumps(["created_at", False, text, str(UUID(int=0))]).encode()).decode()
    for text in ("\0", "\ud800")
]
"""Cursors as they are handed out, with a text that no database takes."""


class Service:
    """The projector with a real store and a real database."""

    def __init__(self, store: SqliteEventStore, read_model: ReadModel) -> None:
        self.store = store
        self.read_model = read_model
        self.projector = Projector(store=store, read_model=read_model)

    async def record(self, worker_id: UUID, *events: WorkerEvent) -> None:
        """Append, with operation ids of the worker's own."""
        worker = await load(self.store, worker_id)
        own = [
            event.model_copy(update={"operation_id": f"{event.operation_id}/{worker_id}"})
            if hasattr(event, "operation_id")
            else event
            for event in events
        ]
        metadata = [recorded(worker, event, NOW, "cause").metadata for event in own]
        await append(self.store, worker, list(zip(own, metadata, strict=True)))

    async def catch_up(self, *, items: int | None = None) -> None:
        """Follow from the saved checkpoint until there is no more, or die after so many events."""
        seen = 0
        async for item in self.store.follow(after=await self.projector.resumed(), prefix="cml_worker-"):
            await self.projector.handle([item])
            seen += isinstance(item, StoredEvent)
            if isinstance(item, CaughtUp) or seen == items:
                return

    async def ask(self, query: GetCMLWorker | ListCMLWorkers | GetOperation) -> OperationResult:
        outbox = Outbox()
        message = Message(
            body=query.model_dump_json(exclude_none=True).encode(),
            type=query.TYPE,
            message_id="q",
            reply_to="caller",
        )
        assert await self.projector.on_query(message, outbox) == Ack()
        (result,) = outbox.results()
        return result

    async def list(self, **conditions: object) -> list[str]:
        result = await self.ask(ListCMLWorkers.model_validate(conditions))
        return [view.name for view in WorkerPage.model_validate(result.data).workers]


@pytest.fixture(params=["sqlite", "postgresql"])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Service]:
    """One suite for both databases."""
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    if request.param == "sqlite":
        engine = open_database(f"sqlite:///{tmp_path / 'read-model.sqlite3'}")
    else:
        engine = open_database(await emptied(request.getfixturevalue("postgresql_url")))
    await migrate(engine)
    read_model = ReadModel(engine)
    yield Service(store, read_model)
    await engine.dispose()
    await store.close()


def test_a_row_is_a_plain_function_of_the_worker():
    worker = given(CREATED, LAUNCH, LAUNCHED, StopRequested(operation_id="stop")).worker
    row = worker_row(worker)
    assert row is not None
    assert (row.status, row.revision, row.owner) == (WorkerStatus.STOPPING, 3, "ann")
    assert row.instance is not None
    assert row.instance.aws_instance_id == instance().instance_id
    pending = {each.command_id: each.result for each in operation_rows(worker, Worker(worker.id))}
    assert pending["stop"] is None
    assert pending["create"] is not None


def test_a_worker_that_never_was_has_no_row():
    problem = Problem.of(ProblemCode.WORKER_NOT_FOUND, "no such worker")
    refused = CommandRejected(operation_id="x", command_type="t", outcome="rejected", problem=problem)
    assert worker_row(given(refused).worker) is None


async def test_the_read_model_is_the_fold_of_the_streams(service: Service):
    workers = [uuid4() for _ in range(5)]
    for worker_id in workers:
        await service.record(worker_id, CREATED, LAUNCH)
    await service.catch_up()
    for worker_id in workers:
        await service.record(worker_id, LAUNCHED, *TAGS)
    await service.catch_up()
    for worker_id in workers:
        folded = await load(service.store, worker_id)
        assert await service.read_model.worker(worker_id) == worker_row(folded)
        operation = await service.read_model.operation(f"tag/{worker_id}")
        assert operation is not None
        assert operation.result == folded.operations[f"tag/{worker_id}"].result


@pytest.mark.parametrize("crash_after", range(1, 8))
async def test_a_crash_anywhere_leaves_rows_and_checkpoint_in_step(service: Service, crash_after: int):
    one, two = uuid4(), uuid4()
    await service.record(one, CREATED, LAUNCH)
    await service.record(two, CREATED, LAUNCH)
    await service.record(one, LAUNCHED, *TAGS)
    await service.catch_up(items=crash_after)
    service.projector = Projector(store=service.store, read_model=service.read_model)
    await service.catch_up()
    for worker_id in (one, two):
        assert await service.read_model.worker(worker_id) == worker_row(await load(service.store, worker_id))


async def test_events_delivered_again_change_nothing(service: Service):
    worker_id = uuid4()
    await service.record(worker_id, CREATED, LAUNCH, LAUNCHED)
    await service.catch_up()
    events = [item async for item in _until_caught_up(service.store) if isinstance(item, StoredEvent)]
    for event in (*events, *events[:1]):
        await service.projector.handle([event])
    assert await service.read_model.worker(worker_id) == worker_row(await load(service.store, worker_id))


async def _until_caught_up(store: SqliteEventStore) -> AsyncIterator[object]:
    async for item in store.follow(after=None, prefix="cml_worker-"):
        if isinstance(item, CaughtUp):
            return
        yield item


async def test_lists_are_filtered_by_everything_and_all_at_once(service: Service):
    for name, region, owner, tags in (
        ("lab_1", "us-east-1", "ann", {"course": "ccna"}),
        ("lab%2", "us-east-1", "ben", {"course": "ccnp"}),
        ("Other", "eu-west-1", "ann", {"Course": "x"}),
    ):
        changes = {"name": name, "aws_region": region, "created_by": owner, "tags": tags}
        await service.record(uuid4(), CREATED.model_copy(update=changes))
    await service.catch_up()
    assert await service.list(sort="name") == ["Other", "lab%2", "lab_1"]
    assert await service.list(aws_region="eu-west-1") == ["Other"]
    assert await service.list(owner="ann", sort="name") == ["Other", "lab_1"]
    assert await service.list(tag="course", sort="name") == ["lab%2", "lab_1"]
    assert await service.list(tag="course=ccnp") == ["lab%2"]
    assert await service.list(name_part="LAB", sort="name", descending=True) == ["lab_1", "lab%2"]
    assert await service.list(name_part="%") == ["lab%2"]
    assert await service.list(name_part="_") == ["lab_1"]
    assert len(await service.list(status=WorkerStatus.PENDING)) == 3
    assert await service.list(status=WorkerStatus.RUNNING) == []
    assert await service.list(owner="ann", tag="course=ccna", aws_region="us-east-1") == ["lab_1"]


@pytest.mark.parametrize("sort", ["created_at", "name", "status", "aws_region"])
@pytest.mark.parametrize("descending", [False, True])
async def test_pages_hold_everything_once_in_order(service: Service, sort: str, descending: bool):
    for number in range(7):
        await service.record(uuid4(), CREATED.model_copy(update={"name": f"lab-{number // 2}"}))
    await service.catch_up()
    names: list[str] = []
    ids: set[UUID] = set()
    cursor = None
    for _ in range(4):
        query = ListCMLWorkers.model_validate(
            {"sort": sort, "descending": descending, "limit": 2, "cursor": cursor}
        )
        page = WorkerPage.model_validate((await service.ask(query)).data)
        names += [view.name for view in page.workers]
        ids |= {view.id for view in page.workers}
        cursor = page.next_cursor
    assert cursor is None
    assert len(ids) == len(names) == 7
    if sort == "name":
        assert names == sorted(names, reverse=descending)


@pytest.mark.parametrize(
    "cursor", ["x", "AAAA", "bnVsbA==", "W10=", "WzEsIDIsIDMsIDRd", "W1tb" * 200, FORGED[0], FORGED[1]]
)
async def test_a_made_up_cursor_is_refused(service: Service, cursor: str):
    result = await service.ask(ListCMLWorkers(cursor=cursor))
    assert result.problem is not None
    assert result.problem.code is ProblemCode.VALIDATION_FAILED


async def test_what_is_not_there_is_said_to_be_so(service: Service):
    for query in (GetCMLWorker(worker_id=uuid4()), GetOperation(command_id="x")):
        result = await service.ask(query)
        assert result.outcome == "rejected"
        assert result.problem is not None
        assert result.problem.code is ProblemCode.WORKER_NOT_FOUND


async def test_what_is_owed_for_too_long_is_reminded_of_at_every_round(service: Service):
    owing, moving, settled = uuid4(), uuid4(), uuid4()
    pending = InstanceLaunched(operation_id="create", instance=instance(InstanceState.PENDING))
    await service.record(owing, CREATED, LAUNCH)
    await service.record(moving, CREATED, LAUNCH, pending)
    await service.record(settled, CREATED, LAUNCH, LAUNCHED, *TAGS)
    await service.catch_up()
    outbox, age = Outbox(), timedelta()
    reminders = Reminders(
        read_model=service.read_model,
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

    assert await reminded() == [Reminder(worker_id=moving)]
    age = timedelta(minutes=1)
    for _ in range(2):
        assert await reminded() == [Reminder(worker_id=owing), Reminder(worker_id=moving)]
    age = timedelta(minutes=16)
    overdue = OperationOutstanding(worker_id=owing, operation_id=f"create/{owing}")
    with capture_logs() as logged:
        assert (await reminded())[-1] == overdue
    assert [each["since"] for each in logged if each["event"] == "operation overdue"] == [NOW.isoformat()]
    await service.record(owing, OperationOverdue(operation_id="create"))
    await service.catch_up()
    assert await reminded() == [Reminder(worker_id=owing), Reminder(worker_id=moving)]
    told = OperationView.model_validate((await service.ask(GetOperation(command_id=f"create/{owing}"))).data)
    assert told.overdue_at == NOW


async def test_a_refused_command_can_be_asked_for(service: Service):
    worker_id = uuid4()
    problem = Problem.of(ProblemCode.WORKER_NOT_FOUND, "no such worker")
    await service.record(
        worker_id, CommandRejected(operation_id="x", command_type="t", outcome="rejected", problem=problem)
    )
    await service.catch_up()
    result = await service.ask(GetOperation(command_id=f"x/{worker_id}"))
    assert result.data["result"]["problem"]["detail"] == "no such worker"
    assert await service.list() == []


@pytest.mark.parametrize(
    ("body", "query"),
    [
        (b"{", "cml.worker.get.v1"),
        (b"{}", "cml.worker.get.v1"),
        (b"{}", "cml.nothing.v1"),
        (b'{"limit": 0}', "cml.worker.list.v1"),
        (b'{"sort": "colour"}', "cml.worker.list.v1"),
        (b'{"tag": "a\\u0000b"}', "cml.worker.list.v1"),
        (b'{"tag": "\\ud800"}', "cml.worker.list.v1"),
        (b'{"command_id": "a\\u0000b"}', "cml.operation.get.v1"),
        (b'{"limit": 1e400}', "cml.worker.list.v1"),
        (b"[" * 60_000, "cml.worker.list.v1"),
    ],
)
async def test_a_broken_query_is_answered_and_kept(service: Service, body: bytes, query: str):
    outbox = Outbox()
    verdict = await service.projector.on_query(Message(body=body, type=query, reply_to="caller"), outbox)
    assert isinstance(verdict, DeadLetter)
    (result,) = outbox.results()
    assert result.problem is not None
    assert result.problem.code is ProblemCode.VALIDATION_FAILED


async def test_a_database_that_is_down_is_said_to_be_unavailable():
    engine = open_database("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(DatabaseUnavailableError):
        await migrate(engine)
    await engine.dispose()


async def test_writers_and_readers_do_not_disturb_each_other(service: Service):
    async def write() -> None:
        for _ in range(20):
            await service.record(uuid4(), CREATED, LAUNCH)
            await service.catch_up()

    async def read() -> None:
        for _ in range(40):
            await service.list()

    await asyncio.gather(write(), read(), read())
    assert len(await service.list(limit=100)) == 20
