"""Servers of a module's own, to stop and to freeze."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from support.missing import missing
from support.postgresql import NoPostgreSQLError, SpawnedPostgreSQL, private_postgresql

Spawn = Callable[..., SpawnedPostgreSQL]


@pytest.fixture(scope="module")
def spawn() -> Iterator[Spawn]:
    """Starts them; without PostgreSQL a failure in CI, else a skip."""
    with ExitStack() as stack:

        def spawn(password: str | None = None, tls: tuple[str, ...] | None = None) -> SpawnedPostgreSQL:
            try:
                return stack.enter_context(private_postgresql(password=password, tls=tls))
            except NoPostgreSQLError as error:
                missing(error)

        yield spawn


@pytest.fixture(scope="module")
def server(spawn: Spawn) -> SpawnedPostgreSQL:
    """One that lets everybody in."""
    return spawn()
