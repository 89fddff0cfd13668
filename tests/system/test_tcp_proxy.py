"""The network that other tests break at chosen messages: what arrives, what comes back, and which end learns of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from support.ports import free_port
from support.tcp_proxy import TcpProxy, Trap

BOUND = 20.0


@dataclass
class Echo:
    """A server that keeps what arrives and answers each piece with ``answer:`` and the same."""

    port: int = 0
    got: bytes = b""
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.got += data
                writer.write(b"answer:" + data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self.lost.set()
            writer.close()

    async def until_it_has(self, data: bytes) -> None:
        async with asyncio.timeout(BOUND):
            while self.got != data:
                await asyncio.sleep(0.01)


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(echo.port) as proxy:
        yield proxy


@pytest.fixture
async def connect(proxy: TcpProxy) -> AsyncIterator["Connect"]:
    clients: list[Client] = []

    async def connect() -> Client:
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", proxy.port)))
        return clients[-1]

    yield connect
    for client in clients:
        client.writer.close()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, data: bytes) -> bytes:
        """What comes back; nothing if the connection is cut."""
        self.writer.write(data)
        return await self.next()

    async def next(self) -> bytes:
        async with asyncio.timeout(BOUND):
            try:
                return await self.reader.read(65536)
            except OSError:
                return b""


Connect = Callable[[], Awaitable[Client]]


async def test_what_is_not_caught_passes(echo: Echo, proxy: TcpProxy, connect: Connect):
    proxy.arm(Trap(b"stop", "server", "cut before"))
    proxy.arm(Trap(b"start", "client", "cut before"))
    client = await connect()
    assert await client.ask(b"begin") == b"answer:begin"
    assert not proxy.fired


async def test_cut_before_lets_what_stands_before_it_arrive_and_nothing_of_it(
    echo: Echo, proxy: TcpProxy, connect: Connect
):
    proxy.arm(Trap(b"stop", "server", "cut before"))
    client = await connect()
    await client.ask(b"first ")
    await client.ask(b"second stop third")
    await echo.until_it_has(b"first second ")
    async with asyncio.timeout(BOUND):
        await echo.lost.wait()
    assert proxy.fired == {"cut before": 1}


async def test_cut_after_lets_it_arrive_and_ends_the_connection(
    echo: Echo, proxy: TcpProxy, connect: Connect
):
    proxy.arm(Trap(b"stop", "server", "cut after"))
    client = await connect()
    assert await client.ask(b"stop") == b""
    await echo.until_it_has(b"stop")
    assert proxy.fired == {"cut after": 1}


async def test_cut_the_answer_lets_it_arrive_and_nothing_come_back(
    echo: Echo, proxy: TcpProxy, connect: Connect
):
    proxy.arm(Trap(b"stop", "server", "cut the answer"))
    client = await connect()
    assert await client.ask(b"stop") == b""
    assert echo.got == b"stop"
    assert proxy.fired == {"cut the answer": 1}


async def test_a_trap_towards_the_client_catches_what_the_server_sends(
    echo: Echo, proxy: TcpProxy, connect: Connect
):
    proxy.arm(Trap(b"answer:two", "client", "cut before"))
    client = await connect()
    assert await client.ask(b"one") == b"answer:one"
    assert await client.ask(b"two") == b""
    assert echo.got == b"onetwo"


async def test_silence_keeps_the_connection_and_holds_both_directions_back(
    echo: Echo, proxy: TcpProxy, connect: Connect
):
    armed = proxy.arm(Trap(b"stop", "server", "silence", seconds=1.0))
    client, other = await connect(), await connect()
    client.writer.write(b"stop")
    await asyncio.wait_for(armed.fired.wait(), BOUND)
    assert await other.ask(b"other") == b"answer:other"
    assert echo.got == b"other"
    assert await client.next() == b"answer:stop"


async def test_what_was_silenced_arrives_although_its_sender_has_gone(
    echo: Echo, proxy: TcpProxy, connect: Connect
):
    armed = proxy.arm(Trap(b"stop", "server", "silence", seconds=0.5))
    client = await connect()
    client.writer.write(b"stop")
    await asyncio.wait_for(armed.fired.wait(), BOUND)
    client.writer.close()
    await echo.until_it_has(b"stop")


async def test_a_pattern_in_two_pieces_is_found(echo: Echo, proxy: TcpProxy, connect: Connect):
    armed = proxy.arm(Trap(b"terminate", "server", "cut before"))
    client = await connect()
    assert await client.ask(b"please term") == b"answer:please term"
    assert not armed.fired.is_set()
    assert await client.ask(b"inate it") == b""
    assert echo.got == b"please term"


async def test_a_trap_catches_as_often_as_it_is_set_and_no_occurrence_twice(
    echo: Echo, proxy: TcpProxy, connect: Connect
):
    armed = proxy.arm(Trap(b"stop", "server", "silence", seconds=0.0, times=2))
    proxy.arm(Trap(b"a much longer pattern than the other", "server", "cut before"))
    client = await connect()
    await client.ask(b"stop")
    await client.ask(b".")
    assert proxy.fired == {"silence": 1}
    await client.ask(b"stop")
    assert armed.left == 0
    await client.ask(b"stop")
    assert proxy.fired == {"silence": 2}


async def test_what_was_disarmed_or_healed_catches_nothing(echo: Echo, proxy: TcpProxy, connect: Connect):
    proxy.disarm(proxy.arm(Trap(b"stop", "server", "cut before")))
    proxy.arm(Trap(b"stop", "server", "cut before"))
    proxy.heal()
    client = await connect()
    assert await client.ask(b"stop") == b"answer:stop"


async def test_others_connections_survive_a_trap(echo: Echo, proxy: TcpProxy, connect: Connect):
    proxy.arm(Trap(b"stop", "server", "cut before"))
    client, other = await connect(), await connect()
    assert await client.ask(b"stop") == b""
    assert await other.ask(b"on") == b"answer:on"


async def test_of_several_servers_each_connection_gets_the_next_that_lets_it_in(echo: Echo):
    other = Echo()
    server = await asyncio.start_server(other.serve, "127.0.0.1", 0)
    async with TcpProxy(echo.port, free_port(), server.sockets[0].getsockname()[1]) as proxy:
        for number in range(6):
            _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(str(number).encode())
            async with asyncio.timeout(BOUND):
                while str(number).encode() not in echo.got + other.got:
                    await asyncio.sleep(0.01)
            writer.close()
    server.close()
    assert echo.got
    assert other.got
