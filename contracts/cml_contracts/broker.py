"""Where RabbitMQ is, and connections to whichever of its nodes answers.

A URL may name several hosts: ``amqps://user:password@one:5671,two:5671/vhost``. Each client shuffles them, so that clients
spread, and from then on tries first what it tried least recently: a node that refuses, hangs or has just been lost is never
the next one while there is another. Likewise the addresses of one name.
"""

import asyncio
import random
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from copy import copy
from itertools import count
from typing import Any, TypeVar

import aio_pika
from aio_pika.abc import AbstractConnection
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError, AuthenticationError, ProbableAuthenticationError
from yarl import URL

from cml_contracts.amqp import outage

HEARTBEAT = 10
"""Seconds between heartbeats, where the URL asks for no others; the library's own, 60, notices a hung node after three minutes."""
TCP_SECONDS = 2.0
"""How long one address may take to open a TCP connection, and TLS on it."""
CONNECT_SECONDS = 5.0
"""How long one attempt to connect may take: addresses that hang, and a node that accepts the connection and says nothing."""
FIRST_SECONDS = 10.0
"""For how long a first connection is tried again where nodes hang; one that all refuse fails at once."""
EXAMPLE = "amqps://user:password@one:5671,two:5671/vhost"

T = TypeVar("T")
_PORTS = {"amqp": 5672, "amqps": 5671}
_URL = re.compile(r"(?P<scheme>amqps?)://(?P<user>[^/?#]*@)?(?P<hosts>[^/?#@]*)(?P<rest>[/?#].*)?", re.DOTALL)
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+)(?::(?P<port>[0-9]{1,5}))?")


class Nodes(TransportFactory):
    """The nodes of one RabbitMQ, and which of them to try next. ``url``: as the AMQP library takes it, for one host.

    Raises ValueError if ``text`` is no such URL, with its ``name`` and nothing of it, as there may be a password in it.
    """

    def __init__(self, text: str, name: str = "the URL of RabbitMQ") -> None:
        try:
            self.url, self.hosts = _read(text)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
        self._order = random.sample(self.hosts, len(self.hosts))
        self._turns: dict[tuple[str, int], int] = {}
        self._turn = count(1)
        self.addresses = len(self.hosts)
        """How many there are to try, as far as is known."""

    @classmethod
    def of(cls, where: "Nodes | str") -> "Nodes":
        """Themselves, or those of a URL. Raises ValueError if it is none."""
        return where if isinstance(where, Nodes) else cls(where)

    def beside(self) -> "Nodes":
        """For a connection beside another: it tries first what that one would try next, and changes nothing there."""
        other = copy(self)
        other._turns = dict(self._turns)  # noqa: SLF001 - its own class
        return other

    @property
    def user(self) -> str:
        """As whom we connect."""
        return self.url.user or "guest"

    @property
    def heartbeat(self) -> int:
        """Seconds; 0: none."""
        return int(self.url.query["heartbeat"])

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Called by the AMQP library for each attempt. Raises AMQPConnectionError when no address lets us in."""
        provider = kwargs.pop("ssl_context_provider")
        if url.scheme == "amqps":
            kwargs |= {"ssl": await provider.get_context(), "ssl_shutdown_timeout": TCP_SECONDS}
        failures: list[str] = []
        addresses = 0
        for host, port in self._in_turn(self._order):
            try:
                found = await self._resolved(host, port)
            except OSError as error:
                failures.append(f"{host}: {error}")
                continue
            addresses += len(found)
            self.addresses = max(addresses, len(self.hosts))
            for address in self._in_turn(found):
                try:
                    async with asyncio.timeout(TCP_SECONDS):
                        if "ssl" in kwargs:
                            kwargs["server_hostname"] = host
                        return await asyncio.open_connection(*address, **kwargs)
                except OSError as error:
                    failures.append(str(error) or f"{address[0]}:{address[1]} does not answer")
        raise AMQPConnectionError("; ".join(failures))

    async def _resolved(self, host: str, port: int) -> list[tuple[str, int]]:
        async with asyncio.timeout(TCP_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys((str(address[0]), port) for *_, address in found))

    def _in_turn(self, places: Sequence[tuple[str, int]]) -> Iterable[tuple[str, int]]:
        """The least recently tried first; each counts as tried when it is handed out."""
        for place in sorted(places, key=lambda place: self._turns.get(place, 0)):
            self._turns[place] = next(self._turn)
            yield place


async def first(nodes: Nodes, attempt: Callable[[], Awaitable[T]]) -> T:
    """What the first successful attempt to connect returns: each address has its turn. Raises what the last one raised."""
    loop = asyncio.get_running_loop()
    end = loop.time() + FIRST_SECONDS
    for tried in count(1):
        try:
            return await attempt()
        except (AuthenticationError, ProbableAuthenticationError):
            raise
        except BaseException as error:
            again = isinstance(error, TimeoutError) and loop.time() < end
            if outage(error) is None or (tried >= nodes.addresses and not again):
                raise
    raise AssertionError  # `count` does not end


async def connect(where: Nodes | str) -> AbstractConnection:
    """A connection that nobody restores; one that cannot be opened is closed already.

    aio-pika closes one that nobody keeps when it is collected as garbage, in whatever thread that happens; in one without
    an event loop its coroutine is left over ("Connection.close was never awaited").

    Raises:
        AMQPError, OSError: the broker cannot be reached.
        ValueError: the URL is none.
    """
    nodes = Nodes.of(where)
    return await first(nodes, lambda: attempt(nodes))


async def attempt(nodes: Nodes) -> AbstractConnection:
    """One attempt of ``connect``."""
    connection = _Connection(nodes)
    try:
        await connection.connect(timeout=CONNECT_SECONDS)
    except TimeoutError as error:
        raise no_answer() from error
    return connection


def no_answer() -> TimeoutError:
    """The library's own says nothing."""
    return TimeoutError(f"no answer within {CONNECT_SECONDS:g} s")


