"""What one sender can make of the others' replies, memory and disk: attacks that once worked."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cml_contracts.commands import StartCMLWorker
from cml_contracts.deadletters import DiscardDeadLetter
from cml_contracts.envelope import MAX_REPLY
from cml_contracts.events import TagsUpdated, TagsUpdateRequested
from cml_contracts.queries import GetCMLWorker, ListCMLWorkers, WorkerPage
from cml_contracts.results import OperationResult, ProblemCode
from cml_contracts.tokens import MAX_TOKEN, InvalidTokenError, sign, verify
from cml_workers.bus.codec import reply
from cml_workers.bus.port import BusUnavailableError, DeadLetter, Outgoing
from cml_workers.bus.rabbit import RabbitBus
from cml_workers.domain.history import ReplyAddress
from cml_workers.domain.policy import Access, Policy
from cml_workers.eventstore.port import CaughtUp, EventStore, StoredEvent, StoreUnavailableError
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.lifecycle.denials import DAYS, DENIALS_STREAM, DESCRIBED, USERS, Counts
from cml_workers.lifecycle.handler import Lifecycle
from cml_workers.projector import queries
from support.buses import Outbox, command
from support.event_stores import Place
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
    token = sign(KEY, actor=json.loads(actor), command_id="c", expires=NOW + timedelta(minutes=1))
    with pytest.raises(InvalidTokenError, match="actor"):
        verify(token, [KEY], command_id="c", now=NOW)


@pytest.mark.parametrize("content", [b"[" * 2500, b'{"actor": 1e999}', b'{"actor":' * 300, b"1" * 6000])
def test_a_token_that_nests_or_is_long_is_no_token(content: bytes) -> None:
    payload = base64.urlsafe_b64encode(content).decode().rstrip("=")
    signature = base64.urlsafe_b64encode(hmac.new(KEY, payload.encode(), hashlib.sha256).digest())
    with pytest.raises(InvalidTokenError):
        verify(f"{payload}.{signature.decode()}", [KEY], command_id="c", now=NOW)
    assert len(sign(KEY, actor="\N{GRINNING FACE}" * 128, command_id="c" * 200, expires=NOW)) < MAX_TOKEN


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
        own = await (await bus._publisher._robust_channel()).get_underlay_channel()
        await bus.publish(Outgoing(None, "nobody", b"", "t", "small", mandatory=False))
        with pytest.raises(BusUnavailableError):
            await bus.publish(Outgoing(None, "nobody", bytes(200_000), "t", "large", mandatory=False))
        assert await (await bus._publisher._robust_channel()).get_underlay_channel() is own
        assert not own.is_closed
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(BusUnavailableError):
                    await bus.publish(Outgoing(None, "nobody", b"", "t", "after", mandatory=False))
                    break
                await asyncio.sleep(0.1)


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
