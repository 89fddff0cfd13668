"""Waiting for what is to become so; what a role says of the parts that it waits for: its probes, and its lines about outages."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import aio_pika

from cml_workers.bus.topology import HANDLED, RETRY_DELAYS


async def until(condition: Callable[[], object]) -> None:
    """Wait for it to hold, half a minute at most."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


def probed(port: int, path: str) -> tuple[int, dict[str, Any]]:
    """Status and content of a probe; 0: nobody answers."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/{path}", timeout=20) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)
    except (URLError, ConnectionError, TimeoutError):
        return 0, {}


async def until_probed(port: int, path: str, status: int, *, within: str = "", seconds: float = 90) -> str:
    """Wait for this status, and until its content has this text; the content."""
    async with asyncio.timeout(seconds):
        while True:
            found, content = await asyncio.to_thread(probed, port, path)
            if found == status and within in (text := json.dumps(content)):
                return text
            await asyncio.sleep(0.1)


def lines(log: Path) -> Iterator[dict[str, Any]]:
    """What a process has logged; what is no line of the log is an error."""
    for line in log.read_text().splitlines():
        if line.startswith("{"):
            yield json.loads(line)
        else:
            yield {"level": "error", "event": line, "logger": ""}


def trouble(log: Path, *, of_libraries: bool = True) -> list[str]:
    """Whatever is a warning or worse; of an outage whether it begins or ends, and the part.

    ``of_libraries``: also what they have written by themselves, e.g. the traceback of a connection that could not be closed.
    """
    return [
        f"{each['event'].partition(':')[0]}{' of the ' + each['part'] if 'part' in each else ''}"
        for each in lines(log)
        if (of_libraries or each["logger"].startswith("cml_"))
        and each["level"] not in ("debug", "info")
        and not each["event"].startswith("CML_AUTHORIZE")
    ]


class RetryQueues:
    """Looks into all retry queues again and again; ``most``: what it saw there at most."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.most: dict[str, int] = {}
        self._task: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _look(self) -> None:
        names = [queue.retry_queue(delay) for queue in HANDLED if queue.retries for delay in RETRY_DELAYS]
        async with await aio_pika.connect(self._url) as connection:
            channel = await connection.channel()
            while True:
                for name in names:
                    queue = await channel.declare_queue(name, passive=True)
                    if count := queue.declaration_result.message_count:
                        self.most[name] = max(self.most.get(name, 0), count)
                await asyncio.sleep(0.1)
