"""Whose a worker is, where the deployment says that workers belong to somebody: commands of others, and what others see."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from cml_contracts.commands import (
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    UpdateCMLWorkerTags,
    WorkerCommand,
)
from cml_contracts.instance import InstanceState
from cml_contracts.queries import GetCMLWorker, GetOperation, ListCMLWorkers, WorkerPage
from cml_contracts.results import ProblemCode
from cml_contracts.tokens import TOKEN_HEADER
from cml_workers.bus.port import Ack, DeadLetter
from cml_workers.domain.messages import (
    CommandMessage,
    InstanceLookup,
    LookupAnswered,
    LookupResult,
    OperationSucceeded,
)
from cml_workers.domain.ownership import Ownership
from cml_workers.domain.policy import Access
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.projector.queries import Queries
from cml_workers.runtime.settings import Settings, SettingsError
from support.buses import token_for
from support.given import instance
from support.projecting import CREATED, DATABASES, LAUNCH, LAUNCHED, Projected, a_database
from support.service import CREATE, WORKER, Service, opened

KEY = b"k" * 32
ACCESS = Access(
    enforced=True,
    users={user: frozenset({"*"}) for user in ("ann", "ben", "cleo", "dan", "portal", "ops")},
    delegates=frozenset({"portal"}),
    keys=(KEY,),
    ownership=Ownership(
        enforced=True,
        fleet=frozenset({"ops"}),
        teams={"ccna": frozenset({"cleo"}), "ccnp": frozenset({"dan"})},
    ),
)
COMMANDS = [
    StartCMLWorker(worker_id=WORKER),
    StopCMLWorker(worker_id=WORKER),
    TerminateCMLWorker(worker_id=WORKER),
    UpdateCMLWorkerTags(worker_id=WORKER, tags={"team": "ccnp"}),
    UpdateCMLWorkerStatus(worker_id=WORKER),
]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """With a running worker of ann's, which bears the tag of team ccna."""
    async with opened(tmp_path) as service:
        service.allow(ACCESS)
        await create(service)
        yield service


async def create(service: Service) -> None:
    command = CREATE.model_copy(update={"created_by": "ann", "tags": {"team": "ccna"}})
    assert await service.command(command, "create", user_id="ann", reply_to=None) == Ack()
    running = instance(InstanceState.RUNNING, tags={"team": "ccna"})
    await service.report(OperationSucceeded(worker_id=WORKER, operation_id="create", instance=running))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.TYPE)
@pytest.mark.parametrize("stranger", ["ben", "dan"])
async def test_nobody_commands_a_worker_of_somebody_else(
    service: Service, command: WorkerCommand, stranger: str
):
    before = await service.types()
    verdict = await service.command(command, "theirs", user_id=stranger)
    assert isinstance(verdict, DeadLetter)
    assert verdict.cause == ProblemCode.UNAUTHORIZED
    assert await service.types() == before  # nor do strangers fill its stream
    (result,) = service.outbox.results()
    assert result.problem is not None
    assert (result.outcome, result.problem.code) == ("rejected", ProblemCode.UNAUTHORIZED)
    (attempt,) = await service.denied()
    assert (attempt["user"], attempt["worker_id"]) == (stranger, str(WORKER))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.TYPE)
@pytest.mark.parametrize("user", ["ann", "cleo", "ops"])
async def test_its_owner_their_team_and_operators_of_the_fleet_do(
    service: Service, command: WorkerCommand, user: str
):
    assert await service.command(command, "ours", user_id=user) == Ack()
    assert await service.denied() == []


async def test_a_worker_may_be_made_for_somebody_else(service: Service):
    made = CREATE.model_copy(update={"created_by": "ann", "owner": "ben", "worker_id": uuid4()})
    assert await service.command(made, "for-ben", user_id="ann") == Ack()
    stop = StopCMLWorker(worker_id=made.worker("for-ben"))
    assert isinstance(await service.command(stop, "no-longer-hers", user_id="ann"), DeadLetter)
    await service.command(stop, "his", user_id="ben")
    assert len(await service.denied()) == 1


async def test_who_acts_for_others_commands_their_workers_alone(service: Service):
    async def stop(actor: str, command_id: str) -> object:
        command, expires = StopCMLWorker(worker_id=WORKER), service.now + timedelta(minutes=1)
        token = token_for(KEY, command, command_id, actor=actor, user="portal", expires=expires)
        return await service.command(command, command_id, user_id="portal", headers={TOKEN_HEADER: token})

    assert isinstance(await stop("ben", "for-ben"), DeadLetter)
    assert await stop("ann", "for-ann") == Ack()


