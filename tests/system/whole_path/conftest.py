"""One running system on each broker for the tests of a module, in which nothing has to be repaired."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.buses import emptied
from support.nets import warnings
from support.running import RunningSystem
from support.whole_path import System


@pytest.fixture(scope="module")
def system(amqp_broker: tuple[str, str | None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    kind, url = amqp_broker
    if url:
        asyncio.run(emptied(url))
    folder: Path = tmp_path_factory.mktemp(f"system-{kind}")
    running = RunningSystem(folder / "data", **({"RABBITMQ_URL": url} if url else {}))
    try:
        yield System(running)
    finally:
        running.kill()


@pytest.fixture(autouse=True)
def nothing_had_to_be_repaired(system: System) -> Iterator[None]:
    """Whatever a test saw come true came true without a retry, but for the faults that it planted and named."""
    said_before = len(system.running.log())
    system.expected = []
    yield
    system.admin.clear()
    # Dead letters are counted by the clients; that one was kept may be said when its test is over.
    expected = ("dead letter", "dead letter archived", *system.expected)
    assert warnings(system.running.log()[said_before:], *expected) == []
