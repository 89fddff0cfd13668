"""Which store an address means."""

from pathlib import Path

import pytest

from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.opening import open_event_store
from cml_workers.eventstore.port import StoreConfigurationError
from cml_workers.eventstore.sqlite import SqliteEventStore


async def test_a_sqlite_address_names_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri, file in (("sqlite:///data/a.db", "data/a.db"), (f"sqlite:///{tmp_path}/b.db", "b.db")):
        store = open_event_store(uri)
        assert isinstance(store, SqliteEventStore)
        await store.ping()
        assert (tmp_path / file).is_file()
        await store.close()


@pytest.mark.parametrize("scheme", ["esdb", "esdb+discover", "kurrentdb", "kurrentdb+discover"])
async def test_a_kurrentdb_address_names_a_server(scheme):
    store = open_event_store(f"{scheme}://localhost:2113?tls=false")
    assert isinstance(store, KurrentDbEventStore)
    await store.close()


@pytest.mark.parametrize(
    "uri",
    ["", "events.db", "postgresql://host/db", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:x"],
)
def test_any_other_address_is_refused_with_what_is_accepted(uri):
    with pytest.raises(StoreConfigurationError, match=r"sqlite:///file.*kurrentdb\+discover"):
        open_event_store(uri)


def test_nothing_is_made_before_the_first_use(tmp_path: Path):
    open_event_store(f"sqlite:///{tmp_path}/a.db")
    assert list(tmp_path.iterdir()) == []