async def test_a_made_up_lookup_result_is_counted_as_no_attempt_of_whom_it_names(service: Service):
    """By whoever has the EC2 adapter's password. Before: the record of denied commands named a user who had sent nothing."""
    before = await service.types()
    made_up = CommandMessage(
        command_id="made-up",
        command=UpdateCMLWorkerStatus(worker_id=WORKER),
        command_type=UpdateCMLWorkerStatus.TYPE,
        correlation_id="c",
        actor="dan",
        user="dan",
    )
    lookup = InstanceLookup(aws_region="us-east-1", instance_id=instance().instance_id, seen_revision=2**40)
    found = LookupResult(instance=instance(tags={"team": "ccna"}))
    await service.report(LookupAnswered(origin=made_up, lookup=lookup, looked_up=found))
    assert await service.denied() == []
    assert await service.types() == before


async def test_what_was_accepted_is_answered_again_whoever_the_worker_belongs_to_since(service: Service):
    stop = StopCMLWorker(worker_id=WORKER)
    assert await service.command(stop, "by-the-team", user_id="cleo") == Ack()
    stopped = instance(InstanceState.STOPPED, tags={"team": "ccnp"})
    await service.report(OperationSucceeded(worker_id=WORKER, operation_id="by-the-team", instance=stopped))
    assert (await service.worker()).tags["team"] == "ccnp"
    assert await service.command(stop, "by-the-team", user_id="cleo") == Ack()
    assert isinstance(await service.command(stop, "again", user_id="cleo"), DeadLetter)


@pytest.fixture(params=DATABASES)
async def projected(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Projected]:
    """Workers of ann, ben and cleo; the second one has the tag of team ccna."""
    url = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    async with a_database(request.param, tmp_path, url) as database:
        projected = Projected(store, database)
        projected.queries = Queries(database=database, unavailable=lambda _: None, access=ACCESS)
        for owner, tags in (("ann", {}), ("ben", {"team": "ccna"}), ("cleo", {"team": "ccnp"})):
            created = CREATED.model_copy(update={"name": owner, "created_by": owner, "tags": tags})
            launched = LAUNCHED.model_copy(update={"instance": instance(tags=tags)})
            await projected.record(uuid4(), created, LAUNCH, launched)
        await projected.catch_up()
        yield projected
    await store.close()


async def seen_by(projected: Projected, user: str | None, **conditions: object) -> list[str]:
    query = ListCMLWorkers.model_validate({"sort": "name", **conditions})
    page = WorkerPage.model_validate((await projected.ask(query, user)).data)
    return [each.owner for each in page.workers]


@pytest.mark.parametrize(
    ("user", "open_to_them"),
    [
        ("ann", ["ann"]),
        ("ben", ["ben"]),
        ("cleo", ["ben", "cleo"]),
        ("dan", ["cleo"]),
        ("ops", ["ann", "ben", "cleo"]),
        ("portal", ["ann", "ben", "cleo"]),
        ("stranger", []),
        (None, []),
    ],
)
async def test_everybody_sees_what_is_open_to_them(
    projected: Projected, user: str | None, open_to_them: list[str]
):
    assert await seen_by(projected, user) == open_to_them
    assert await seen_by(projected, user, name_part="n") == [each for each in open_to_them if "n" in each]
    assert await seen_by(projected, user, owner="ben") == [each for each in open_to_them if each == "ben"]
    assert await seen_by(projected, user, tag="team") == [each for each in open_to_them if each != "ann"]
    everything = WorkerPage.model_validate((await projected.ask(ListCMLWorkers(), "ops")).data)
    for worker in everything.workers:
        is_open = worker.owner in open_to_them
        got = await projected.ask(GetCMLWorker(worker_id=worker.id), user)
        operation = await projected.ask(GetOperation(command_id=f"create/{worker.id}"), user)
        assert (got.outcome == "succeeded", operation.outcome == "succeeded") == (is_open, is_open)
        if not is_open:  # as of one that does not exist
            unknown = await projected.ask(GetCMLWorker(worker_id=uuid4()), user)
            assert got.problem
            assert unknown.problem
            assert got.problem.code == unknown.problem.code
            assert (got.worker_id, got.data, operation.worker_id, operation.data) == (None, None, None, None)


async def test_pages_have_only_what_is_open(projected: Projected):
    first = await projected.ask(ListCMLWorkers(sort="name", limit=1), "cleo")
    page = WorkerPage.model_validate(first.data)
    assert [each.owner for each in page.workers] == ["ben"]
    assert await seen_by(projected, "cleo", cursor=page.next_cursor, limit=1) == ["cleo"]


def test_ownership_needs_users_that_are_known():
    with pytest.raises(SettingsError, match="CML_OWNERSHIP needs authorization"):
        Settings(ownership=True).check_roles()
