"""Two users, one command id: whoever knows another one's does them no harm by it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from cml_contracts.commands import (
    CreateCMLWorker,
    ImportCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    UpdateCMLWorkerTags,
    WorkerCommand,
)
from cml_contracts.events import LaunchRequested, StopRequested, WorkerImported
from cml_contracts.instance import CONSENT_TAG, InstanceState
from cml_contracts.queries import GetOperation, OperationView
from cml_contracts.results import OperationResult, ProblemCode
from cml_workers.bus.headers import OPERATOR_HEADER
from cml_workers.bus.port import Ack, BusUnavailableError, DeadLetter, Verdict
from cml_workers.bus.topology import INTERNAL_EXCHANGE
from cml_workers.domain.history import Recorded, Redrive
from cml_workers.domain.messages import (
    InstanceLookup,
    LookupAnswered,
    LookupRequested,
    LookupResult,
    OperationOutstanding,
    OperationSucceeded,
)
from cml_workers.domain.ownership import Ownership
from cml_workers.domain.policy import Access
from cml_workers.eventstore.command_streams import COMMAND_STREAMS
from cml_workers.eventstore.names import WORKER_STREAMS, worker_of
from cml_workers.eventstore.port import StoreUnavailableError, StreamNotFoundError
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.eventstore.worker_streams import decode, load, published
from cml_workers.projector.queries import Queries
from cml_workers.readmodels.workers.queries import pending
from support.given import create, instance
from support.projecting import DATABASES, Projected, a_database
from support.service import WORKER, Service, opened, streams

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


IMAGE = {"ami_id": None, "ami_name": "cml"}
FOUND = "i-0f00000000000000f"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """Lifecycle, with rights, on a store of its own."""
    async with opened(tmp_path) as service:
        service.allow(ACCESS)
        yield service


async def another(service: Service) -> Service:
    """Another process on the same store."""
    other = Service(service.store)
    other.outbox = service.outbox
    other.allow(ACCESS)
    return other


def creates(worker_id: UUID | None, user: str, **more: Any) -> CreateCMLWorker:
    return create(worker_id=worker_id, created_by=user, **more)


async def send(service: Service, body: WorkerCommand, user: str, command_id: str = "c") -> Verdict:
    """Under the id that all use, with the answer of EC2 where it is asked."""
    asked = len(service.outbox.on(INTERNAL_EXCHANGE.name))
    verdict = await service.command(body, command_id, user_id=user, reply_to=user)
    if len(service.outbox.on(INTERNAL_EXCHANGE.name)) > asked:
        return await answered(service)
    return verdict


async def answered(service: Service, number: int = -1) -> Verdict:
    """EC2's answer to a lookup request."""
    asked = LookupRequested.model_validate_json(service.outbox.on(INTERNAL_EXCHANGE.name)[number].body)
    if isinstance(asked.lookup, InstanceLookup):
        tags = {CONSENT_TAG: "default"} if asked.lookup.instance_id == FOUND else {}
        state = InstanceState.RUNNING if tags else InstanceState.STOPPED
        looked_up = LookupResult(instance=instance(state, instance_id=asked.lookup.instance_id, tags=tags))
    else:
        looked_up = LookupResult(image_id="ami-22222222")
    return await service.report(LookupAnswered(origin=asked.origin, lookup=asked.lookup, looked_up=looked_up))


async def events(service: Service) -> list[tuple[UUID, Recorded]]:
    """All that is recorded of workers."""
    return [
        (worker_of(stream), decode(stored))
        for stream in sorted(await streams(service, WORKER_STREAMS))
        for stored in await service.store.read(stream)
    ]


async def launches(service: Service) -> list[tuple[UUID, str | None]]:
    """The worker and the user of each launch that was requested."""
    found = [
        (each, recorded.event, recorded.metadata.user)
        for each, recorded in await events(service)
        if isinstance(recorded.event, LaunchRequested)
    ]
    tokens = [event.launch.client_token for _, event, _ in found]
    assert len(set(tokens)) == len(tokens)
    return [(worker_id, user) for worker_id, _, user in found]


def last(service: Service, user: str) -> OperationResult:
    """The last reply that the user got."""
    result = service.outbox.results(user)[-1]
    assert result.command_id == "c"
    return result


