"""A real KurrentDB for the tests: an address that was given, or a container."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.port import StoreUnavailableError
from support.rabbitmq import docker_answers

GIVEN = "KURRENTDB_URI"
IMAGE = os.environ.get("KURRENTDB_IMAGE", "kurrentplatform/kurrentdb:26.1.1")


READY = 60.0
"""Seconds a server may take to answer."""


class NoKurrentDBError(Exception):
    """None can be had; says why."""


def may_be_had() -> bool:
    """Whether it is worth trying."""
    return bool(os.environ.get(GIVEN)) or docker_answers()


@contextmanager
def any_kurrentdb() -> Iterator[tuple[str, str]]:
    """The connection string of a server, and how it was had. Raises NoKurrentDBError."""
    given = os.environ.get(GIVEN)
    if given:
        yield given, f"given by {GIVEN}"
        return
    from docker.errors import DockerException  # type: ignore[import-untyped]  # noqa: PLC0415 - slow to load
    from requests.exceptions import RequestException  # noqa: PLC0415 - likewise
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - likewise
    from testcontainers.core.wait_strategies import PortWaitStrategy  # noqa: PLC0415 - likewise

    container = DockerContainer(IMAGE).with_env("KURRENTDB_INSECURE", "true").with_exposed_ports(2113)
    container.waiting_for(PortWaitStrategy(2113))
    try:
        container.start()
    except (DockerException, RequestException, TimeoutError) as error:
        raise NoKurrentDBError(f"the container of {IMAGE} does not start: {error}") from error
    try:
        uri = f"esdb://{container.get_container_host_ip()}:{container.get_exposed_port(2113)}?tls=false"
        asyncio.run(_until_it_answers(uri))
        yield uri, f"in a container of {IMAGE}"
    finally:
        container.stop()


async def _until_it_answers(uri: str) -> None:
    store = KurrentDbEventStore(uri)
    async with asyncio.timeout(READY):
        while True:
            try:
                await store.ping()
            except StoreUnavailableError:
                await asyncio.sleep(0.2)
            else:
                return await store.close()
