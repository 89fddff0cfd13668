"""Dead letters over the real handlers, bus and database: nothing is lost, nothing counted twice, nothing swallowed."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import pytest
import sqlalchemy as sa

from cml_contracts.client import WorkerClient
from cml_contracts.commands import StartCMLWorker
from cml_contracts.deadletters import (
    DeadLetterDetails,
    DeadLetterPage,
    DeadLetterState,
    DeadLetterView,
    DiscardDeadLetter,
    EditDeadLetter,
    GetDeadLetter,
    ListDeadLetters,
    OperatorRequest,
    RedriveDeadLetter,
)
from cml_contracts.results import OperationResult, ProblemCode
from cml_contracts.tokens import TOKEN_HEADER
from cml_workers.bus import delivery
from cml_workers.bus.port import Message, Verdict
from cml_workers.bus.rabbit import RabbitBus
from cml_workers.bus.topology import DEAD_LETTER_QUEUE, DELIVERY_LIMIT, LIFECYCLE_COMMANDS, PROJECTOR_OPERATOR
from cml_workers.deadletters.archive import DEAD_LETTERS, OUTCOMES, Archive
from cml_workers.deadletters.handler import DeadLetters
from cml_workers.domain.policy import Access, Policy
from cml_workers.eventstore.port import StreamNotFoundError
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.lifecycle.handler import Lifecycle
from cml_workers.sql.database import DatabaseUnavailableError, migrate, open_database, transaction
from support.buses import emptied, left_behind
from support.deadletters import dead_letters
from support.plain_amqp import PlainAmqp
from support.postgresql import emptied as emptied_database

START = StartCMLWorker.TYPE
CREATE: dict[str, Any] = {
    "name": "lab",
    "aws_region": "us-east-1",
    "ami_id": "ami-11111111",
    "created_by": "guest",
    "worker_id": str(uuid4()),
}
Handle = Callable[[Message], Awaitable[Verdict]]


class Service:
    """Lifecycle and the dead letters on a broker, a client of theirs and an operator."""

    client: PlainAmqp
    operator: WorkerClient

    def __init__(self, url: str, store: SqliteEventStore, archive: Archive) -> None:
        self.url = url
        self.store = store
        self.archive = archive
        self.stack = AsyncExitStack()
        self.bus = RabbitBus(url, name="projector")
        self.letters = DeadLetters(
            archive=archive,
            store=store,
            publish=self.bus.publish,
            own_user=self.bus.user,
            access=Access(),
            now=lambda: datetime.now(UTC),
        )
        self.bus.consume(DEAD_LETTER_QUEUE, self.collect, prefetch=10)
        self.bus.consume(PROJECTOR_OPERATOR, self.on_request, prefetch=10)
        self.seen: list[Message] = []
        self.let(Access())

    async def collect(self, message: Message) -> Verdict:
        return await self.letters.collect(message)

    async def on_request(self, message: Message) -> Verdict:
        return await self.letters.on_request(message)

    def let(self, access: Access) -> None:
        """Lifecycle as it ships, under this access."""
        self.lifecycle = Lifecycle(
            store=self.store,
            publish=self.publish,
            policy=Policy(),
            access=access,
            now=lambda: datetime.now(UTC),
            new_id=uuid4,
        )
        self.handle: Handle = self.lifecycle.on_command

    async def publish(self, message: Any) -> None:
        await self.bus.publish(message)

    def fail(self, *, after: bool) -> None:
        """Lifecycle has a bug: it claims the command and fails, or it fails when all is done but the message."""

        async def decide(*_: object, **__: object) -> Verdict:
            raise ValueError("a bug")

        real = self.lifecycle.on_command

        async def handle(message: Message) -> Verdict:
            await real(message)
            raise ValueError("a bug")

        if after:
            self.handle = handle
        else:
            self.lifecycle._decide = decide  # type: ignore[method-assign]

    async def consume(self) -> None:
        """Lifecycle begins to take commands."""
        bus = RabbitBus(self.url, name="lifecycle")

        async def on_command(message: Message) -> Verdict:
            self.seen.append(message)
            return await self.handle(message)

        bus.consume(LIFECYCLE_COMMANDS, on_command, prefetch=10)
        await self.stack.enter_async_context(bus)

    async def send(self, body: Any = None, message_id: str | None = None, **properties: Any) -> str:
        """Send a command, broken or not; its correlation id."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        properties = {"user_id": "guest", "message_id": message_id or str(uuid4()), **properties}
        kind = properties.pop("kind", START)
        return await self.client.publish("cml.commands", kind, raw, **properties)

    async def reply(self, correlation_id: str, count: int = 1) -> dict[str, Any]:
        return (await self.client.replies_to(correlation_id, count))[count - 1]

    async def the_letter(self, **conditions: Any) -> DeadLetterDetails:
        """The only one, once it is there."""
        (letter,) = await dead_letters(self.operator, **conditions)
        return letter

    async def ask(self, request: OperatorRequest) -> OperationResult:
        return await self.operator.operate(request)

    async def until(self, letter: DeadLetterDetails, **expected: Any) -> DeadLetterDetails:
        """The same one, once it is as expected."""
        async with asyncio.timeout(30):
            while True:
                result = await self.ask(GetDeadLetter(dead_letter_id=letter.id))
                now = DeadLetterDetails.model_validate(result.data)
                if all(getattr(now, name) == value for name, value in expected.items()):
                    return now
                await asyncio.sleep(0.05)