async def running(service: Service, owner: str) -> UUID:
    """A worker of the user's."""
    worker_id = uuid4()
    await service.command(creates(worker_id, owner), f"new-{worker_id}", user_id=owner, reply_to=None)
    report = OperationSucceeded(worker_id=worker_id, operation_id=f"new-{worker_id}", instance=instance())
    assert await service.report(report) == Ack()
    return worker_id


async def settle(service: Service) -> None:
    """EC2 does what is pending."""
    for worker_id in {each for each, _ in await events(service)}:
        worker = await load(service.store, worker_id)
        for operation in worker.operations.values():
            state = (
                InstanceState.STOPPED
                if isinstance(operation.intent, StopRequested)
                else InstanceState.RUNNING
            )
            tags = operation.tags
            report = OperationSucceeded(
                worker_id=worker_id, operation_id=operation.command_id, instance=instance(state, tags=tags)
            )
            assert await service.report(report) == Ack()


@pytest.mark.parametrize("same_worker", [True, False], ids=["one worker", "two workers"])
@pytest.mark.parametrize("same_type", [True, False], ids=["one type", "two types"])
async def test_each_of_two_users_gets_their_own_result(service: Service, same_worker: bool, same_type: bool):
    """Before: who was second got ``DuplicateCommand``, and had to take a new id."""
    mine = await running(service, "ann")
    theirs = mine if same_worker else await running(service, "ben")
    bodies: dict[str, WorkerCommand] = {
        "ann": UpdateCMLWorkerTags(worker_id=mine, tags={"a": "ann"}, updated_by="ann"),
        "ben": UpdateCMLWorkerTags(worker_id=theirs, tags={"a": "ben"}, updated_by="ben")
        if same_type
        else StopCMLWorker(worker_id=theirs, stopped_by="ben"),
    }
    before = len(await events(service))
    for user in ("ann", "ben", "ann", "ben"):  # again while they are pending: their replies are on their way
        assert await send(service, bodies[user], user) == Ack()
    assert len(await events(service)) == before + 2
    await settle(service)
    assert last(service, "ann").data == {"a": "ann"}
    assert last(service, "ben").data == ({"a": "ben"} if same_type else True)
    count = len(await events(service))
    for user in ("ben", "ann"):
        own = service.outbox.results(user)[0]
        assert await send(service, bodies[user], user) == Ack()
        assert last(service, user) == own
        other = StopCMLWorker(worker_id=bodies[user].worker("c"), stopped_by=user, reason="another one")
        assert isinstance(await send(service, other, user), DeadLetter)
        problem = last(service, user).problem
        assert problem
        assert problem.code is ProblemCode.DUPLICATE_COMMAND
    assert len(await events(service)) == count
    by_user = {
        recorded.metadata.user: recorded.metadata.actor
        for _, recorded in await events(service)
        if recorded.metadata.command_id == "c"
    }
    assert by_user == {"ann": "ann", "ben": "ben"}


WORKERS = [None, UUID(int=1), UUID(int=2)]


@pytest.mark.parametrize("image", [{}, IMAGE], ids=["at once", "after a lookup"])
@pytest.mark.parametrize("mine", WORKERS[:2])
@pytest.mark.parametrize("theirs", [WORKERS[0], WORKERS[2]])
async def test_of_two_creates_each_has_its_own_worker(
    service: Service, mine: UUID | None, theirs: UUID | None, image: dict[str, Any]
):
    """Whatever comes again, and in whatever process: never a third instance."""
    bodies = {"ann": creates(mine, "ann", **image), "ben": creates(theirs, "ben", **image)}
    other = await another(service)
    for user in ("ann", "ben", "ben", "ann"):
        for process in (service, other):
            assert await send(process, bodies[user], user) == Ack()
    made = await launches(service)
    assert sorted(user or "" for _, user in made) == ["ann", "ben"]
    assert len({worker_id for worker_id, _ in made}) == 2
    await settle(service)
    for user, body in bodies.items():
        result = last(service, user)
        assert (result.worker_id, user) in made
        assert result.outcome == "succeeded"
        assert await send(other, body, user) == Ack()
        assert last(service, user) == result
        elsewhere = body.model_copy(update={"worker_id": uuid4(), "ami_id": "ami-11111111", "ami_name": None})
        assert isinstance(await send(other, elsewhere, user), DeadLetter)
    assert await launches(service) == made


