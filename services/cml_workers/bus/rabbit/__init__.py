"""The bus on RabbitMQ, through FastStream and aio-pika."""

from cml_workers.bus.rabbit.connection import RabbitBus
from cml_workers.bus.rabbit.reaching import reach
from cml_workers.bus.rabbit.topology import declare_topology, verify_topology

__all__ = ["RabbitBus", "declare_topology", "reach", "verify_topology"]
