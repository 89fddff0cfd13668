"""Two users, one command id: whoever knows another one's does them no harm by it."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from cml_contracts.commands import StopCMLWorker
from cml_contracts.instance import InstanceState
from cml_contracts.queries import GetOperation, OperationView
from cml_workers.bus.port import Ack
from cml_workers.domain.messages import OperationSucceeded
from cml_workers.domain.ownership import Ownership
from cml_workers.domain.policy import Access
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.projector.queries import Queries
from cml_workers.readmodels.workers.queries import pending
from support.given import create, instance
from support.projecting import DATABASES, Projected, a_database
from support.service import Service

USERS = ("ann", "ben", "cleo")
ACCESS = Access(enforced=True, users={user: frozenset({"*", "cml.worker.import.v1"}) for user in USERS})


class Place:
    """Lifecycle and projector on one store, with rights."""

    def __init__(self, service: Service, projected: Projected) -> None:
        self.service = service
        self.projected = projected
        service.allow(ACCESS)
        self.allow(ACCESS)

    def allow(self, access: Access) -> None:
        """Whom queries are answered from now on."""
        self.projected.queries = Queries(
            database=self.projected.database, unavailable=lambda _: None, access=access
        )

    async def worker(self, owner: str) -> UUID:
        """A running one."""
        worker_id = uuid4()
        created = create(worker_id=worker_id, created_by=owner)
        assert await self.service.command(created, f"new-{worker_id}", user_id=owner, reply_to=None) == Ack()
        await self.service.report(
            OperationSucceeded(worker_id=worker_id, operation_id=f"new-{worker_id}", instance=instance())
        )
        return worker_id

    async def operation(self, command_id: str, user: str | None) -> OperationView | None:
        """As it is answered to the user."""
        await self.projected.catch_up()
        result = await self.projected.ask(GetOperation(command_id=command_id), user)
        return OperationView.model_validate(result.data) if result.outcome == "succeeded" else None


@pytest.fixture(params=DATABASES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    url = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    async with a_database(request.param, tmp_path, url) as database:
        yield Place(Service(store), Projected(store, database))
    await store.close()


async def test_who_asks_for_an_operation_gets_their_own(place: Place):
    """Before: the later command under an id took the place of the earlier one, also where that was pending and had to be reminded of."""
    mine, theirs = await place.worker("ann"), await place.worker("ben")
    for user, worker_id in (("ann", mine), ("ben", theirs)):
        stop = StopCMLWorker(worker_id=worker_id, stopped_by=user)
        assert await place.service.command(stop, "c", user_id=user) == Ack()
    for user, worker_id in (("ann", mine), ("ben", theirs)):
        shown = await place.operation("c", user)
        assert shown is not None
        assert (shown.command_id, shown.worker_id, shown.result) == ("c", worker_id, None)
    of_others = await place.operation("c", "cleo")
    assert of_others is not None
    assert of_others.worker_id in (mine, theirs)
    assert await place.operation("d", "cleo") is None

    waiting = await pending(place.projected.database, place.service.now + timedelta(days=1))
    assert {each.view.worker_id for each in waiting} == {mine, theirs}
    stopped = instance(InstanceState.STOPPED)
    await place.service.report(OperationSucceeded(worker_id=mine, operation_id="c", instance=stopped))
    for user, outcome in (("ann", "succeeded"), ("ben", None)):
        shown = await place.operation("c", user)
        assert shown is not None
        assert (shown.result and shown.result.outcome) == outcome


async def test_of_the_operations_of_others_those_are_seen_that_are_open(place: Place):
    """What somebody else sent under the id hides nothing, neither their own nor what is open to them."""
    mine, theirs = await place.worker("ann"), await place.worker("ben")
    for user, worker_id in (("ben", theirs), ("ann", mine)):
        stop = StopCMLWorker(worker_id=worker_id, stopped_by=user)
        assert await place.service.command(stop, "c", user_id=user) == Ack()
    ownership = Ownership(enforced=True, fleet=frozenset({"ops"}))
    place.allow(Access(enforced=True, users=ACCESS.users, ownership=ownership))
    for user, worker_id in (("ann", mine), ("ben", theirs)):
        shown = await place.operation("c", user)
        assert shown is not None
        assert shown.worker_id == worker_id
    assert await place.operation("c", "cleo") is None
    assert await place.operation("c", "ops") is not None
