"""RabbitMQ's management API: the one place where it says which nodes have a replica of a queue; AMQP does not.

https://www.rabbitmq.com/docs/http-api-reference. Its user needs the tag ``monitoring``, and some right in the virtual host.
"""

import asyncio
import base64
import json
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from yarl import URL

from cml_workers.foundation.secrets import redacted

TIMEOUT = 5.0
"""Seconds for an answer."""


class ManagementError(Exception):
    """The management API does not say it; says why, without the password."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """``nodes``: all that belong to it, whether they run or not; ``replicas``: of each queue; ``online``: those that work now.

    ``partitioned``: nodes that know of a partition from others. Until they are started again they have queues and bindings of their own.
    """

    nodes: int
    replicas: Mapping[str, int]
    online: Mapping[str, int]
    partitioned: Sequence[str] = ()

    def short(self, queues: Iterable[str]) -> dict[str, int]:
        """The replicas of those queues that have fewer than there are nodes; one that is not there has 0."""
        found = {queue: self.replicas.get(queue, 0) for queue in queues}
        return {queue: replicas for queue, replicas in found.items() if replicas < self.nodes}

    def idle(self, queues: Iterable[str]) -> dict[str, int]:
        """The replicas that do not work, of those queues that have any: their node is down, or they did not start with it."""
        found = {queue: self.replicas[queue] - self.online[queue] for queue in queues if queue in self.online}
        return {queue: idle for queue, idle in found.items() if idle}


class _NoRedirect(HTTPRedirectHandler):
    """Credentials go to no other host."""

    def redirect_request(self, *_: Any) -> None:
        """None: the redirection is the answer."""


async def cluster(url: str, vhost: str) -> Cluster:
    """What the management API at ``url`` says now. Raises ManagementError."""
    return await asyncio.to_thread(_cluster, url, vhost)


def _cluster(url: str, vhost: str) -> Cluster:
    try:
        nodes = _get(URL(url), "nodes?columns=name,partitions")
        queues = _get(URL(url), f"queues/{quote(vhost, safe='')}?columns=name,members,online")
        # A classic queue has no members: it is on one node. Which members work is not known in a queue's first seconds.
        members = {queue["name"]: queue.get("members", ["one"]) for queue in queues}
        return Cluster(
            len(nodes),
            {name: len(found) for name, found in members.items()},
            {queue["name"]: len(queue.get("online", members[queue["name"]])) for queue in queues},
            sorted(node["name"] for node in nodes if node.get("partitions")),
        )
    except HTTPError as error:
        with error:
            raise ManagementError(f"RABBITMQ_MANAGEMENT_URL: {_said(error, vhost)}") from error
    except (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ManagementError(
            f"RABBITMQ_MANAGEMENT_URL: no management API of RabbitMQ at {redacted(url)}: {error}"
        ) from error


def _get(url: URL, path: str) -> list[Any]:
    credentials = base64.b64encode(f"{url.user or 'guest'}:{url.password or 'guest'}".encode()).decode()
    base = str(url.with_user(None).with_query(None)).rstrip("/")
    request = Request(f"{base}/api/{path}", headers={"Authorization": f"Basic {credentials}"})  # noqa: S310 - checked by the settings
    trusted = ssl.create_default_context(cafile=url.query.get("cafile")) if url.scheme == "https" else None
    opener = build_opener(_NoRedirect, *([HTTPSHandler(context=trusted)] if trusted else []))
    with opener.open(request, timeout=TIMEOUT) as answer:
        found = json.load(answer)
    if not isinstance(found, list):
        raise TypeError(f"{path} is no list")
    return found


def _said(error: HTTPError, vhost: str) -> str:
    match error.code:
        case 401:
            return (
                "user or password is wrong, or the user has not the tag monitoring, "
                f"or no right in the virtual host {vhost!r}"
            )
        case 404:
            return f"there is no virtual host {vhost!r}"
        case _:
            return f"it answers {error.code}"
