"""The projector's queries: what is answered, what is dead-lettered, and when they have to wait."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from cml_contracts.commands import UpdateCMLWorkerStatus
from cml_contracts.queries import QUERIES, GetCMLWorker, GetOperation, OperationView
from cml_contracts.results import OperationResult, ProblemCode
from cml_workers.bus.port import DeadLetter, Message
from cml_workers.domain.messages import CommandMessage
from cml_workers.eventstore.command_streams import bind_answer, claim
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.projector.queries import ANSWERED_BY, Queries
from cml_workers.readmodels.registry import READ_MODELS
from cml_workers.sql.database import DatabaseUnavailableError, migrate, open_database
from support.buses import Outbox
from support.projecting import Projected, a_database


@pytest.fixture
async def projected(tmp_path: Path) -> AsyncIterator[Projected]:
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    async with a_database("sqlite", tmp_path) as database:
        yield Projected(store, database)
    await store.close()


def test_every_query_is_answered_by_one_read_model():
    assert set(ANSWERED_BY) == set(QUERIES.values())
    assert sum(len(model.answers) for model in READ_MODELS) == len(ANSWERED_BY)
    assert len({model.name for model in READ_MODELS}) == len(READ_MODELS)


async def test_while_a_read_model_is_rebuilt_its_queries_are_told_to_come_again(projected: Projected):
    projected.queries = Queries(
        store=projected.store, database=projected.database, unavailable=lambda model: f"{model.name}: 7 %"
    )
    result = await projected.ask(GetCMLWorker(worker_id=uuid4()))
    assert result.problem is not None
    assert (result.problem.code, result.problem.retryable) == (ProblemCode.READ_MODEL_UNAVAILABLE, True)
    assert result.problem.detail == "workers: 7 %"


async def test_a_status_update_can_be_asked_for_although_it_left_no_event(projected: Projected):
    status = UpdateCMLWorkerStatus(worker_id=uuid4())
    message = CommandMessage(
        command_id="status", command=status, command_type=status.TYPE, correlation_id="thread"
    )
    await claim(projected.store, message)
    assert (await projected.ask(GetOperation(command_id="status"))).outcome == "rejected"
    result = OperationResult(command_id="status", worker_id=status.worker_id, outcome="succeeded", data={})
    await bind_answer(projected.store, result, uuid4())
    told = await projected.ask(GetOperation(command_id="status"))
    operation = OperationView.model_validate(told.data)
    assert (operation.command_type, operation.result) == (status.TYPE, result)


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
async def test_a_broken_query_is_answered_and_kept(projected: Projected, body: bytes, query: str):
    outbox = Outbox()
    verdict = await projected.queries.on_query(Message(body=body, type=query, reply_to="caller"), outbox)
    assert isinstance(verdict, DeadLetter)
    (result,) = outbox.results()
    assert result.problem is not None
    assert result.problem.code is ProblemCode.VALIDATION_FAILED


async def test_a_database_that_is_down_is_said_to_be_unavailable():
    engine = open_database("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(DatabaseUnavailableError):
        await migrate(engine)
    await engine.dispose()
