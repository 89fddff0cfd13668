"""A process of the system: opens what the settings name or embeds it, and runs roles on it."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial

import structlog

from cml_contracts.broker import Nodes
from cml_workers.bus.port import BusUnavailableError
from cml_workers.bus.probes import probe_of
from cml_workers.bus.rabbit import reach
from cml_workers.bus.topology import PROBES
from cml_workers.eventstore.opening import open_event_store
from cml_workers.eventstore.port import StoreConfigurationError, StoreUnavailableError
from cml_workers.foundation.failures import RoleFailedError
from cml_workers.foundation.outages import Dependency
from cml_workers.foundation.secrets import redacted
from cml_workers.lifecycle.main import LIFECYCLE
from cml_workers.process.embedded import embed_broker, embed_ec2
from cml_workers.process.folder import make_folder, published, sole_owner
from cml_workers.process.registry import ROLES, trust
from cml_workers.process.starting import Starting, reached
from cml_workers.process.tracing import traced
from cml_workers.runtime.endpoints import (
    ENDPOINTS,
    amqp_url,
    database_options,
    database_url,
    ec2_endpoint,
    event_store_uri,
)
from cml_workers.runtime.health import probes
from cml_workers.runtime.replicas import replicas_watched
from cml_workers.runtime.role import Infrastructure, Part, Role, Running
from cml_workers.runtime.settings import Settings
from cml_workers.sql.database import dispose, open_database, ping, shown
from cml_workers.sql.errors import DatabaseConfigurationError, DatabaseUnavailableError

log = structlog.get_logger(__name__)


@asynccontextmanager
async def system(settings: Settings) -> AsyncIterator[tuple[dict[str, str], Sequence[Running]]]:
    """All roles in one process; what is not configured is embedded. Yields the endpoints and the roles.

    Raises:
        SettingsError, ProfilesError: before anything is opened.
    """
    settings.check_roles()
    settings.check_profiles()
    make_folder(settings.data_dir)
    with sole_owner(settings.data_dir):
        (settings.data_dir / ENDPOINTS).unlink(missing_ok=True)  # what a killed process left behind
        async with AsyncExitStack() as stack:
            endpoints: dict[str, str] = {}
            running: list[Running] = []
            parts: list[Dependency] = []
            port = await stack.enter_async_context(
                probes(settings.health_port, running, parts, settings.health_host)
            )
            if not settings.rabbitmq_url:
                endpoints["amqp"], broker = await embed_broker(settings, stack)
                running.append(broker)
            else:
                endpoints["amqp"] = settings.rabbitmq_url.get_secret_value()
            if settings.aws_endpoint_url:
                endpoints["ec2"] = str(settings.aws_endpoint_url)
            elif not settings.aws:
                settings, endpoints["ec2"] = await embed_ec2(settings, stack)
            endpoints["event_store"] = redacted(event_store_uri(settings))
            endpoints["read_model"] = shown(database_url(settings))
            roles = ROLES.values()
            await _start(roles, settings, endpoints["amqp"], endpoints.get("ec2"), stack, running, parts)
            if port is not None:
                endpoints["health"] = f"http://{settings.health_host}:{port}"
            stack.enter_context(published(settings.data_dir / ENDPOINTS, endpoints))
            yield endpoints, running


@asynccontextmanager
async def single_role(name: str, settings: Settings) -> AsyncIterator[Sequence[Running]]:
    """One role of a system whose parts run elsewhere. Raises SettingsError, ProfilesError."""
    role = ROLES[name]
    settings.check_roles()
    if role is LIFECYCLE:
        settings.check_profiles()
    make_folder(settings.data_dir)
    async with AsyncExitStack() as stack:
        endpoint = ec2_endpoint(settings) if Part.EC2 in role.needs else None
        running: list[Running] = []
        parts: list[Dependency] = []
        amqp = amqp_url(settings)
        await stack.enter_async_context(probes(settings.health_port, running, parts, settings.health_host))
        await _start([role], settings, amqp, endpoint, stack, running, parts)
        yield running


def queues_of(roles: Collection[Role], senders: Collection[str]) -> Sequence[str]:
    """All that they consume, the senders' own queues among it, and the one of their probes."""
    consumed = [queue for role in roles for queue in role.uses.with_own(senders).queues]
    return [*consumed, PROBES.name] if any(probe_of(role.uses) for role in roles) else consumed


