"""Dead letters are collected: nothing is lost, and nothing is counted twice."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from cml_contracts.envelope import MAX_BODY
from cml_contracts.tokens import TOKEN_HEADER
from cml_workers.bus.port import Message
from cml_workers.bus.topology import LIFECYCLE_COMMANDS
from cml_workers.deadletters.archive import DEAD_LETTERS, OUTCOMES
from cml_workers.sql.database import open_database, transaction
from cml_workers.sql.errors import DatabaseUnavailableError
from support.dead_letter_service import START, Service


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


async def test_an_invalid_message_is_archived_with_all_that_came_with_it_but_the_secret(service: Service):
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
async def test_a_dead_letter_is_archived_whatever_is_in_it(
    service: Service, body: bytes, properties: dict[str, Any], encoding: str
):
    await service.consume()
    await service.send(body, **properties)
    letter = await service.the_letter()
    assert (letter.size, letter.encoding) == (len(body), encoding)
    kept = await service.archive.find(letter.id)
    assert kept is not None
    assert kept.letter.body == body[:MAX_BODY]
    assert letter.is_cut is (len(body) > MAX_BODY)


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
