"""What is embedded where nothing else is configured: the message broker and the EC2 simulator."""

import asyncio
import os
from contextlib import AsyncExitStack

from cml_workers.runtime.settings import Settings


async def embed_broker(settings: Settings, stack: AsyncExitStack) -> str:
    from cml_embedded.amqp_broker import AmqpBroker  # noqa: PLC0415 - an optional extra

    broker = AmqpBroker(port=settings.amqp_port, data_dir=settings.data_dir / "amqp")
    await stack.enter_async_context(broker)
    return broker.url


async def embed_ec2(settings: Settings, stack: AsyncExitStack) -> tuple[Settings, str]:
    """The simulator, its well-known images as defaults, and credentials that open nothing else."""
    from cml_embedded.ec2_simulator import (  # noqa: PLC0415 - an optional extra
        DEMO_IMAGE_NAME,
        Ec2Simulator,
    )

    simulator = Ec2Simulator(
        port=settings.ec2_port,
        data_dir=settings.data_dir / "ec2",
        transition_seconds=settings.ec2_transition_seconds,
    )
    await asyncio.to_thread(simulator.start)
    stack.push_async_callback(asyncio.to_thread, simulator.stop)
    os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "simulator"  # noqa: S105
    regions = ("us-east-1", "us-west-2", "eu-west-1")
    names = {**dict.fromkeys(regions, DEMO_IMAGE_NAME), **settings.worker_ami_names}
    return settings.model_copy(update={"worker_ami_names": names}), simulator.url