async def test_an_import_and_a_create_under_one_id(service: Service):
    taken = ImportCMLWorker(aws_region="us-east-1", instance_id=FOUND, created_by="ben")
    for _ in range(2):
        assert await send(service, creates(None, "ann"), "ann") == Ack()
        assert await send(service, taken, "ben") == Ack()
    assert len(await launches(service)) == 1
    imported = [
        recorded for _, recorded in await events(service) if isinstance(recorded.event, WorkerImported)
    ]
    assert [each.metadata.user for each in imported] == ["ben"]
    await settle(service)
    for user in ("ann", "ben"):
        assert last(service, user).outcome == "succeeded"
    assert await send(service, taken, "ben") == Ack()
    assert last(service, "ben").outcome == "succeeded"


async def test_two_users_at_the_same_time_and_again_and_again(service: Service):
    processes = [service, await another(service), await another(service)]
    mine = await running(service, "ann")
    bodies: list[tuple[WorkerCommand, str]] = [
        (creates(None, "ann"), "ann"),
        (creates(None, "ben"), "ben"),
        (UpdateCMLWorkerTags(worker_id=mine, tags={"a": "1"}, updated_by="cleo"), "cleo"),
    ]
    for _ in range(3):
        sent = [
            process.command(body, "c", user_id=user, reply_to=user)
            for body, user in bodies
            for process in processes
        ]
        assert set(await asyncio.gather(*sent)) == {Ack()}
    assert sorted(user or "" for _, user in await launches(service)) == ["ann", "ann", "ben"]
    await settle(service)
    for user in ("ann", "ben", "cleo"):
        assert {each.outcome for each in service.outbox.results(user)} == {"succeeded"}