PARTS = [("embedded_amqp_url", "sqlite"), ("rabbitmq_url", "postgresql")]


@pytest.fixture(params=PARTS, ids=["embedded", "real"])
async def service(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Service]:
    """On the embedded parts, and on RabbitMQ with PostgreSQL. One failure of a handler is enough."""
    monkeypatch.setattr(delivery, "MAX_FAULTS", 1)
    broker, database = request.param
    url = await emptied(request.getfixturevalue(broker))
    engine = open_database(
        f"sqlite:///{tmp_path / 'read-model.sqlite3'}"
        if database == "sqlite"
        else await emptied_database(request.getfixturevalue("postgresql_url")),
        durable=True,
    )
    await migrate(engine)
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    service = Service(url, store, Archive(engine))
    async with service.stack as stack:
        await stack.enter_async_context(service.bus)
        service.client = await stack.enter_async_context(PlainAmqp(url))
        service.operator = await stack.enter_async_context(WorkerClient(url, deadline=20))
        yield service
    await engine.dispose()
    assert await left_behind(url) == {}
    await store.close()


async def types(service: Service, worker_id: str = CREATE["worker_id"]) -> list[str]:
    try:
        stored = await service.store.read(f"cml_worker-{worker_id}")
    except StreamNotFoundError:
        return []
    return [each.type.removeprefix("cml.").removesuffix(".v1") for each in stored]


def into_a_creation(letter: DeadLetterDetails, worker_id: str) -> EditDeadLetter:
    return EditDeadLetter(dead_letter_id=letter.id, body=json.dumps({**CREATE, "worker_id": worker_id}))


async def nothing(*_: Any) -> None:
    """Dies before it is done."""


async def until(get: Callable[[], Awaitable[Any]], expected: Any) -> None:
    async with asyncio.timeout(30):
        while await get() != expected:
            await asyncio.sleep(0.05)


# -- kept -------------------------------------------------------------------------------------------------


async def test_what_cannot_be_rebuilt_is_on_disk_when_it_is_committed(tmp_path: Path):
    levels = []
    for durable in (False, True):
        engine = open_database(f"sqlite:///{tmp_path / 'read-model.sqlite3'}", durable=durable)
        for _ in range(2):
            async with transaction(engine) as connection:
                levels.append(await connection.scalar(sa.text("PRAGMA synchronous")))
        await engine.dispose()
    normal, full = 1, 2
    assert levels == [normal, normal, full, full]


