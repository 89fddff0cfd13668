"""How a process does, over HTTP: ``/livez`` (it runs), ``/readyz`` (every part of it works) and ``/metrics`` (what it counts).

For the probes of an orchestrator and for Prometheus, and nothing else: GET only, one small answer, then the connection closes.
"""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from cml_workers.foundation.metrics import REGISTRY, Figures
from cml_workers.foundation.outages import Dependency
from cml_workers.runtime.role import Running, ago, lag, slowest
from cml_workers.runtime.settings import SettingsError

PORT = 8080
"""Where a container serves the probes."""
PATHS = ["/livez", "/readyz", "/metrics"]
PING_TIMEOUT = 5.0
"""Seconds that event store and database have to answer."""


async def report(running: Sequence[Running], parts: Sequence[Dependency]) -> tuple[bool, dict[str, Any]]:
    """Whether all is well, and what is not; how far the slowest follower of each role has come; what the roles have counted.

    Dead letters, warnings and followers that lag are work for somebody, not a reason to be unready.
    """
    found = await asyncio.gather(*map(_problem, parts))
    problems = {part.name.replace(" ", "-"): [said] for part, said in zip(parts, found, strict=True) if said}
    warnings = {}
    followers = {}
    figures: Counter[str] = Counter()
    for role in running:
        if wrong := _said(role.checks):
            problems[role.name] = wrong
        if said := _said(role.warnings):
            warnings[role.name] = said
        if (following := slowest(role.followings)) is not None:
            last, moved = following.last_event_at, following.moved_at
            followers[role.name] = {
                "position": following.position,
                "caught_up": following.caught_up,
                "last_event_at": last and last.isoformat(),
                "last_progress_at": None if moved is None else ago(moved).isoformat(),
                "lag_seconds": round(lag(following), 1),
                "failures_in_a_row": following.attempts,
            }
        figures.update({**role.counts(), **(await _waiting(role))})
    states = {"problems": problems, "warnings": warnings, "followers": followers}
    return not problems, {"ready": not problems, **states, **figures}


def _said(looks: Sequence[Callable[[], str | None]]) -> list[str]:
    return [said for look in looks if (said := look()) is not None]


async def _waiting(role: Running) -> Mapping[str, int]:
    """How many dead letters wait, from the role that knows, if it knows now."""
    if role.dead_letters is not None:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(PING_TIMEOUT):
                return {"dead_letters_waiting": await role.dead_letters()}
    return {}


async def _problem(part: Dependency) -> str | None:
    """What is wrong with it: work waits for it, or it does not answer now."""
    if (known := part.problem()) is not None:
        return known
    try:
        async with asyncio.timeout(PING_TIMEOUT):
            await part.ping()
    except Exception as error:  # noqa: BLE001 - a password that was changed, for one; whoever asks gets an answer
        return str(error) or "no answer"
    return None


@asynccontextmanager
async def probes(
    port: int | None, running: Sequence[Running], parts: Sequence[Dependency], host: str = ""
) -> AsyncIterator[int | None]:
    """Serve probes and metrics while the context lasts; yields the port. None: none. Raises SettingsError.

    ``running`` and ``parts`` may change meanwhile.
    """
    if port is None:
        yield None
        return

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
            async with asyncio.timeout(2 * PING_TIMEOUT):
                request = (await reader.readuntil(b"\r\n")).split(b" ")
                path = request[1] if len(request) > 1 else b""
                status, kind, body = await _answer(path, running, parts)
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_server(answer, host or None, port, limit=8192)
    except OSError as error:
        raise SettingsError(
            f"CML_HEALTH_PORT: cannot listen on {host or '*'}:{port}: {error.strerror}"
        ) from error
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _answer(
    path: bytes, running: Sequence[Running], parts: Sequence[Dependency]
) -> tuple[str, str, bytes]:
    """Status, content type and body."""
    content: Mapping[str, Any]
    match path:
        case b"/metrics":
            return "200 OK", CONTENT_TYPE_LATEST, exposition(running, parts)
        case b"/livez":
            status, content = "200 OK", {"alive": True}
        case b"/readyz":
            well, content = await report(running, parts)
            status = "200 OK" if well else "503 Service Unavailable"
        case _:
            status, content = "404 Not Found", {"paths": PATHS}
    return status, "application/json", json.dumps(content).encode()


def exposition(running: Sequence[Running], parts: Sequence[Dependency] = ()) -> bytes:
    """What Prometheus reads: what the process counted, and how each of its roles does now. Nobody is asked for it."""
    figures = Figures()
    for part in parts:
        figures.put("part_works", part.name, part.problem() is None)
    for role in running:
        figures.put("role_ready", role.name, not _said(role.checks))
        figures.put("role_warnings", role.name, len(_said(role.warnings)))
        if (following := slowest(role.followings)) is not None:
            figures.put("follower_caught_up", role.name, following.caught_up)
            figures.put("follower_lag_seconds", role.name, lag(following))
            figures.put("follower_failures", role.name, following.attempts)
        for name, value in role.counts().items():
            figures.put(name, role.name, value)
    return generate_latest(REGISTRY) + generate_latest(figures)
