"""Nodes of a cluster find each other behind proxies, and whoever talks to one of them finds it directly."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from support.erlang_network import ErlangNetwork
from support.ports import free_port


@pytest.fixture
async def network() -> AsyncIterator[ErlangNetwork]:
    async with ErlangNetwork({"one": free_port(), "two": free_port()}) as network:
        yield network


async def register(
    network: ErlangNetwork, at: str, name: str, port: int
) -> tuple[bytes, asyncio.StreamWriter]:
    """The answer, and what keeps the name registered."""
    body = port.to_bytes(2, "big") + bytes([77, 0, 0, 6, 0, 5]) + len(name).to_bytes(2, "big") + name.encode()
    reader, writer = await _asked(network, at, bytes([120]) + body + bytes(2))
    return await reader.readexactly(6), writer


async def port_of(network: ErlangNetwork, at: str, name: str) -> int | None:
    reader, writer = await _asked(network, at, bytes([122]) + name.encode())
    answer = await reader.read()
    writer.close()
    return int.from_bytes(answer[2:4], "big") if answer[1] == 0 else None


async def _asked(
    network: ErlangNetwork, at: str, request: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", network.epmd_ports[at])
    writer.write(len(request).to_bytes(2, "big") + request)
    return reader, writer


async def test_a_node_finds_another_behind_a_proxy_and_a_command_finds_it_directly(
    network: ErlangNetwork,
) -> None:
    _, one = await register(network, "one", "one", 5001)
    _, command = await register(network, "one", "command", 5002)
    assert await port_of(network, "one", "one") == 5001
    assert await port_of(network, "two", "command") == 5002
    assert await port_of(network, "two", "one") not in (5001, None)
    assert await port_of(network, "two", "nobody") is None
    for writer in (one, command):
        writer.close()


async def test_a_node_that_starts_again_is_distinguished_from_its_former_life(network: ErlangNetwork) -> None:
    first, writer = await register(network, "one", "one", 5001)
    writer.close()
    async with asyncio.timeout(60):
        while await port_of(network, "one", "one") is not None:
            await asyncio.sleep(0.01)
    second, writer = await register(network, "one", "one", 5001)
    writer.close()
    assert first[:2] == second[:2] == bytes([118, 0])
    assert first[2:] != second[2:]
