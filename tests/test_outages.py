"""When an outage begins and ends, and what that means for those who need the part."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from cml_workers.foundation.outages import NO_OUTAGES, Outages
from support.unreliable import GoneError, Unreliable, WrongError

LOST = GoneError("lost")


@pytest.fixture
async def part() -> AsyncIterator[Unreliable]:
    part = Unreliable()
    yield part
    await part.dependency.close()


def said(logs: list[Any]) -> list[str]:
    return [each["event"].partition(":")[0] for each in logs]


async def test_an_error_is_no_outage_where_the_part_answers(part: Unreliable) -> None:
    with capture_logs() as logs:
        assert not await part.outages.waited_out(LOST)
    assert part.dependency.problem() is None
    assert logs == []


async def test_all_who_wait_go_on_when_it_answers_and_two_lines_say_so(part: Unreliable) -> None:
    part.works = False
    with capture_logs() as logs:
        waiting = [asyncio.create_task(part.outages.waited_out(LOST)) for _ in range(500)]
        await part.pinged()
        assert not any(each.done() for each in waiting)
        problem = part.dependency.problem()
        assert problem is not None
        assert "no answer" in problem
        assert part.pings < 50
        part.works = True
        async with asyncio.timeout(10):
            assert all(await asyncio.gather(*waiting))
    assert part.dependency.problem() is None
    assert said(logs) == ["outage begins", "outage ends"]
    assert {each["part"] for each in logs} == {"event store"}


async def test_each_outage_has_its_two_lines(part: Unreliable) -> None:
    with capture_logs() as logs:
        for _ in range(3):
            part.works = False
            waiting = asyncio.create_task(part.outages.waited_out(LOST))
            await part.pinged()
            part.works = True
            assert await waiting
    assert said(logs) == ["outage begins", "outage ends"] * 3


async def test_an_error_of_something_else_is_no_outage_of_the_part(part: Unreliable) -> None:
    part.works = False
    assert not await part.outages.waited_out(ConnectionError("of the bus"))
    assert not await NO_OUTAGES.waited_out(LOST)
    assert part.pings == 0


async def test_whoever_needs_two_parts_waits_for_both(part: Unreliable) -> None:
    other = Unreliable("database")
    both = Outages(part.dependency, other.dependency)
    part.works = other.works = False
    part.outages.suspect(LOST)
    other.outages.suspect(LOST)
    async with asyncio.timeout(10):
        while not (part.dependency.problem() and other.dependency.problem()):
            await asyncio.sleep(0)
    waiting = asyncio.create_task(both.over())
    part.works = True
    async with asyncio.timeout(10):
        await part.outages.over()
    await asyncio.sleep(0)
    assert not waiting.done()
    other.works = True
    async with asyncio.timeout(10):
        await waiting
    await other.dependency.close()


async def test_a_password_that_was_changed_meanwhile_is_an_outage_and_said_once(part: Unreliable) -> None:
    part.works = False
    with capture_logs() as logs:
        waiting = asyncio.create_task(part.outages.waited_out(LOST))
        await part.pinged()
        part.refuses = True
        await part.pinged()
        part.refuses, part.works = False, True
        assert await waiting
    assert said(logs) == ["outage begins", "outage goes on", "outage ends"]
    assert "wrong password" in logs[1]["cause"]


async def test_a_process_that_starts_waits_and_ends_where_waiting_is_of_no_use(part: Unreliable) -> None:
    part.works = False
    with capture_logs() as logs:
        starting = asyncio.create_task(part.dependency.reached())
        await part.pinged()
        assert not starting.done()
        assert part.dependency.problem() is not None
        part.works = True
        async with asyncio.timeout(10):
            await starting
    assert said(logs) == ["outage begins", "outage ends"]
    assert part.dependency.problem() is None
    part.refuses = True
    with pytest.raises(WrongError):
        await part.dependency.reached()


async def test_a_ping_that_does_not_end_counts_as_failed(
    part: Unreliable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cml_workers.foundation.outages.LONGEST_PING", 0.01)

    async def never() -> None:
        await asyncio.Event().wait()

    part.dependency.ping = never
    assert await part.outages.caused(LOST)
    assert "TimeoutError" in (part.dependency.problem() or "")


async def test_nobody_asks_any_more_when_it_is_closed(part: Unreliable) -> None:
    part.works = False
    waiting = asyncio.create_task(part.outages.waited_out(LOST))
    await part.pinged()
    await part.dependency.close()
    asked = part.pings
    await asyncio.sleep(0.1)
    assert part.pings == asked
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