async def test_a_broken_message_is_kept_with_all_that_came_with_it_but_the_secret(service: Service):
    await service.consume()
    sent = await service.send(
        {"colour": "red"},
        "m-1",
        headers={TOKEN_HEADER: "s3cret", "mark": "x", "raw": bytearray(b"\xff"), "deep": {"n": [1]}},
    )
    assert (await service.reply(sent))["problem"]["code"] == "ValidationFailed"
    letter = await service.the_letter()
    assert (letter.queue, letter.cause, letter.state) == (
        LIFECYCLE_COMMANDS.name,
        "ValidationFailed",
        "waiting",
    )
    assert "colour" in letter.reason
    assert (letter.message_id, letter.type, letter.user) == ("m-1", START, "guest")
    assert (letter.correlation_id, letter.reply_to) == (sent, service.client.reply_to)
    assert (letter.body, letter.encoding, letter.size) == ('{"colour": "red"}', "utf-8", 17)
    assert (letter.deaths, letter.redrives, letter.deliveries, letter.attempts, letter.faults) == (
        1,
        0,
        1,
        0,
        0,
    )
    assert letter.headers["mark"] == "x"
    assert letter.headers["deep"] == "{'n': [1]}"
    assert [(each.what, each.reason) for each in letter.history] == [("died", letter.reason)]
    async with service.archive._engine.begin() as connection:
        rows = [(await connection.execute(sa.select(table))).all() for table in (DEAD_LETTERS, OUTCOMES)]
    assert "s3cret" not in repr(rows)
    assert "s3cret" not in letter.model_dump_json()


@pytest.mark.parametrize(
    ("body", "properties", "encoding"),
    [
        (b"\xff\x00\xfe", {}, "base64"),
        (b"", {"message_id": ""}, "utf-8"),
        (b"{", {"kind": "a\0b", "headers": {"n\0": "v\0"}, "message_id": "m\0"}, "utf-8"),
        (b"x" * 300_000, {}, "utf-8"),
        (b"{", {"kind": "k" * 255, "message_id": "m" * 255, "correlation_id": "c" * 255}, "utf-8"),
    ],
    ids=["binary", "empty", "nul", "oversized", "long"],
)
async def test_whatever_is_in_it_it_is_kept(
    service: Service, body: bytes, properties: dict[str, Any], encoding: str
):
    await service.consume()
    await service.send(body, **properties)
    letter = await service.the_letter()
    assert (letter.size, letter.encoding) == (len(body), encoding)
    kept = await service.archive.find(letter.id)
    assert kept is not None
    assert kept.letter.body == body


async def test_what_the_broker_buried_is_kept_and_redriven_with_a_new_life(service: Service):
    await service.send(
        {"worker_id": str(uuid4())},
        "poison",
        headers={"x-cml-reason": "made up", TOKEN_HEADER: "s3cret", "mark": "x"},
    )
    async with await aio_pika.connect(service.url) as connection:
        queue = await (await connection.channel()).get_queue(LIFECYCLE_COMMANDS.name)
        for _ in range(DELIVERY_LIMIT + 1):
            async with asyncio.timeout(60):
                while (delivered := await queue.get(fail=False)) is None:
                    await asyncio.sleep(0.02)
            await delivered.nack(requeue=True)
    letter = await service.the_letter()
    assert (letter.queue, letter.cause, letter.user) == (LIFECYCLE_COMMANDS.name, "DeliveryLimit", "guest")
    assert letter.deliveries == DELIVERY_LIMIT + 1
    assert "made up" not in letter.reason
    assert "s3cret" not in letter.model_dump_json()
    await service.consume()
    assert (await service.ask(RedriveDeadLetter(dead_letter_id=letter.id))).problem is None
    assert (await service.reply(letter.correlation_id or ""))["problem"]["code"] == "WorkerNotFound"
    (message,) = service.seen
    assert (message.attempt, message.deliveries, message.user_id) == (0, 1, "guest")
    assert message.headers["mark"] == "x"
    assert not [name for name in message.headers if name.startswith(("x-death", "x-first-death"))]