class _Connection(aio_pika.Connection):
    def __init__(self, nodes: Nodes) -> None:
        super().__init__(nodes.url)
        self.kwargs["transport_factory"] = nodes

    async def connect(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the library's
        try:
            await super().connect(timeout)
        except BaseException:
            await self.close()
            raise


def _read(text: str) -> tuple[URL, tuple[tuple[str, int], ...]]:
    """The URL of the first host, and all hosts with their ports. Raises ValueError; see ``Nodes``."""
    if not text.startswith(tuple(f"{scheme}://" for scheme in _PORTS)):
        raise ValueError("must begin with amqp:// or amqps://")
    if re.search(r"\s", text):
        raise ValueError("must have no space and no line break")
    if re.search(r",amqps?://", text):
        raise ValueError(f"must be one URL, its hosts separated by commas: {EXAMPLE}")
    parts = _URL.fullmatch(text)
    if parts is None:
        raise ValueError(f"is no URL: {EXAMPLE}; in a password, @ / ? and # must be percent-encoded")
    hosts = tuple(
        _host(each, place, parts["scheme"]) for place, each in enumerate(parts["hosts"].split(","), 1)
    )
    name, port = hosts[0]
    try:
        single = f"[{name}]" if ":" in name else name
        url = URL(f"{parts['scheme']}://{parts['user'] or ''}{single}:{port}{parts['rest'] or ''}")
    except ValueError:
        raise ValueError(f"is no URL: {EXAMPLE}") from None
    heartbeat = url.query.get("heartbeat", str(HEARTBEAT))
    if not re.fullmatch("[0-9]{1,5}", heartbeat) or int(heartbeat) >= 65535:
        raise ValueError("heartbeat must be a number of seconds below 65535; 0 for none")
    return url.update_query(heartbeat=heartbeat), hosts


def _host(text: str, place: int, scheme: str) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    port = int(found["port"] or _PORTS[scheme]) if found else 0
    if found is None or not 0 < port < 65536:
        raise ValueError(
            f"has no valid host at place {place}: {EXAMPLE}; in a password, @ / ? and # must be percent-encoded"
        )
    return found["name"].strip("[]"), port
