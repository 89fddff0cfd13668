"""What a bundle is made of: each part is had by itself, or it is said why not."""

import asyncio
import io
import os
import platform
import re
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from pydantic import SecretStr
from pydantic_core import to_jsonable_python

from cml_contracts.deadletters import DeadLetterState, ListDeadLetters
from cml_workers.bus.rabbit.depths import depths
from cml_workers.bus.usage import EVERYTHING
from cml_workers.deadletters.archive import Archive
from cml_workers.eventstore.opening import open_event_store
from cml_workers.eventstore.relay_stream import load_saved
from cml_workers.foundation.failures import ConfigurationError
from cml_workers.foundation.secrets import HIDDEN, redacted
from cml_workers.readmodels.generations import Generations
from cml_workers.readmodels.registry import READ_MODELS
from cml_workers.readmodels.workers.queries import pending
from cml_workers.runtime.endpoints import (
    amqp_url,
    existing_database_options,
    existing_event_store_uri,
    known_endpoints,
)
from cml_workers.runtime.settings import Settings, is_url, variable
from cml_workers.sql.adapters import connect
from cml_workers.sql.database import dispose, open_database

SECONDS = 60.0
"""For each part; the parts are had side by side."""
PROBE_SECONDS = 10.0
MOST_BYTES = 8 * 2**20
"""Of one answer of a probe."""
OF_THE_ENVIRONMENT = ("AWS_", "CML_", "DATABASE_", "GRPC_", "KURRENTDB_", "OTEL_", "PYTHON", "RABBITMQ_")
"""How the names of variables begin that are listed, without their values."""
MOST = 1_000
"""Pending operations and dead letters, the oldest and the newest."""
LONGEST_LINE = 20_000
"""Characters of a line of a log."""

Part = Callable[[], Awaitable[Any]]


async def had(part: Part) -> tuple[Any, str | None]:
    """The part; or why it could not be had."""
    try:
        async with asyncio.timeout(SECONDS):
            return await part(), None
    except TimeoutError:
        return None, f"no answer within {SECONDS:g} s"
    except (ConfigurationError, ConnectionError, OSError) as error:
        return None, redacted((str(error) or type(error).__name__).splitlines()[0])
    except Exception as error:  # noqa: BLE001 - whatever it is, the rest is worth having
        return None, redacted(f"{type(error).__name__}: {error}".splitlines()[0])


def parts(settings: Settings, probes: Iterable[str]) -> Mapping[str, Part]:
    """All but the logs and what the doctor says, by their names."""
    found: dict[str, Part] = {
        "versions": versions,
        "settings": partial(_settings, settings),
        "queues": partial(_queues, settings),
        "followers": partial(_followers, settings),
        "pending-operations": partial(_operations, settings),
        "dead-letters": partial(_dead_letters, settings),
    }
    for url in _probed(settings, probes):
        name = re.sub(r"[^\w.-]+", "_", url.partition("://")[2])
        found[f"health/{name}"] = partial(_health, url)
    return found


async def versions() -> Mapping[str, Any]:
    """Of the program, of what it runs on, and of its libraries."""
    return {
        "python": sys.version,
        "platform": platform.platform(),
        "libraries": dict(sorted((each.name, each.version) for each in distributions())),
    }


async def _settings(settings: Settings) -> Mapping[str, Any]:
    fields = type(settings).model_fields
    values = {variable(name): _shown(getattr(settings, name), url=is_url(name)) for name in fields}
    names = sorted(name for name in os.environ if name.startswith(OF_THE_ENVIRONMENT))
    return {"settings": values, "variables that are set": names}


def _shown(value: Any, *, url: bool = False) -> Any:
    match value:
        case SecretStr():
            return redacted(value.get_secret_value()) if url else HIDDEN
        case dict():
            return {str(name): _shown(inner) for name, inner in value.items()}
        case tuple() | frozenset():
            return [_shown(each) for each in (sorted(value) if isinstance(value, frozenset) else value)]
        case _:
            return to_jsonable_python(value, fallback=str)


def _probed(settings: Settings, probes: Iterable[str]) -> list[str]:
    """Those that were named, and those of a process on this machine."""
    urls = [*probes]
    if settings.health_port:
        urls.append(f"http://127.0.0.1:{settings.health_port}")
    with suppress(ConfigurationError):  # said where the queues are asked for
        urls += [url for part, url in known_endpoints(settings).items() if part == "health"]
    return list(dict.fromkeys(url.rstrip("/") for url in urls))


async def _health(url: str) -> Mapping[str, Any]:
    return {path: await asyncio.to_thread(_asked, f"{url}/{path}") for path in ("livez", "readyz", "metrics")}


def _asked(url: str) -> str:
    try:
        with urlopen(url, timeout=PROBE_SECONDS) as answer:  # noqa: S310 - the command line has looked at its form
            return str(answer.read(MOST_BYTES).decode(errors="replace"))
    except HTTPError as error:  # not ready
        with error:
            return error.read(MOST_BYTES).decode(errors="replace")


async def _queues(settings: Settings) -> Any:
    return await depths(amqp_url(settings), EVERYTHING.with_own(settings.senders).queues)


async def _followers(settings: Settings) -> Mapping[str, Any]:
    """How far each has come, and where the event store ends."""
    store = open_event_store(existing_event_store_uri(settings))
    database = connect(existing_database_options(settings))
    try:
        saved = await load_saved(store)
        found: dict[str, Any] = {
            "end of the event store": await store.end(),
            "relay": saved and {"position": saved.position, "workers held": sorted(saved.waiting)},
        }
        for model in READ_MODELS:
            active = await Generations(model, database).active()
            found[f"read model {model.name}"] = active and {
                "position": active.position,
                "events": active.events,
                "version": active.version,
            }
        return found
    finally:
        await store.close()
        await database.close()


async def _operations(settings: Settings) -> Any:
    """The oldest first; ``waits_for`` says why EC2 has not carried one out."""
    database = connect(existing_database_options(settings))
    try:
        found = await pending(database, datetime.now(UTC))
    finally:
        await database.close()
    return {"pending": len(found), "oldest": [each.view.model_dump(mode="json") for each in found[:MOST]]}


async def _dead_letters(settings: Settings) -> Any:
    """Those that wait, without bodies and headers, and how many of each cause."""
    engine = open_database(existing_database_options(settings))
    try:
        page = await Archive(engine).page(ListDeadLetters(state=DeadLetterState.WAITING, limit=200))
    finally:
        await dispose(engine)
    return page.model_dump(mode="json")


def logs(places: Iterable[str], most: int) -> Iterator[tuple[str, list[str]]]:
    """The name of each log and its last lines, redacted. Raises OSError.

    ``places``: files; folders, whose files ending in .log are taken; - is the standard input.
    """
    for place in places:
        if place == "-":
            yield "stdin.log", _last(io.TextIOWrapper(sys.stdin.buffer, errors="replace"), most)
            continue
        path = Path(place)
        for file in sorted(path.glob("*.log")) if path.is_dir() else [path]:
            with file.open(errors="replace") as opened:
                yield file.name, _last(opened, most)


def _last(lines: Iterable[str], most: int) -> list[str]:
    return [redacted(line.rstrip("\n"))[:LONGEST_LINE] for line in deque(lines, most)]
