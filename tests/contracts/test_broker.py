"""Several nodes: which URLs name them, in which order they are tried, and what is done about those that hang."""

import asyncio
import gc
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from cml_contracts import broker
from cml_contracts.broker import Nodes, connect
from cml_contracts.client import WorkerClient
from cml_embedded.amqp_broker import AmqpBroker
from support.certificates import Certificates
from support.ports import free_port


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[int]:
    """The port of a node that answers."""
    async with AmqpBroker(data_dir=tmp_path) as running:
        yield port_of(running)


@pytest.fixture
def hung() -> Iterator[int]:
    """The port of a node that lets everybody in and never says anything, as one that was paused."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "CONNECT_SECONDS", 1.0)


def port_of(running: AmqpBroker) -> int:
    return int(running.url.rstrip("/").rpartition(":")[2])


def nodes(*ports: int) -> Nodes:
    """In this order."""
    found = Nodes(f"amqp://guest:guest@{','.join(f'127.0.0.1:{port}' for port in ports)}/")
    found._order.sort(key=lambda host: ports.index(host[1]))
    return found


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("amqp://one", [("one", 5672)]),
        ("amqps://me:it@one,two:5673,[::1]:5674/there", [("one", 5671), ("two", 5673), ("::1", 5674)]),
        ("amqp://me:a,b@c@one,two?heartbeat=5", [("one", 5672), ("two", 5672)]),
    ],
)
def test_a_url_names_one_host_or_several(url: str, hosts: list[tuple[str, int]]):
    assert list(Nodes(url).hosts) == hosts


def test_the_rest_of_the_url_is_for_every_host():
    found = Nodes("amqps://me:i%2Ct@one:1,two:2/a%2Fb?cafile=ca.pem")
    assert (found.user, found.url.password, found.url.path) == ("me", "i,t", "/a/b")
    assert found.url.query == {"cafile": "ca.pem", "heartbeat": "10"}


@pytest.mark.parametrize(("query", "heartbeat"), [("", 10), ("?heartbeat=60", 60), ("?heartbeat=0", 0)])
def test_a_heartbeat_that_is_asked_for_is_taken(query: str, heartbeat: int):
    assert Nodes(f"amqp://one/{query}").heartbeat == heartbeat


@pytest.mark.parametrize(
    "url",
    [
        "",
        "one:5672",
        "http://me:secret@one",
        "amqp:/me:secret@one",
        "amqp://",
        "amqp://me:secret@",
        "amqp://me:secret@one,,two",
        "amqp://me:secret@one,",
        "amqp://me:secret@one:two",
        "amqp://me:secret@one:0",
        "amqp://me:secret@one:65536",
        "amqp://me:secret@one, two",
        "amqp://me:secret@one\n",
        "amqp://me:secret@one,amqp://me:secret@two",
        "amqp://me:sec/secret@one",
        "amqp://me:sec#secret@one",
        "amqp://me:secret@::1",
        "amqp://me:secret@[one]",
        "amqp://me:secret@one?heartbeat=secret",
        "amqp://me:secret@one?heartbeat=-1",
        "amqp://me:secret@one?heartbeat=65535",
    ],
)
def test_a_wrong_form_is_an_error_that_names_the_variable_and_shows_no_password(url: str):
    with pytest.raises(ValueError, match=r"^RABBITMQ_URL ") as error:
        Nodes(url, "RABBITMQ_URL")
    assert "sec" not in str(error.value).removesuffix("a number of seconds below 65535; 0 for none")
    with pytest.raises(ValueError, match=r"^the URL of RabbitMQ "):
        WorkerClient(url)


def test_clients_spread_over_the_hosts():
    assert {Nodes("amqp://one,two,three")._order[0][0] for _ in range(200)} == {"one", "two", "three"}


async def test_a_connection_that_was_refused_is_closed_and_leaves_nothing_to_be_done_when_it_is_collected():
    port = free_port()
    with pytest.raises(OSError, match="Connect") as refused:
        await connect(f"amqp://guest:guest@127.0.0.1:{port}/")
    made = [each for each in gc.get_objects() if isinstance(each, aio_pika.Connection)]
    assert [each.is_closed for each in made if each.url.port == port] == [True], refused


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
async def test_nodes_that_refuse_and_nodes_that_hang_are_passed_over(
    node: int, hung: int, order: tuple[int, ...]
):
    ports = [free_port(), hung, node]
    async with await connect(nodes(*(ports[each] for each in order))) as connection:
        await (await connection.channel()).declare_queue(exclusive=True)


async def test_of_the_addresses_of_a_name_one_that_hangs_is_passed_over(
    node: int, hung: int, monkeypatch: pytest.MonkeyPatch
):
    async def resolved(*_: object) -> list[tuple[str, int]]:
        return [("127.0.0.1", hung), ("127.0.0.1", node)]

    monkeypatch.setattr(Nodes, "_resolved", resolved)
    async with await connect("amqp://guest:guest@rabbit/") as connection:
        await connection.channel()


async def test_an_address_from_which_nothing_comes_is_given_up(node: int, monkeypatch: pytest.MonkeyPatch):
    """As of a host that is switched off: no TCP connection, and no refusal either."""
    real = asyncio.open_connection

    async def unreachable(host: str, port: int, **options: Any) -> Any:
        return await (asyncio.Event().wait() if port == 1 else real(host, port, **options))

    monkeypatch.setattr(broker, "TCP_SECONDS", 0.2)
    monkeypatch.setattr(asyncio, "open_connection", unreachable)
    async with await connect(nodes(1, node)):
        pass


async def test_a_node_that_was_lost_is_not_tried_first_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, tried = asyncio.open_connection, []

    async def noted(host: str, port: int, **options: Any) -> Any:
        tried.append(port)
        return await real(host, port, **options)

    monkeypatch.setattr(asyncio, "open_connection", noted)
    async with AmqpBroker(data_dir=tmp_path / "one") as one, AmqpBroker(data_dir=tmp_path / "two") as two:
        known = nodes(port_of(one), port_of(two))
        for _ in range(4):
            await (await connect(known)).close()
    assert tried == [port_of(one), port_of(two)] * 2


async def test_a_single_node_that_hangs_is_an_error_after_a_while(hung: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(broker, "FIRST_SECONDS", 1.5)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 1 s"):
        await connect(nodes(hung))
    assert time.monotonic() - began >= 1.5


@asynccontextmanager
async def secured(node: int, certificates: Certificates) -> AsyncIterator[int]:
    """The port at which TLS ends before the node."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.certificate, certificates.key)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to, answers = await asyncio.open_connection("127.0.0.1", node)
        await asyncio.gather(pump(reader, answers), pump(to, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield int(server.sockets[0].getsockname()[1])


def in_order(url: str) -> Nodes:
    """It begins with the first host."""
    found = Nodes(url)
    found._order.sort(key=found.hosts.index)
    return found


async def test_the_certificate_of_each_host_is_verified_for_that_host_also_after_one_that_is_dead(
    node: int, tmp_path: Path
):
    """As of another host it would not be valid: the name of the first one in the URL counts for that one alone."""
    certificates = Certificates.issue(tmp_path, "127.0.0.1")
    rest = f"/?cafile={certificates.authority}"
    async with secured(node, certificates) as port:
        dead = f"localhost:{free_port()}"
        async with await connect(in_order(f"amqps://guest:guest@{dead},127.0.0.1:{port}{rest}")) as opened:
            await (await opened.channel()).declare_queue(exclusive=True)
        with pytest.raises(ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            await connect(in_order(f"amqps://guest:guest@127.0.0.1:{free_port()},localhost:{port}{rest}"))


async def test_a_client_passes_over_a_host_that_is_dead_and_one_whose_certificate_is_of_another(
    node: int, tmp_path: Path
):
    certificates = Certificates.issue(tmp_path, "127.0.0.1")
    async with secured(node, certificates) as port:
        hosts = f"localhost:{free_port()},localhost:{port},127.0.0.1:{port}"
        async with WorkerClient(f"amqps://guest:guest@{hosts}/?cafile={certificates.authority}"):
            pass
