"""The role is ready as long as both its followers are: the one that publishes all, and the one of the triggers that happen now."""

import asyncio
from pathlib import Path

import pytest

from cml_workers.eventstore.following import Following
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.foundation.outages import Dependency
from cml_workers.relay import main
from cml_workers.runtime.role import Infrastructure, Part
from cml_workers.runtime.settings import Settings


@pytest.mark.parametrize("stalled", [0, 1])
async def test_either_follower_that_is_stuck_makes_it_unready(
    tmp_path: Path, embedded_amqp_url: str, monkeypatch: pytest.MonkeyPatch, stalled: int
):
    judged: list[Following] = []

    def not_following(following: Following) -> str | None:
        if not any(each is following for each in judged):
            judged.append(following)
        return "stuck" if following.position == "stuck" else None

    monkeypatch.setattr(main, "not_following", not_following)
    store = SqliteEventStore(tmp_path / "events.sqlite3")
    settings = Settings.model_validate({"rabbitmq_url": embedded_amqp_url, "authorize": False})
    part = Dependency("event store", store.ping, (ConnectionError,))
    async with main.relay(
        Infrastructure(settings, embedded_amqp_url, store=store, dependencies={Part.STORE: part})
    ) as role:
        judge = role.checks[-2:]
        async with asyncio.timeout(30):
            while not (len(judged) == 2 and all(each.caught_up for each in judged)):
                await asyncio.sleep(0.01)
                assert [check() for check in judge] == [None, None]
        judged[stalled].position = "stuck"
        assert sorted(str(check()) for check in role.checks) == ["None"] * (len(role.checks) - 1) + ["stuck"]
    await part.close()
    await store.close()
