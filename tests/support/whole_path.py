"""A running system as other services see it, and where it is, for the tests of the whole path."""

from typing import Any

from support.ec2 import SimulatorAdmin
from support.plain_amqp import PlainAmqp
from support.running import RunningSystem

CREATE: dict[str, Any] = {
    "name": "lab",
    "aws_region": "us-east-1",
    "instance_type": "m5.large",
    "created_by": "ann",
}


class System:
    """A running system, and where it is."""

    def __init__(self, running: RunningSystem) -> None:
        self.running = running
        self.expected: list[str] = []
        """Warnings that a test's own fault leads to."""
        self.begin()

    def begin(self) -> None:
        endpoints = self.running.start()
        self.amqp = endpoints["amqp"]
        self.ec2 = endpoints["ec2"]
        self.admin = SimulatorAdmin(self.ec2)

    def client(self, **how: bool) -> PlainAmqp:
        return PlainAmqp(self.amqp, inside=True, **how)

    def instances_of(self, worker_id: str) -> list[dict[str, Any]]:
        return [each for each in self.admin.instances() if each["tags"].get("cml:worker-id") == worker_id]
