"""The projector's queries: what is answered, what is dead-lettered, and when they have to wait."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from cml_contracts.queries import QUERIES, GetCMLWorker
from cml_contracts.results import ProblemCode
from cml_workers.domain.policy import Access
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.projector.queries import ANSWERED_BY, Queries
from cml_workers.readmodels.registry import READ_MODELS
from cml_workers.sql.database import migrate, open_database
from cml_workers.sql.errors import DatabaseUnavailableError
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


async def test_while_a_read_model_is_rebuilt_its_queries_are_to_be_retried(projected: Projected):
    projected.queries = Queries(
        database=projected.database, unavailable=lambda model: f"{model.name}: 7 %", access=Access()
    )
    result = await projected.ask(GetCMLWorker(worker_id=uuid4()))
    assert result.problem is not None
    assert (result.problem.code, result.problem.retryable) == (ProblemCode.READ_MODEL_UNAVAILABLE, True)
    assert result.problem.detail == "workers: 7 %"


async def test_a_database_that_is_down_is_said_to_be_unavailable():
    engine = open_database("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(DatabaseUnavailableError):
        await migrate(engine)
    await engine.dispose()