async def test_a_dead_letter_that_is_delivered_again_is_counted_once_and_another_death_is_counted(
    service: Service,
):
    died = {"x-cml-queue": LIFECYCLE_COMMANDS.name, "x-cml-cause": "Refused", "x-cml-reason": "r"}

    def message(death: str, **fields: Any) -> Message:
        headers = {**died, "x-cml-death": death}
        return Message(body=b"{", type=START, message_id="m", headers=headers, user_id="ann", **fields)

    for death in ("one", "one", "two", "two"):
        await service.letters.collect(message(death))
    letter = await service.the_letter()
    assert (letter.deaths, [each.what for each in letter.history]) == (2, ["died", "died"])
    await asyncio.gather(*(service.letters.collect(message(f"at once {n}")) for n in range(10)))
    assert (await service.the_letter()).deaths == 12
    await service.letters.collect(message("three", correlation_id="later"))
    assert (await service.the_letter()).correlation_id == "later"


async def test_a_database_that_is_down_for_a_while_loses_none(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    keep, failures = service.archive.keep, [DatabaseUnavailableError("down"), ValueError("a bug")] * 2

    async def down(*args: Any) -> bool:
        if failures:
            raise failures.pop()
        return await keep(*args)

    monkeypatch.setattr(service.archive, "keep", down)
    await service.consume()
    await service.send(b"{", "m-1")
    letter = await service.the_letter()
    assert (letter.message_id, letter.user, letter.deaths) == ("m-1", "guest", 1)
    assert letter.cause == "ValidationFailed"
    assert not failures


# -- redriven ---------------------------------------------------------------------------------------------


async def test_a_command_that_was_claimed_and_not_decided_is_decided(service: Service):
    service.fail(after=False)
    await service.consume()
    sent = await service.send({"worker_id": str(uuid4())}, "start")
    letter = await service.the_letter()
    assert (letter.cause, letter.faults) == ("HandlerFailed", 1)
    service.let(Access())
    done = await service.ask(RedriveDeadLetter(dead_letter_id=letter.id, by="ann", reason="mended"))
    assert done.data["state"] == "redriven"
    assert (await service.reply(sent))["problem"]["code"] == "WorkerNotFound"
    assert service.seen[-1].attempt == 0
    assert "x-cml-faults" not in service.seen[-1].headers
    now = await service.until(letter, state=DeadLetterState.REDRIVEN, redrives=1)
    outcome = now.history[-1]
    assert (outcome.what, outcome.user, outcome.by, outcome.reason) == ("redriven", "guest", "ann", "mended")


async def test_a_command_that_was_decided_gets_its_recorded_reply_again_and_no_second_effect(
    service: Service,
):
    service.fail(after=True)
    await service.consume()
    worker_id = str(uuid4())
    sent = await service.send({"worker_id": worker_id}, "start")
    first = await service.reply(sent)
    letter = await service.the_letter()
    service.let(Access())
    await service.ask(RedriveDeadLetter(dead_letter_id=letter.id))
    assert await service.reply(sent, 2) == first
    assert await types(service, worker_id) == ["command.rejected"]


async def test_a_refused_command_is_decided_once_its_user_may_send_it(service: Service):
    service.let(Access(enforced=True, users={"portal": frozenset({"*"})}))
    await service.consume()
    sent = await service.send(CREATE, "create", kind="cml.worker.create.v1")
    assert (await service.reply(sent))["problem"]["code"] == "Unauthorized"
    letter = await service.the_letter(cause="Unauthorized")
    service.let(Access(enforced=True, users={"guest": frozenset({"*"})}))
    assert (await service.ask(RedriveDeadLetter(dead_letter_id=letter.id))).problem is None
    await until(lambda: types(service), ["worker.created", "worker.launch_requested"])
    (created, _) = await service.store.read(f"cml_worker-{CREATE['worker_id']}")
    assert json.loads(created.metadata)["user"] == "guest"


async def test_one_that_dies_again_comes_back_as_the_same_one(service: Service):
    await service.consume()
    await service.send(b"{", "m-1")
    letter = await service.the_letter()
    for number in range(1, 4):
        await service.ask(RedriveDeadLetter(dead_letter_id=letter.id))
        now = await service.until(letter, deaths=number + 1, redrives=number)
        assert now.state is DeadLetterState.WAITING
    again = await service.the_letter()
    assert again.id == letter.id
    assert sorted(each.what for each in again.history) == ["died"] * 4 + ["redriven"] * 3


async def test_a_death_that_comes_before_the_redrive_is_recorded_is_not_overwritten(service: Service):
    await service.consume()
    await service.send(b"{", "m-1")
    letter = await service.the_letter()
    kept = await service.archive.find(letter.id)
    assert kept is not None
    publish = service.letters._publish

    async def and_wait(message: Any) -> None:
        await publish(message)
        if message.routing_key == LIFECYCLE_COMMANDS.name:
            await service.until(letter, deaths=2)

    service.letters._publish = and_wait
    result = await service.ask(RedriveDeadLetter(dead_letter_id=letter.id))
    assert (result.data["state"], result.data["deaths"], result.data["redrives"]) == ("waiting", 2, 1)


async def test_what_has_no_queue_to_go_to_is_said_so(service: Service):
    async with await aio_pika.connect(service.url) as connection:
        exchange = await (await connection.channel()).get_exchange("cml.dead-letters", ensure=False)
        await exchange.publish(aio_pika.Message(b"?", type="stray", message_id="m"), "")
    letter = await service.the_letter()
    assert (letter.cause, letter.queue) == ("Unknown", "")
    result = await service.ask(RedriveDeadLetter(dead_letter_id=letter.id))
    assert result.problem
    assert "discarded" in result.problem.detail


# -- edited -----------------------------------------------------------------------------------------------


async def test_an_edited_command_keeps_its_id_where_nobody_used_it_and_its_old_body_in_the_history(
    service: Service,
):
    await service.consume()
    sent = await service.send({"worker_id": str(uuid4()), "colour": "red"}, "start")
    await service.reply(sent)
    letter = await service.the_letter()
    body = json.dumps({"worker_id": str(uuid4())})
    result = await service.ask(
        EditDeadLetter(dead_letter_id=letter.id, body=body, by="ann", reason="no colours")
    )
    assert (result.data["state"], result.data["message_id"]) == ("edited", "start")
    reply = await service.reply(sent, 2)
    assert (reply["command_id"], reply["problem"]["code"]) == ("start", "WorkerNotFound")
    now = await service.until(letter, body=body)
    outcome = now.history[-1]
    assert (outcome.what, outcome.by, outcome.replaced_body) == ("edited", "ann", letter.body)
    assert (outcome.replaced_type, outcome.message_id) == (START, "start")


async def test_an_edited_command_whose_id_was_used_up_goes_under_a_new_one_and_answers_its_sender(
    service: Service,
):
    service.fail(after=False)
    await service.consume()
    sent = await service.send({"worker_id": str(uuid4())}, "used", correlation_id="")
    assert sent
    letter = await service.the_letter()
    service.let(Access())
    edit = EditDeadLetter(dead_letter_id=letter.id, body=json.dumps({"worker_id": str(uuid4())}))
    result = await service.ask(edit)
    new_id = result.data["message_id"]
    assert UUID(new_id) != UUID(int=0)
    assert new_id != "used"
    reply = await service.reply(sent)
    assert (reply["command_id"], reply["problem"]["code"]) == (new_id, "WorkerNotFound")
    again = await service.ask(edit)
    assert again.problem
    assert (again.problem.code, "into its queue again" in again.problem.detail) == ("Conflict", True)


@pytest.mark.parametrize("decided", [True, False])
async def test_a_command_that_its_sender_mended_meanwhile_cannot_be_edited_into_a_second_one(
    service: Service, decided: bool
):
    await service.consume()
    await service.send({**CREATE, "colour": "red"}, "create", kind="cml.worker.create.v1")
    letter = await service.the_letter()
    if not decided:
        service.fail(after=False)
    await service.send(CREATE, "create", kind="cml.worker.create.v1")
    if decided:
        await until(lambda: types(service), ["worker.created", "worker.launch_requested"])
    else:
        await dead_letters(service.operator, 1, cause="HandlerFailed")
    other = json.dumps({**CREATE, "worker_id": str(uuid4())})
    result = await service.ask(EditDeadLetter(dead_letter_id=letter.id, body=other))
    assert result.problem
    assert result.problem.code == "Conflict"
    assert ("was decided" if decided else "another command") in result.problem.detail


async def test_a_command_without_an_id_gets_one_and_an_unknown_type_can_be_mended(service: Service):
    await service.consume()
    sent = await service.send({"worker_id": str(uuid4())}, kind="cml.worker.strat.v1", message_id=" ")
    await service.reply(sent)
    letter = await service.the_letter()
    result = await service.ask(EditDeadLetter(dead_letter_id=letter.id, type=START))
    assert str(UUID(result.data["message_id"])) == result.data["message_id"]
    assert (await service.reply(sent, 2))["problem"]["code"] == "WorkerNotFound"


async def test_two_who_edit_it_at_once_make_one_command(service: Service):
    await service.consume()
    await service.send({**CREATE, "colour": "red"}, kind="cml.worker.create.v1", message_id=" ")
    letter = await service.the_letter()
    workers = [str(uuid4()) for _ in range(4)]
    edits = [into_a_creation(letter, worker_id) for worker_id in workers]

    async def made() -> list[int]:
        return sorted([len(await types(service, worker_id)) for worker_id in workers])

    results = await asyncio.gather(*(service.ask(edit) for edit in edits))
    assert sorted(result.outcome for result in results) == ["rejected"] * 3 + ["succeeded"]
    await until(made, [0, 0, 0, 2])
    discarded = await service.ask(DiscardDeadLetter(dead_letter_id=letter.id, reason="late"))
    assert discarded.problem
    assert discarded.problem.code == "Conflict"


async def test_an_edit_that_was_not_recorded_and_another_one_make_one_command(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    await service.consume()
    await service.send({**CREATE, "colour": "red"}, kind="cml.worker.create.v1", message_id=" ")
    letter = await service.the_letter()
    workers = [str(uuid4()) for _ in range(2)]
    edits = [into_a_creation(letter, worker_id) for worker_id in workers]
    with monkeypatch.context() as patch:
        patch.setattr(service.archive, "redriven", nothing)
        await service.ask(edits[0])
    await until(lambda: types(service, workers[0]), ["worker.created", "worker.launch_requested"])
    await service.ask(edits[1])
    now = await service.until(letter, cause="DuplicateCommand", state=DeadLetterState.WAITING)
    assert workers[1] in now.body
    assert await types(service, workers[0]) == ["worker.created", "worker.launch_requested"]
    assert await types(service, workers[1]) == []


async def test_an_edited_one_that_dies_again_is_the_same_one_with_its_new_body(service: Service):
    await service.consume()
    await service.send(b"{", "m-1")
    letter = await service.the_letter()
    await service.ask(EditDeadLetter(dead_letter_id=letter.id, body="[]"))
    now = await service.until(letter, deaths=2, redrives=1)
    assert (now.body, now.state) == ("[]", DeadLetterState.WAITING)
    assert (await service.the_letter()).id == letter.id


# -- discarded, listed, allowed ---------------------------------------------------------------------------


async def test_what_is_discarded_is_kept_and_comes_back_when_it_dies_again(service: Service):
    await service.consume()
    await service.send(b"{", "m-1")
    letter = await service.the_letter()
    result = await service.ask(DiscardDeadLetter(dead_letter_id=letter.id, reason="theirs to mend", by="ann"))
    assert result.data["state"] == "discarded"
    assert await service.archive.waiting() == 0
    now = await service.until(letter, state=DeadLetterState.DISCARDED)
    assert (now.history[-1].what, now.history[-1].reason) == ("discarded", "theirs to mend")
    await service.send(b"{", "m-1")
    await service.until(letter, state=DeadLetterState.WAITING, deaths=2)
    assert await service.archive.waiting() == 1


async def test_lists_are_filtered_counted_and_paged(service: Service):
    await service.consume()
    for number in range(5):
        await service.send(b"{", f"broken-{number}")
    await service.send(b"{}", "unknown", kind="cml.worker.explode.v1")
    await dead_letters(service.operator, 6)

    async def listed(**conditions: Any) -> DeadLetterPage:
        result = await service.ask(ListDeadLetters.model_validate(conditions))
        return DeadLetterPage.model_validate(result.data)

    whole = await listed()
    assert [(each.cause, each.queue, each.count) for each in whole.counts] == [
        ("ValidationFailed", LIFECYCLE_COMMANDS.name, 6)
    ]
    assert [each.last_died_at for each in whole.dead_letters] == sorted(
        (each.last_died_at for each in whole.dead_letters), reverse=True
    )
    assert len((await listed(type=START)).dead_letters) == 5
    assert len((await listed(reason_part="NOT KNOWN")).dead_letters) == 1
    assert len((await listed(reason_part="%")).dead_letters) == 0
    assert len((await listed(queue="cml.ec2.wakes")).dead_letters) == 0
    assert len((await listed(state="waiting", cause="ValidationFailed")).dead_letters) == 6
    assert len((await listed(state="discarded")).dead_letters) == 0
    now = datetime.now(UTC)
    assert len((await listed(since=now - timedelta(hours=1))).dead_letters) == 6
    assert len((await listed(since=now + timedelta(hours=1))).dead_letters) == 0
    found: list[DeadLetterView] = []
    cursor = None
    for _ in range(3):
        page = await listed(limit=2, cursor=cursor)
        found += page.dead_letters
        cursor = page.next_cursor
        assert page.counts == whole.counts
    assert cursor is None
    assert found == list(whole.dead_letters)
    wrong = await service.ask(ListDeadLetters(cursor="made up"))
    assert wrong.problem
    assert wrong.problem.code is ProblemCode.VALIDATION_FAILED
    assert "cursor" in wrong.problem.detail


async def test_only_an_operator_may(service: Service):
    await service.consume()
    await service.send(b"{", "m-1")
    letter = await service.the_letter()
    service.letters._access = Access(enforced=True, users={"guest": frozenset({"*"})})
    requests: list[OperatorRequest] = [
        ListDeadLetters(),
        GetDeadLetter(dead_letter_id=letter.id),
        RedriveDeadLetter(dead_letter_id=letter.id),
        EditDeadLetter(dead_letter_id=letter.id, body="[]"),
        DiscardDeadLetter(dead_letter_id=letter.id, reason="x"),
    ]
    for request in requests:
        result = await service.ask(request)
        assert result.problem
        assert result.problem.code == "Unauthorized"
        assert "CML_OPERATOR_USERS" in result.problem.detail
    service.letters._access = Access(enforced=True, operators=frozenset({"guest"}))
    await service.until(letter, state=DeadLetterState.WAITING, deaths=1, redrives=0)
    tried = await dead_letters(service.operator, 5, queue=PROJECTOR_OPERATOR.name)
    assert {each.cause for each in tried} == {"Unauthorized"}


async def test_a_broken_request_and_an_unknown_id_are_answered(service: Service):
    sent = await service.client.publish("cml.operator", "cml.deadletter.get.v1", b"{}")
    assert (await service.reply(sent))["problem"]["code"] == "ValidationFailed"
    for request in (GetDeadLetter(dead_letter_id=uuid4()), RedriveDeadLetter(dead_letter_id=uuid4())):
        result = await service.ask(request)
        assert result.problem
        assert result.problem.code == "DeadLetterNotFound"
