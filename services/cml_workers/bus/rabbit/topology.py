"""Declares the topology at the broker, or verifies that it is there."""

from aiormq.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from cml_contracts.broker import Nodes, connect
from cml_workers.bus.port import TopologyError
from cml_workers.bus.usage import EVERYTHING, Usage, retry_queues


async def declare_topology(where: Nodes | str, uses: Usage = EVERYTHING) -> None:
    """Declare the exchanges, queues and bindings that are used; what exists already stays as it is, but for former bindings.

    Raises:
        TopologyError: something exists with other arguments.
        AMQPError, OSError: the broker cannot be reached.
    """
    connection = await connect(where)
    async with connection:
        channel = await connection.channel()
        subject = ""
        try:
            bound = (binding.exchange for queue in uses.declares for binding in queue.bindings)
            for exchange in dict.fromkeys((*uses.exchanges, *bound)):
                subject = f"exchange {exchange.name!r}"
                await channel.declare_exchange(exchange.name, exchange.kind, durable=True)
            for queue in uses.declares:
                subject = f"queue {queue.name!r}"
                declared = await channel.declare_queue(
                    queue.name, durable=True, arguments=dict(queue.arguments)
                )
                for binding in queue.bindings:
                    await declared.bind(binding.exchange.name, binding.routing_key)
                for binding in queue.former:
                    if binding.exchange in uses.publishes:
                        await declared.unbind(binding.exchange.name, binding.routing_key)
                for name, arguments in retry_queues(queue).items():
                    subject = f"queue {name!r}"
                    await channel.declare_queue(name, durable=True, arguments=dict(arguments))
        except ChannelPreconditionFailed as error:
            raise TopologyError(
                f"{subject} exists with other arguments ({error}). Arguments cannot be changed: drain it, "
                f"delete it (rabbitmqctl delete_queue, or the management page) and start again."
            ) from error


async def verify_topology(where: Nodes | str, uses: Usage) -> None:
    """Check that the exchanges and queues that are used exist; this needs no right to configure anything.

    Raises:
        TopologyError: something is missing.
        AMQPError, OSError: the broker cannot be reached.
    """
    connection = await connect(where)
    async with connection:
        channel = await connection.channel()
        subject = ""
        try:
            for exchange in uses.exchanges:
                subject = f"exchange {exchange.name!r}"
                await channel.declare_exchange(exchange.name, exchange.kind, passive=True)
            for name in uses.queues:
                subject = f"queue {name!r}"
                await channel.declare_queue(name, passive=True)
        except ChannelNotFoundEntity as error:
            raise TopologyError(
                f"{subject} is missing: import deploy/rabbitmq/definitions.json into RabbitMQ, or let the roles "
                "declare what is missing with CML_DECLARE_TOPOLOGY=true and a user that may configure it"
            ) from error