async def test_who_dies_between_the_record_and_the_events_is_not_replaced_by_another(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    """The id is bound; the other user comes, with the same body but for its name; then the first one's command comes again."""
    append = service.store.append

    async def dies(stream: str, batch: Any, *, expected: int) -> int:
        if stream.startswith(WORKER_STREAMS):
            raise StoreUnavailableError("dies here")
        return await append(stream, batch, expected=expected)

    monkeypatch.setattr(service.store, "append", dies)
    with pytest.raises(StoreUnavailableError):
        await send(service, creates(None, "ann"), "ann")
    monkeypatch.undo()
    other = await another(service)
    for user in ("ben", "ann", "ben"):
        assert await send(other, creates(None, user), user) == Ack()
    made = await launches(service)
    assert sorted(user or "" for _, user in made) == ["ann", "ben"]
    assert (
        creates(None, "ann").worker("c"),
        "ann",
    ) in made  # the worker id that follows from the id is of whose id it is
    await settle(service)
    assert {last(service, user).worker_id for user in ("ann", "ben")} == {worker_id for worker_id, _ in made}


async def test_a_reply_that_was_lost_comes_again_and_is_its_own_users(service: Service):
    mine = await running(service, "ann")
    for user in ("ann", "ben"):
        service.outbox.broken = 1
        start = StartCMLWorker(worker_id=uuid4(), started_by=user)
        with pytest.raises(BusUnavailableError):
            await send(service, start, user)
        assert await send(service, start, user) == Ack()
        assert [each.worker_id for each in service.outbox.results(user)] == [start.worker_id]
    for user in ("ann", "ben"):
        assert await send(service, StopCMLWorker(worker_id=mine, stopped_by=user), user, "d") == Ack()
    assert [len(service.outbox.results(user)) for user in ("ann", "ben")] == [
        1,
        2,
    ]  # a stop is under way: a conflict


async def test_a_rejection_stays_its_result_though_another_user_binds_the_id_since(service: Service):
    rejected = creates(await running(service, "ben"), "ann")
    assert await send(service, rejected, "ann") == Ack()
    assert await send(service, creates(None, "ben"), "ben") == Ack()
    first = last(service, "ann")
    for _ in range(2):
        assert await send(service, rejected, "ann") == Ack()
        assert last(service, "ann") == first
    assert len(await launches(service)) == 2


async def test_a_create_that_was_accepted_is_not_rejected_when_it_comes_again(service: Service):
    """Under its own id it is in another stream than the one where it is looked for first, whose worker somebody has made since."""
    assert await send(service, creates(UUID(int=1), "ann"), "ann") == Ack()
    assert await send(service, creates(None, "ben"), "ben") == Ack()
    follows = creates(None, "ben").worker("c")
    assert await send(service, creates(follows, "cleo"), "cleo", "other") == Ack()
    await settle(service)
    first = last(service, "ben")
    assert first.outcome == "succeeded"
    assert await send(service, creates(None, "ben"), "ben") == Ack()
    assert last(service, "ben") == first
    assert len(await launches(service)) == 3


async def test_a_command_under_an_id_of_its_own_is_found_though_a_replica_lags_behind(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    for user in ("ann", "ben"):
        assert await send(service, creates(uuid4() if user == "ann" else WORKER, user), user) == Ack()
    await settle(service)
    first, count = last(service, "ben"), len(await events(service))
    read = service.store.read

    async def lags(stream: str, **options: Any) -> Any:
        if stream.startswith(COMMAND_STREAMS):
            raise StreamNotFoundError(stream)
        return await read(stream, **options)

    monkeypatch.setattr(service.store, "read", lags)
    for process in (service, await another(service)):
        assert await send(process, creates(WORKER, "ben"), "ben") == Ack()
        assert last(service, "ben") == first
    assert len(await events(service)) == count


async def test_what_was_recorded_without_users_is_anybodys_as_it_was(service: Service):
    """Of older streams, and of a deployment that had no authorization."""
    mine = await running(service, "ann")
    stop = StopCMLWorker(worker_id=mine, stopped_by="ann")
    service.allow(Access())
    assert await service.command(stop, "c", reply_to=None) == Ack()
    service.allow(ACCESS)
    await settle(service)
    assert await send(service, stop, "ann") == Ack()
    assert last(service, "ann").outcome == "succeeded"
    assert isinstance(await send(service, stop.model_copy(update={"stopped_by": "ben"}), "ben"), DeadLetter)
    # And without authorization, one id is one command's, whoever has used it.
    service.allow(Access())
    assert await service.command(stop, "c", reply_to="nobody") == Ack()
    assert last(service, "nobody").outcome == "succeeded"


async def test_an_id_that_an_operator_edited_is_its_senders_still(service: Service):
    """Who fixes and repeats their command, while an operator edits it, has not sent two."""
    headers = {OPERATOR_HEADER: Redrive(edited=True, user="cleo", by="cleo").model_dump_json()}
    edited = creates(None, "cleo")
    assert await service.command(edited, "c", user_id="cleo", reply_to=None, headers=headers) == Ack()
    for body in (creates(None, "ann"), creates(UUID(int=1), "ann")):
        assert isinstance(await send(service, body, "ann"), DeadLetter)
    assert len(await launches(service)) == 1


async def test_others_see_the_id_as_it_was_sent(place: Place):
    mine = await place.worker("ann")
    for user in ("ben", "ann"):
        tags = UpdateCMLWorkerTags(worker_id=mine, tags={user: "1"}, updated_by=user)
        assert await place.service.command(tags, "c", user_id=user) == Ack()
    for user in ("ben", "ann"):
        shown = await place.operation("c", user)
        assert shown is not None
        assert (shown.command_id, shown.result) == ("c", None)
    stored = (await place.service.store.read(f"{WORKER_STREAMS}{mine}"))[-2:]
    envelopes = [published("here", each) for each in stored]
    assert [(each.command_id, each.causation_id, each.actor) for each in envelopes] == [
        ("c", "c", "ben"),
        ("c", "c", "ann"),
    ]
    first, second = (each.data["operation_id"] for each in envelopes)
    assert first == "c" != second

    waiting = await pending(place.projected.database, place.service.now + timedelta(days=1))
    assert {each.operation_id for each in waiting} == {first, second}
    for each in waiting:
        outstanding = OperationOutstanding(worker_id=mine, operation_id=each.operation_id)
        assert await place.service.report(outstanding) == Ack()
    for operation_id, user in ((second, "ann"), (first, "ben")):
        report = OperationSucceeded(
            worker_id=mine, operation_id=operation_id, instance=instance(tags={user: "1"})
        )
        assert await place.service.report(report) == Ack()
    for user in ("ben", "ann"):
        shown = await place.operation("c", user)
        assert shown is not None
        assert shown.overdue_at
        assert shown.result
        assert (shown.result.command_id, shown.result.data[user]) == ("c", "1")
