"""Direct replies: an address that the broker cannot decode ends no connection, and delays no other reply."""

import asyncio
import base64

import aio_pika
import pytest

from cml_workers.bus.port import Ack, CallerRefusesError, Message, Outgoing, Verdict
from cml_workers.bus.rabbit import RabbitBus
from cml_workers.bus.rabbit.direct_replies import PREFIX, DirectReplies, probes_needed
from cml_workers.bus.topology import Queue
from cml_workers.foundation.tasks import ended
from support.plain_amqp import PlainAmqp
from support.raw_amqp import RawAmqp
from support.recorder import Recipient


def process(node: bytes = b"reply@1", *, tag: bytes = b"v", more: bytes = b"") -> str:
    """An Erlang process as it stands in the address of a direct reply."""
    length = len(node).to_bytes(1 if tag == b"w" else 2, "big")
    return base64.b64encode(b"\x83X" + tag + length + node + bytes(12) + more).decode()


@pytest.mark.parametrize(
    "address",
    [
        "x",
        "a.b",
        "AAAA.b",
        f"{process()}.key",
        f"{process(tag=b'w')}.key",
        f"{process(b'rabbit@gone')}.key",
        f"{process(more=b'x')}.key",
        f"{process(b'reply')}.key",
        "..g2EF..key..",
        "\N{GRINNING FACE}.key",
    ],
)
async def test_a_made_up_direct_reply_address_ends_no_connection(
    consumer: Recipient, stranger: RawAmqp, queue: Queue, address: str
):
    async def replying(message: Message) -> Verdict:
        await consumer.bus.publish(
            Outgoing(None, message.reply_to or "", b"", "t", "m-1/result", mandatory=False)
        )
        return Ack()

    consumer.answer = replying
    connection = consumer.bus._broker._connection
    for number in ("one", "two"):
        await stranger.publish(
            "", queue.name, b"{}", message_id=number, reply_to=f"amq.rabbitmq.reply-to.{address}"
        )
    assert [(await consumer.next()).message_id for _ in range(2)] == ["one", "two"]
    await consumer.bus.publish(Outgoing(None, queue.name, b"", "t", "three"))
    assert (await consumer.next()).message_id == "three"
    assert connection is not None
    assert consumer.bus._broker._connection is connection
    assert connection.connected.is_set()


async def direct_reply(caller: PlainAmqp, bus: RabbitBus, correlation_id: str) -> None:
    """The caller asks, and is answered at the address that the broker made of its pseudo-queue."""
    await bus.publish(
        Outgoing(None, await own_address(caller), b"{}", "t", "m", correlation_id, mandatory=False)
    )
    assert await caller.replies_to(correlation_id) == [{}]


async def test_a_direct_reply_arrives_and_its_node_is_probed_once_where_the_broker_needs_it(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
):
    probed = []
    ask = DirectReplies._ask

    async def counted(self: DirectReplies, node: bytes, process: str) -> None:
        probed.append(node)
        await ask(self, node, process)

    monkeypatch.setattr(DirectReplies, "_ask", counted)
    async with PlainAmqp(rabbitmq_url, direct=True) as caller, RabbitBus(rabbitmq_url, name="test") as bus:
        for number in range(3):
            await direct_reply(caller, bus, f"c-{number}")
        assert len(probed) == bus._direct_replies._probes_needed


async def test_a_reply_to_a_known_node_does_not_wait_for_the_probe_of_another(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
):
    async def no_answer(self: DirectReplies, node: bytes, process: str) -> None:
        await asyncio.Event().wait()

    async with PlainAmqp(rabbitmq_url, direct=True) as caller, RabbitBus(rabbitmq_url, name="test") as bus:
        bus._direct_replies.connected({"product": "RabbitMQ", "version": "3.10.8"})
        await direct_reply(caller, bus, "c-1")
        monkeypatch.setattr(DirectReplies, "_ask", no_answer)
        made_up = f"amq.rabbitmq.reply-to.{process()}.key"
        waiting = [
            asyncio.ensure_future(bus.publish(Outgoing(None, made_up, b"", "t", "m", mandatory=False)))
            for _ in range(2)
        ]
        async with asyncio.timeout(5):
            await direct_reply(caller, bus, "c-2")
        assert not any(task.done() for task in waiting)
        assert len(bus._direct_replies._probes) == 1
        for task in (*waiting, *bus._direct_replies._probes.values()):
            await ended(task)


async def own_address(caller: PlainAmqp) -> str:
    """What the broker makes of the caller's pseudo-queue."""
    inbox = await caller.channel.declare_queue(exclusive=True)
    message = aio_pika.Message(b"", reply_to="amq.rabbitmq.reply-to")
    await caller.channel.default_exchange.publish(message, inbox.name)
    return (await inbox.get(no_ack=True)).reply_to or ""


async def test_many_made_up_addresses_delay_no_reply_of_others(rabbitmq_url: str):
    """Nodes that there are not, and processes, keys and instances of the caller's own that there are not."""
    async with PlainAmqp(rabbitmq_url, direct=True) as caller, RabbitBus(rabbitmq_url, name="test") as bus:
        await direct_reply(caller, bus, "c-1")
        encoded, key = (await own_address(caller)).removeprefix(PREFIX).rsplit(".", 1)
        real = base64.b64decode(encoded)
        others = [real[:-12] + number.to_bytes(12, "big") for number in range(1, 200)]
        made_up = [
            *(f"{process(b'made-up@%d' % number)}.{key}" for number in range(200)),
            *(f"{base64.b64encode(other).decode()}.{key}" for other in others),
            *(f"{encoded}.{number}" for number in range(200)),
        ]
        connection = bus._broker._connection
        flood = asyncio.gather(
            *(
                bus.publish(Outgoing(None, f"{PREFIX}{each}", b"", "t", "m", mandatory=False))
                for each in made_up
            ),
            return_exceptions=True,
        )
        async with asyncio.timeout(30):
            await direct_reply(caller, bus, "c-2")
        raised = {type(each) for each in await flood if each is not None}
        assert raised <= {CallerRefusesError}
        await direct_reply(caller, bus, "c-3")
        assert bus._broker._connection is connection


@pytest.mark.parametrize(
    ("properties", "needed"),
    [
        ({"product": "RabbitMQ", "version": "3.10.8"}, True),
        ({"product": "RabbitMQ", "version": "3.13.7"}, True),
        ({"product": "RabbitMQ", "version": "4.0.5"}, False),
        ({"product": "RabbitMQ", "version": "10.0.0-rc.1"}, False),
        ({"product": "RabbitMQ"}, True),
        ({}, True),
        ({"product": "another broker", "version": "1.0"}, False),
    ],
)
def test_nodes_are_probed_only_where_the_broker_fails_on_unknown_ones(
    properties: dict[str, str], needed: bool
):
    assert probes_needed(properties) is needed
