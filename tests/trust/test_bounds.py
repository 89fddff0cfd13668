"""What one sender can make of the others' replies, memory and disk: attacks that once worked."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
import sqlalchemy as sa
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError, DeliveryError

from cml_contracts.broker import Nodes
from cml_contracts.client import NotSentError, WorkerClient
from cml_contracts.commands import StartCMLWorker
from cml_contracts.deadletters import (
    DeadLetterState,
    DiscardDeadLetter,
    EditDeadLetter,
    ListDeadLetters,
    RedriveDeadLetter,
)
from cml_contracts.envelope import MAX_BODY, MAX_REPLY
from cml_contracts.events import TagsUpdated, TagsUpdateRequested
from cml_contracts.queries import GetCMLWorker, ListCMLWorkers, WorkerPage
from cml_contracts.results import OperationResult, ProblemCode
from cml_contracts.tokens import MAX_TOKEN, InvalidTokenError, sign, verify
from cml_contracts.topology import COMMANDS_EXCHANGE, OPERATOR_EXCHANGE, QUERIES_EXCHANGE
from cml_tools.definitions import (
    FROM_OUTSIDE_LIMITS,
    FROM_OUTSIDE_POLICY,
    PERMISSIONS,
    REPLIES_LIMITS,
    SHIPPED,
    SUBSCRIBERS_LIMITS,
    VHOST_LIMITS,
    definitions,
)
from cml_workers.bus.codec import reply
from cml_workers.bus.headers import CAUSE_HEADER, DEATH_HEADER, QUEUE_HEADER, REASON_HEADER
from cml_workers.bus.port import Ack, BusUnavailableError, CallerRefusesError, DeadLetter, Message, Outgoing
from cml_workers.bus.rabbit import RabbitBus
from cml_workers.bus.rabbit.direct_replies import PREFIX, WAITING, DirectReplies
from cml_workers.bus.topology import DEAD_LETTER_EXCHANGE, LIFECYCLE_COMMANDS, PUBLIC, QUEUES
from cml_workers.bus.usage import retry_queues
from cml_workers.bus.users import USER_LIMITS, queues_of
from cml_workers.deadletters.archive import DEATHS_KEPT, OUTCOMES, Archive, Limits
from cml_workers.deadletters.handler import DeadLetters
from cml_workers.deadletters.letter import letter_of
from cml_workers.deadletters.quarantined import Quarantined
from cml_workers.domain.history import ReplyAddress
from cml_workers.domain.policy import Access, Policy
from cml_workers.eventstore.port import CaughtUp, EventStore, StoredEvent, StoreUnavailableError
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.foundation.tasks import ended
from cml_workers.lifecycle.denials import DAYS, DENIALS_STREAM, DESCRIBED, USERS, Counts
from cml_workers.lifecycle.handler import Lifecycle
from cml_workers.projector import queries
from cml_workers.sql.database import migrate, open_database, transaction
from support.buses import Outbox, command, queue_of
from support.event_stores import Place
from support.postgresql import emptied
from support.projecting import CREATED, Projected, a_database
from support.rabbitmq import SpawnedRabbitMQ, installed

NOW = datetime(2026, 1, 2, tzinfo=UTC)
KEY = b"k" * 32
LONG_TAGS = {f"{number:02}" + "k" * 126: "\N{GRINNING FACE}" * 256 for number in range(49)}
"""As long as a command can have them, nearly 60 KiB."""


@pytest.fixture(params=["sqlite", "server"])
async def projected(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Projected]:
    kind = {"server": "postgresql"}.get(request.param, request.param)
    url = request.getfixturevalue("postgresql_url") if kind == "postgresql" else None
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    async with a_database(kind, tmp_path, url) as database:
        yield Projected(store, database)
    await store.close()


def tagged(tags: dict[str, str]) -> tuple[TagsUpdateRequested, TagsUpdated]:
    return TagsUpdateRequested(operation_id="tag", tags=tags), TagsUpdated(operation_id="tag", tags=tags)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("more", [{}, {"tag": "00" + "k" * 126}], ids=["all", "by a tag"])
async def test_a_list_of_workers_with_long_tags_comes_in_pages_that_a_message_can_hold(
    projected: Projected, descending: bool, more: dict[str, str]
) -> None:
    all_of_them = await projected.workers(45, CREATED, *tagged(LONG_TAGS))
    await projected.catch_up()
    listed, cursor, pages = [], None, 0
    while cursor or not pages:
        query = ListCMLWorkers.model_validate(
            {"limit": 500, "cursor": cursor, "descending": descending, **more}
        )
        result = await projected.ask(query)
        assert result.problem is None
        assert len(result.model_dump_json()) < MAX_REPLY
        page = WorkerPage.model_validate(result.data)
        listed += [each.id for each in page.workers]
        cursor, pages = page.next_cursor, pages + 1
    assert (sorted(listed), len(set(listed))) == (sorted(all_of_them), 45)
    assert pages > 2


async def test_the_last_page_that_just_fits_has_no_cursor(projected: Projected) -> None:
    await projected.workers(3, CREATED)
    await projected.catch_up()
    for limit, more in ((3, False), (2, True), (4, False)):
        result = await projected.ask(ListCMLWorkers(limit=limit))
        assert (WorkerPage.model_validate(result.data).next_cursor is not None) is more


async def test_an_answer_that_no_message_can_hold_is_a_problem_and_never_lost(
    projected: Projected, monkeypatch: pytest.MonkeyPatch
) -> None:
    (worker_id,) = await projected.workers(1, CREATED, *tagged(LONG_TAGS))
    await projected.catch_up()
    monkeypatch.setattr(queries, "MAX_REPLY", 50_000)
    result = await projected.ask(GetCMLWorker(worker_id=worker_id))
    assert result.outcome == "rejected"
    assert result.problem
    assert result.problem.code == ProblemCode.REPLY_TOO_LARGE


def test_no_reply_is_larger_than_a_message_may_be() -> None:
    result = OperationResult(command_id="c", outcome="succeeded", data="x" * MAX_REPLY)
    sent = reply(result, ReplyAddress(reply_to="caller", correlation_id="c"))
    read = OperationResult.model_validate_json(sent.body)
    assert (read.outcome, read.data) == ("succeeded", None)
    assert read.problem
    assert read.problem.code == ProblemCode.REPLY_TOO_LARGE


BOUND: dict[str, Any] = {"user": "portal", "command_type": StartCMLWorker.TYPE, "body": b"{}"}
"""What a token is for beside its command id."""


@pytest.mark.parametrize("since", ["9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z"])
async def test_the_ends_of_time_are_answered(projected: Projected, since: str) -> None:
    await projected.workers(1, CREATED)
    await projected.catch_up()
    result = await projected.ask(ListCMLWorkers.model_validate_json(json.dumps({"terminated_since": since})))
    assert result.outcome == "succeeded"


@pytest.mark.parametrize("actor", ['"' + "x" * 900 + '"', r'"\ud800"', r'"a\u001b[2Jb"', r'"a\u202eb"', '""'])
def test_an_actor_is_a_short_text_that_can_be_shown(actor: str) -> None:
    for model, field in ((StartCMLWorker, "started_by"), (DiscardDeadLetter, "by")):
        other = (
            {"worker_id": str(uuid4())}
            if model is StartCMLWorker
            else {"dead_letter_id": str(uuid4()), "reason": "r"}
        )
        body = f'{json.dumps(other)[:-1]}, "{field}": {actor}}}'
        with pytest.raises(ValueError, match=field):
            model.model_validate_json(body)
    token = sign(KEY, actor=json.loads(actor), command_id="c", expires=NOW + timedelta(minutes=1), **BOUND)
    with pytest.raises(InvalidTokenError, match="actor"):
        verify(token, [KEY], command_id="c", now=NOW, **BOUND)


@pytest.mark.parametrize("content", [b"[" * 2500, b'{"actor": 1e999}', b'{"actor":' * 300, b"1" * 6000])
def test_a_token_that_nests_or_is_long_is_no_token(content: bytes) -> None:
    payload = "v2." + base64.urlsafe_b64encode(content).decode().rstrip("=")
    signature = base64.urlsafe_b64encode(hmac.new(KEY, payload.encode(), hashlib.sha256).digest())
    with pytest.raises(InvalidTokenError):
        verify(f"{payload}.{signature.decode()}", [KEY], command_id="c", now=NOW, **BOUND)
    assert (
        len(sign(KEY, actor="\N{GRINNING FACE}" * 128, command_id="c" * 200, expires=NOW, **BOUND))
        < MAX_TOKEN
    )


@pytest.fixture
def small_broker(tmp_path: Path) -> Iterator[str]:
    """A RabbitMQ that takes no message of more than 100 000 bytes."""
    script = installed()
    if script is None:
        pytest.skip("no RabbitMQ to configure")
    server = SpawnedRabbitMQ(script, tmp_path)
    server.configure("max_message_size = 100000")
    try:
        server.start()
        yield server.url
    finally:
        server.close()


async def test_a_reply_that_closes_its_channel_takes_none_of_the_systems_own_messages_with_it(
    small_broker: str,
) -> None:
    async with RabbitBus(small_broker, name="test") as bus:
        own = await (await bus._publisher._channel()).get_underlay_channel()
        await bus.publish(Outgoing(None, "nobody", b"", "t", "small", mandatory=False))
        with pytest.raises(BusUnavailableError):
            await bus.publish(Outgoing(None, "nobody", bytes(200_000), "t", "large", mandatory=False))
        assert await (await bus._publisher._channel()).get_underlay_channel() is own
        assert not own.is_closed
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(BusUnavailableError):
                    await bus.publish(Outgoing(None, "nobody", b"", "t", "after", mandatory=False))
                    break
                await asyncio.sleep(0.1)


@pytest.fixture(params=["sqlite", "server"])
async def archive(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Archive]:
    url = f"sqlite:///{tmp_path / 'archive.sqlite3'}"
    if request.param == "server":
        url = await emptied(request.getfixturevalue("postgresql_url"))
    engine = open_database(url, durable=True)
    await migrate(engine)
    yield Archive(engine)
    await engine.dispose()


def died(
    message_id: str, body: bytes = b"{", user: str | None = "ann", headers: Mapping[str, object] | None = None
) -> Message:
    """A command in the dead letters."""
    by_role = {
        QUEUE_HEADER: LIFECYCLE_COMMANDS.name,
        CAUSE_HEADER: "Refused",
        REASON_HEADER: "r" * 1000,
        DEATH_HEADER: str(uuid4()),
        **(headers or {}),
    }
    return Message(body=body, type="t", message_id=message_id, user_id=user, headers=by_role)


def dead_letters(archive: Archive, tmp_path: Path, outbox: Outbox) -> DeadLetters:
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    return DeadLetters(
        archive=archive,
        quarantined=Quarantined(archive, store, (), now=lambda: NOW),
        store=store,
        publish=outbox,
        own_user="cml-projector",
        access=Access(),
        now=lambda: NOW,
    )


async def test_of_an_oversized_message_the_first_64_kib_and_a_hash_are_kept(
    archive: Archive, tmp_path: Path
) -> None:
    outbox = Outbox()
    letters = dead_letters(archive, tmp_path, outbox)
    bodies = [bytes([65 + number]) * 4_000_000 for number in range(2)]
    for number, body in enumerate(bodies):
        await letters.collect(died(f"m-{number}", body))
    (_, first) = (await archive.page(ListDeadLetters())).dead_letters
    assert (first.size, first.is_cut) == (4_000_000, True)
    details = await archive.details(first.id)
    found = await archive.find(first.id)
    assert details
    assert found
    assert (len(details.body), len(found.letter.body)) == (MAX_BODY, MAX_BODY)
    assert details.sha256 == hashlib.sha256(bodies[0]).hexdigest()
    requests = (
        RedriveDeadLetter(dead_letter_id=first.id),
        EditDeadLetter(dead_letter_id=first.id, body="{}"),
        DiscardDeadLetter(dead_letter_id=first.id, reason="too large"),
    )
    for request in requests:
        body = request.model_dump_json(exclude_none=True).encode()
        message = Message(body=body, type=request.TYPE, message_id="r", reply_to=queue_of("caller"))
        assert await letters.on_request(message) == Ack()
    redrive, edit, discard = outbox.results()
    for refused in (redrive, edit):
        assert refused.problem
        assert "only the first 65536" in refused.problem.detail
    assert discard.outcome == "succeeded"
    assert all(each.routing_key == queue_of("caller") for each in outbox.sent)


async def test_what_roles_send_each_other_is_kept_whole(archive: Archive) -> None:
    report = died("m", b"x" * 500_000, headers={QUEUE_HEADER: "cml.lifecycle.reports"})
    assert await archive.keep(letter_of(report), NOW)
    (view,) = (await archive.page(ListDeadLetters())).dead_letters
    assert (view.size, view.is_cut) == (500_000, False)


async def test_dead_letters_come_in_pages_and_with_histories_that_a_message_can_hold(
    archive: Archive,
) -> None:
    long = {REASON_HEADER: '"' * 16_000}
    for number in range(60):
        await archive.keep(letter_of(died(f"m-{number}", headers=long)), NOW)
    for _ in range(130):
        await archive.keep(letter_of(died("again", headers=long)), NOW)
    listed, cursor, pages = set(), None, 0
    while cursor or not pages:
        page = await archive.page(ListDeadLetters(limit=500, cursor=cursor))
        assert len(page.model_dump_json()) < MAX_REPLY
        listed |= {each.id for each in page.dead_letters}
        cursor, pages = page.next_cursor, pages + 1
    assert len(listed) == 61
    assert pages > 1
    again = letter_of(died("again", headers=long))
    details = await archive.details(again.id)
    assert details
    assert details.deaths == 130
    assert len(details.model_dump_json()) < MAX_REPLY
    assert 0 < len(details.history) < DEATHS_KEPT
    async with transaction(archive._engine) as connection:
        kept = sa.select(sa.func.count()).where(OUTCOMES.c.dead_letter_id == again.id)
        assert await connection.scalar(kept) == DEATHS_KEPT


async def test_the_archive_keeps_to_its_limits_and_says_so(archive: Archive) -> None:
    limits = Limits(timedelta(days=90), dealt_with=5, waiting=10)
    for number in range(30):
        await archive.keep(
            letter_of(died(f"hostile-{number}", user="hostile")), NOW + timedelta(seconds=number)
        )
    for number in range(3):
        await archive.keep(letter_of(died(f"ann-{number}")), NOW)
        internal = died(f"report-{number}", user="hostile", headers={QUEUE_HEADER: "cml.lifecycle.reports"})
        await archive.keep(letter_of(internal), NOW)
    assert await archive.tidy(limits, NOW) == {"discarded": 20, "gone": 15}
    waiting = (await archive.page(ListDeadLetters(state=DeadLetterState.WAITING, limit=100))).dead_letters
    by_user = Counter((each.user, each.queue == LIFECYCLE_COMMANDS.name) for each in waiting)
    assert by_user == {("hostile", True): 10, ("ann", True): 3, ("hostile", False): 3}
    assert {each.message_id for each in waiting} >= {f"hostile-{number}" for number in range(20, 30)}
    discarded = (await archive.page(ListDeadLetters(state=DeadLetterState.DISCARDED))).dead_letters
    assert len(discarded) == 5
    details = await archive.details(discarded[0].id)
    assert details
    assert details.history[-1].reason == "more than 10 of its sender waited"
    assert await archive.tidy(limits, NOW + timedelta(days=89)) == {"discarded": 0, "gone": 0}
    assert await archive.tidy(limits, NOW + timedelta(days=91)) == {"discarded": 0, "gone": 5}
    assert await archive.waiting() == 16


@pytest.fixture(params=["sqlite", "kurrentdb-standin"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as resources:
        yield Place(request.param, tmp_path, resources, shared=False)


async def streams_of(store: EventStore) -> Counter[str]:
    """How many events each stream has."""
    found: Counter[str] = Counter()
    async with aclosing(store.follow(after=None)) as items:
        async for item in items:
            if isinstance(item, CaughtUp):
                return found
            if isinstance(item, StoredEvent):
                found[item.stream] += 1
    raise AssertionError


def denying(store: EventStore, outbox: Outbox) -> Lifecycle:
    """A process of lifecycle that lets nobody do anything."""
    access = Access(enforced=True)
    return Lifecycle(
        store=store, publish=outbox, policy=Policy(), access=access, now=lambda: NOW, new_id=uuid4
    )


async def test_denied_commands_are_all_counted_in_one_stream_that_does_not_grow_with_each(
    place: Place,
) -> None:
    store = await place.opened()
    processes = [denying(await place.opened(), Outbox()) for _ in range(2)]
    start = StartCMLWorker(worker_id=uuid4(), started_by="ceo")
    attempts = [
        processes[number % 2].on_command(command(start, f"c-{number}", user_id=f"user-{number % 3}"))
        for number in range(300)
    ]
    verdicts = await asyncio.gather(*attempts)
    assert {type(verdict) for verdict in verdicts} == {DeadLetter}
    streams = await streams_of(store)
    assert set(streams) == {DENIALS_STREAM}
    assert streams[DENIALS_STREAM] < 100
    last = json.loads((await store.last(DENIALS_STREAM)).data)
    assert (last["total"], last["days"]) == (300, {"2026-01-02": 300})
    assert last["users"] == {"user-0": 100, "user-1": 100, "user-2": 100}
    events = [json.loads(each.data) for each in await store.read(DENIALS_STREAM)]
    described = Counter(attempt["user"] for each in events for attempt in each["attempts"])
    assert all(DESCRIBED <= number <= 2 * DESCRIBED for number in described.values())
    assert sum(described.values()) + sum(each["not_described"] for each in events) == 300


async def test_denied_commands_are_counted_when_the_store_was_away(place: Place) -> None:
    store = await place.opened()
    lifecycle = denying(await place.opened(), Outbox())
    start = StartCMLWorker(worker_id=uuid4())
    await lifecycle.on_command(command(start, "c-0", user_id="user"))

    async def gone(*_: object, **__: object) -> int:
        raise StoreUnavailableError("planted")

    denials_store: Any = lifecycle._denials._store
    with pytest.MonkeyPatch.context() as planted:
        planted.setattr(denials_store, "append", gone)
        with pytest.raises(StoreUnavailableError):
            await lifecycle.on_command(command(start, "c-1", user_id="user"))
    await lifecycle.on_command(command(start, "c-1", user_id="user"))
    assert json.loads((await store.last(DENIALS_STREAM)).data)["total"] == 2


def test_the_counts_of_denied_commands_stay_small() -> None:
    counts = Counts()
    for number in range(1000):
        day = (NOW + timedelta(days=number // 2)).date().isoformat()
        counts = counts.more([{"user": f"user-{each}"} for each in range(number % 2 * 300)], day)
    assert (counts.total, len(counts.days), len(counts.users)) == (150_000, DAYS, USERS + 1)
    assert sum(counts.users.values()) == 300


@pytest.fixture
def shipped_broker(tmp_path: Path) -> Iterator[SpawnedRabbitMQ]:
    """A RabbitMQ with the shipped definitions."""
    script = installed()
    if script is None:
        pytest.skip("no RabbitMQ to configure")
    shipped = json.dumps(definitions({user: user for user in PERMISSIONS}))
    server = SpawnedRabbitMQ(script, tmp_path, shipped)
    try:
        server.start()
        yield server
    finally:
        server.close()


async def test_a_caller_who_reads_no_replies_and_opens_connections_meets_limits(
    shipped_broker: SpawnedRabbitMQ,
) -> None:
    said = shipped_broker.control("rabbitmqctl", "-q", "list_vhost_limits", "--formatter", "json")
    assert all(str(limit) in said for limit in VHOST_LIMITS.values())
    (user,) = (each for each in PERMISSIONS if each == "cml-client")
    url = f"amqp://{user}:{user}@127.0.0.1:{shipped_broker.port}/"
    open_ones: list[AbstractConnection] = []
    connections = USER_LIMITS["max-connections"]
    with contextlib.suppress(AMQPError):
        while len(open_ones) <= connections:
            open_ones.append(await aio_pika.connect(url))
    assert len(open_ones) == connections
    channel = await open_ones[0].channel()
    of_role = await aio_pika.connect(url.replace(user, "cml-lifecycle"))
    exchange = (await of_role.channel()).default_exchange
    queue = await channel.declare_queue("cml.replies.cml-client.x", exclusive=True)
    maximum = REPLIES_LIMITS["max-length"]
    assert isinstance(maximum, int)
    refused = 0
    for _ in range(maximum // 500 + 2):
        sent = [exchange.publish(aio_pika.Message(b""), queue.name) for _ in range(500)]
        results = await asyncio.gather(*sent, return_exceptions=True)
        refused += sum(isinstance(each, DeliveryError) for each in results)
    assert 0 < refused <= 1000
    for connection in (*open_ones, of_role):
        await connection.close()


async def test_whatever_senders_can_fill_has_a_limit(shipped_broker: SpawnedRabbitMQ) -> None:
    said = shipped_broker.control("rabbitmqctl", "-q", "list_queues", "name", "policy", "--formatter", "json")
    policies = {each["name"]: each["policy"] for each in json.loads(said)}
    from_outside = {COMMANDS_EXCHANGE, QUERIES_EXCHANGE, OPERATOR_EXCHANGE, DEAD_LETTER_EXCHANGE}
    fillable = {
        name
        for queue in QUEUES
        if from_outside & {binding.exchange for binding in queue.bindings}
        for name in (queue.name, *retry_queues(queue))
    }
    assert fillable >= PUBLIC
    fillable |= {queue.name for queue in queues_of(SHIPPED)}
    assert {name for name, policy in policies.items() if policy == FROM_OUTSIDE_POLICY} == fillable


async def test_a_full_queue_refuses_what_is_too_much_and_keeps_what_it_has(
    shipped_broker: SpawnedRabbitMQ,
) -> None:
    limits = {**FROM_OUTSIDE_LIMITS, "max-length": 50}
    shipped_broker.control(
        "rabbitmqctl",
        "set_policy",
        "--apply-to",
        "queues",
        "--priority",
        "1",
        "few",
        "^cml\\.",
        json.dumps(limits),
    )
    url = f"amqp://cml-client:cml-client@127.0.0.1:{shipped_broker.port}/"
    async with WorkerClient(url) as client:
        refused = 0
        for _ in range(200):
            try:
                await client.post(StartCMLWorker(worker_id=uuid4()))
            except NotSentError as error:
                assert "not accepted" in str(error)  # noqa: PT017 - most are taken
                refused += 1
    assert refused > 100
    async with await aio_pika.connect(url.replace("cml-client", "cml-lifecycle")) as connection:
        queue = await (await connection.channel()).declare_queue(LIFECYCLE_COMMANDS.name, passive=True)
    assert queue.declaration_result.message_count == 200 - refused


async def test_every_queue_that_another_service_can_declare_has_limits(
    shipped_broker: SpawnedRabbitMQ,
) -> None:
    """Which RabbitMQ itself says, as it would take hours to fill them all."""
    declared: dict[str, Mapping[str, str | int]] = {}
    async with AsyncExitStack() as connections:
        for user, name, limits in (
            ("cml-client", "cml.replies.cml-client.answers", REPLIES_LIMITS),
            ("cml-client", "", REPLIES_LIMITS),
            ("cml-client-events", "cml.subscribers.cml-client-events.kept", SUBSCRIBERS_LIMITS),
            ("cml-client-events", "", REPLIES_LIMITS),
        ):
            url = f"amqp://{user}:{user}@127.0.0.1:{shipped_broker.port}/"
            connection = await connections.enter_async_context(await aio_pika.connect(url))
            channel = await connection.channel()
            kinds: tuple[dict[str, Any], ...] = ({}, {"x-queue-type": "quorum"}) if name else ({},)
            for arguments in kinds:
                durable = bool(arguments)
                queue = await channel.declare_queue(
                    f"{name}.{durable}" if name else None,
                    durable=durable,
                    exclusive=not durable,
                    arguments=arguments,
                )
                declared[queue.name] = limits
        policies, queues = (
            json.loads(shipped_broker.control("rabbitmqctl", "-q", *command, "--formatter", "json"))
            for command in (("list_policies",), ("list_queues", "name", "policy"))
        )
    definitions_of = {each["name"]: json.loads(each["definition"]) for each in policies}
    policy_of = {each["name"]: each["policy"] for each in queues}
    assert {name: definitions_of.get(policy_of[name]) for name in declared} == declared


async def test_made_up_nodes_in_direct_reply_addresses_keep_few_replies_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def no_answer(self: DirectReplies, node: bytes, process: str) -> None:
        if node != b"rabbit@one":
            await asyncio.Event().wait()
        self._known.add(node)
        self._once_known.add(node)

    def address(node: bytes) -> str:
        process = base64.b64encode(b"\x83Xv" + len(node).to_bytes(2, "big") + node + bytes(12)).decode()
        return f"{PREFIX}{process}.key"

    monkeypatch.setattr(DirectReplies, "_ask", no_answer)
    replies = DirectReplies(Nodes("amqp://127.0.0.1:1/", "RABBITMQ_URL"))
    assert await replies.reach(address(b"rabbit@one"))
    waiting = [
        asyncio.create_task(replies.reach(address(b"made@up%d" % number))) for number in range(WAITING)
    ]
    await asyncio.sleep(0)
    for number in range(100):
        with pytest.raises(CallerRefusesError):
            await replies.reach(address(b"another@%d" % number))
    replies.forget()  # the connection was lost: of a node that was known it is asked at once
    assert await replies.reach(address(b"rabbit@one"))
    for task in (*waiting, *replies._probes.values()):
        await ended(task)