async def until_one_fails(running: Sequence[Running]) -> None:
    """Watch the roles for as long as they run. Raises RoleFailedError when one ends by itself."""
    if (task := asyncio.current_task()) and task.cancelling():
        raise asyncio.CancelledError  # lost while the roles started: see ``tasks.ended``
    tasks = [task for role in running for task in role.tasks]
    if not tasks:
        await asyncio.Event().wait()  # nothing of theirs can end without the process
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    failed = done.pop()
    cause = None if failed.cancelled() else failed.exception()
    raise RoleFailedError(f"{failed.get_name()} ended: {cause!r}") from cause


async def _start(
    roles: Collection[Role],
    settings: Settings,
    amqp: str,
    ec2: str | None,
    stack: AsyncExitStack,
    running: list[Running],
    parts: list[Dependency],
) -> None:
    """Open what the roles need, wait for it, and start them: ``running`` and ``parts`` are what the probes show meanwhile and then.

    Raises ConfigurationError: waiting is of no use.
    """
    starting = [Starting(role) for role in roles]
    running += [each.running for each in starting]
    traces = await stack.enter_async_context(traced(settings, roles))
    given = traces(_opened(roles, settings, amqp, ec2, stack))
    parts += [given.dependencies[part] for part in (Part.STORE, Part.DATABASE) if part in given.dependencies]
    bus = given.dependencies[Part.BUS]
    rabbitmq = Running("rabbitmq", checks=(bus.problem,))
    running.append(rabbitmq)
    await reached(given.dependencies.values())
    for each in starting:
        running[running.index(each.running)] = await each.started(given, stack)
    running.remove(rabbitmq)  # from here on each role sees for itself
    running += await stack.enter_async_context(replicas_watched(settings, queues_of(roles, settings.senders)))


def _opened(
    roles: Collection[Role], settings: Settings, amqp: str, ec2: str | None, stack: AsyncExitStack
) -> Infrastructure:
    """What the roles say that they need, and no more. Raises SettingsError."""
    if settings.rabbitmq_url and not settings.access.enforced:
        log.warning("CML_AUTHORIZE=false: EVERYBODY who reaches RabbitMQ may send every command in any name")
    needed = {part for role in roles for part in role.needs}
    dependencies = {
        Part.BUS: Dependency("RabbitMQ", partial(reach, amqp), (BusUnavailableError,)),
    }
    given = Infrastructure(
        settings,
        amqp,
        ec2_endpoint=ec2,
        trust=trust(settings, roles, Nodes(amqp, "RABBITMQ_URL").user),
        dependencies=dependencies,
    )
    if Part.STORE in needed:
        store = open_event_store(event_store_uri(settings))
        stack.push_async_callback(store.close)
        dependencies[Part.STORE] = Dependency(
            "event store", store.ping, (StoreUnavailableError, StoreConfigurationError)
        )
        given = replace(given, store=store)
    if Part.DATABASE in needed:
        options = database_options(settings)
        database, archive = open_database(options), open_database(options, durable=True)
        for engine in (database, archive):
            stack.push_async_callback(dispose, engine)
        dependencies[Part.DATABASE] = Dependency(
            "database", partial(ping, database), (DatabaseUnavailableError, DatabaseConfigurationError)
        )
        given = replace(given, database=database, archive=archive)
    for each in dependencies.values():
        stack.push_async_callback(each.close)
    return given
