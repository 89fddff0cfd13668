"""What ``/readyz`` says when the parts that it asks do not answer as they should."""

from pathlib import Path

import pytest

from cml_workers.eventstore.port import StoreConfigurationError, StoreUnavailableError
from cml_workers.eventstore.sqlite import SqliteEventStore
from cml_workers.foundation.failures import ConfigurationError
from cml_workers.runtime.health import report
from cml_workers.runtime.role import Running


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoreConfigurationError("wrong password; fix KURRENTDB_URI"), "wrong password; fix KURRENTDB_URI"),
        (StoreUnavailableError("gone"), "gone"),
        (TimeoutError(), "no answer"),
    ],
)
async def test_it_answers_whatever_the_store_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    store = SqliteEventStore(tmp_path / "events.sqlite3")

    async def refused() -> None:
        raise error

    monkeypatch.setattr(store, "ping", refused)
    ready, content = await report([], store)
    assert (ready, content["problems"]) == (False, {"event-store": [said]})
    await store.close()


async def test_it_answers_when_the_database_lets_nobody_in(tmp_path: Path) -> None:
    async def refused() -> int:
        raise ConfigurationError("password authentication failed")

    store = SqliteEventStore(tmp_path / "events.sqlite3")
    ready, content = await report([Running("projector", (), dead_letters=refused)], store)
    assert ready
    assert "dead_letters_waiting" not in content
    await store.close()
