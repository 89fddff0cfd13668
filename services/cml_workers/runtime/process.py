"""A process of the system: opens what the settings name or embeds it, runs roles, ends cleanly."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import CoroutineType
from typing import Any

import structlog

from cml_workers.ec2_adapter.main import ec2_adapter
from cml_workers.eventstore.opening import open_event_store
from cml_workers.foundation.failures import AlreadyRunningError, RoleFailedError
from cml_workers.lifecycle.main import lifecycle
from cml_workers.projector.main import projector
from cml_workers.relay.main import relay
from cml_workers.runtime.endpoints import (
    ENDPOINTS,
    amqp_url,
    database_url,
    ec2_endpoint,
    event_store_uri,
    redacted,
)
from cml_workers.runtime.health import probes
from cml_workers.runtime.roles import Infrastructure, Running
from cml_workers.runtime.settings import Settings, SettingsError
from cml_workers.sql.database import open_database

log = structlog.get_logger(__name__)

ENDING = 20.0
"""Seconds in which a process ends in good order. Then it ends as it stands: the next one goes on as after any crash."""

Role = Callable[[Infrastructure], AbstractAsyncContextManager[Running]]

ROLES: Mapping[str, Role] = {
    "lifecycle": lifecycle,
    "relay": relay,
    "ec2-adapter": ec2_adapter,
    "projector": projector,
}


@asynccontextmanager
async def system(settings: Settings) -> AsyncIterator[tuple[dict[str, str], Sequence[Running]]]:
    """All roles in one process; what is not configured is embedded. Yields the endpoints and the roles.

    Raises:
        SettingsError: before anything is opened.
    """
    settings.check_roles()
    _make_folder(settings.data_dir)
    with _sole_owner(settings.data_dir):
        (settings.data_dir / ENDPOINTS).unlink(missing_ok=True)  # what a killed process left behind
        async with AsyncExitStack() as stack:
            endpoints: dict[str, str] = {}
            if not settings.rabbitmq_url:
                endpoints["amqp"] = await _embed_broker(settings, stack)
            else:
                endpoints["amqp"] = settings.rabbitmq_url.get_secret_value()
            if settings.aws_endpoint_url:
                endpoints["ec2"] = str(settings.aws_endpoint_url)
            elif not settings.aws:
                settings, endpoints["ec2"] = await _embed_ec2(settings, stack)
            endpoints["event_store"] = redacted(event_store_uri(settings))
            endpoints["read_model"] = redacted(database_url(settings))
            given = await _open(settings, endpoints["amqp"], endpoints.get("ec2"), stack)
            running = [await stack.enter_async_context(role(given)) for role in ROLES.values()]
            port = await stack.enter_async_context(_probes(settings, running, given))
            if port is not None:
                endpoints["health"] = f"http://{settings.health_host}:{port}"
            stack.enter_context(_published(settings.data_dir / ENDPOINTS, endpoints))
            yield endpoints, running


@asynccontextmanager
async def single_role(name: str, settings: Settings) -> AsyncIterator[Sequence[Running]]:
    """One role of a system whose parts run elsewhere. Raises SettingsError."""
    settings.check_roles()
    _make_folder(settings.data_dir)
    async with AsyncExitStack() as stack:
        endpoint = ec2_endpoint(settings) if name == "ec2-adapter" else None
        given = await _open(settings, amqp_url(settings), endpoint, stack)
        running = [await stack.enter_async_context(ROLES[name](given))]
        await stack.enter_async_context(_probes(settings, running, given))
        yield running


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGINT or SIGTERM ends what runs within, also while it still starts; a second one adds nothing.

    In good order if it can be done within ``ENDING`` seconds.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - we are in a coroutine
    loop = asyncio.get_running_loop()
    received = False

    def end() -> None:
        nonlocal received
        if not received:
            received = True
            task.cancel()
            loop.call_later(ENDING, _end_as_it_stands)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    try:
        yield
    except asyncio.CancelledError:
        if not received:
            raise
        task.uncancel()


def _end_as_it_stands() -> None:
    log.error(
        "did not end in good order", seconds=ENDING, stuck=[_place(task) for task in asyncio.all_tasks()]
    )
    os._exit(1)


def _place(task: asyncio.Task[Any]) -> str:
    """Where in its innermost coroutine the task waits."""
    waiting: Any = task.get_coro()
    while isinstance(inner := getattr(waiting, "cr_await", None), CoroutineType):
        waiting = inner
    frame = getattr(waiting, "cr_frame", None)
    return f"{task.get_name()} at {frame.f_code.co_filename}:{frame.f_lineno}" if frame else task.get_name()


async def until_one_fails(running: Sequence[Running]) -> None:
    """Watch the roles for as long as they run. Raises RoleFailedError when one ends by itself."""
    if (task := asyncio.current_task()) and task.cancelling():
        raise asyncio.CancelledError  # lost while the roles started: see ``roles.ended``
    tasks = [task for role in running for task in role.tasks]
    if not tasks:
        await asyncio.Event().wait()  # nothing of theirs can end without the process
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    failed = done.pop()
    cause = None if failed.cancelled() else failed.exception()
    raise RoleFailedError(f"{failed.get_name()} ended: {cause!r}") from cause


async def _open(settings: Settings, amqp: str, ec2: str | None, stack: AsyncExitStack) -> Infrastructure:
    if settings.rabbitmq_url and not settings.access.enforced:
        log.warning("CML_AUTHORIZE=false: EVERYBODY who reaches RabbitMQ may send every command in any name")
    store = open_event_store(event_store_uri(settings))
    stack.push_async_callback(store.close)
    await store.ping()
    url = database_url(settings)
    database, archive = open_database(url), open_database(url, durable=True)
    for engine in (database, archive):
        stack.push_async_callback(engine.dispose)
    return Infrastructure(settings, amqp, store, database, archive, ec2)


def _probes(
    settings: Settings, running: Sequence[Running], given: Infrastructure
) -> AbstractAsyncContextManager[int | None]:
    return probes(settings.health_port, running, given.store, settings.health_host)


async def _embed_broker(settings: Settings, stack: AsyncExitStack) -> str:
    from cml_embedded.amqp_broker import AmqpBroker  # noqa: PLC0415 - an optional extra

    broker = AmqpBroker(port=settings.amqp_port, data_dir=settings.data_dir / "amqp")
    await stack.enter_async_context(broker)
    return broker.url


async def _embed_ec2(settings: Settings, stack: AsyncExitStack) -> tuple[Settings, str]:
    """The simulator, its well-known images as defaults, and credentials that open nothing else."""
    from cml_embedded.ec2_simulator import (  # noqa: PLC0415 - an optional extra
        DEMO_IMAGE_NAME,
        Ec2Simulator,
    )

    simulator = Ec2Simulator(
        port=settings.ec2_port,
        data_dir=settings.data_dir / "ec2",
        transition_seconds=settings.ec2_transition_seconds,
    )
    await asyncio.to_thread(simulator.start)
    stack.push_async_callback(asyncio.to_thread, simulator.stop)
    os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "simulator"  # noqa: S105
    regions = ("us-east-1", "us-west-2", "eu-west-1")
    names = {**dict.fromkeys(regions, DEMO_IMAGE_NAME), **settings.worker_ami_names}
    return settings.model_copy(update={"worker_ami_names": names}), simulator.url


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"CML_DATA_DIR: {folder.absolute()} cannot be a folder: {error.strerror}"
        ) from error


@contextmanager
def _sole_owner(folder: Path) -> Iterator[None]:
    """Two systems on one folder would share nothing but their files."""
    try:
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise SettingsError(f"CML_DATA_DIR: cannot write to {folder.absolute()}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AlreadyRunningError(
                f"another `cml-workers run` uses {folder.absolute()}; stop it, or set CML_DATA_DIR"
            ) from None
        yield


@contextmanager
def _published(path: Path, endpoints: Mapping[str, str]) -> Iterator[None]:
    """The endpoints, readable by the owner alone, for as long as they are open."""
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps(endpoints, indent=2) + "\n")
    fresh.replace(path)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
