"""Instances behind the port of EC2, whichever is behind it: what is launched, and waiting until it is as expected."""

import asyncio
from typing import Any
from uuid import uuid4

from cml_contracts.instance import Ec2Instance, InstanceState, LaunchParameters
from cml_embedded.ec2_simulator import DEMO_IMAGES
from cml_workers.ec2_adapter.port import Ec2

REGION = "us-east-1"


def parameters(**changes: Any) -> LaunchParameters:
    fields: dict[str, Any] = {
        "aws_region": REGION,
        "ami_id": DEMO_IMAGES[REGION],
        "instance_type": "m5.large",
        "tags": {"Name": "lab", "cml:worker-id": uuid4().hex},
        "generation": 1,
        "client_token": uuid4().hex,
    }
    return LaunchParameters.model_validate(fields | changes)


async def described(ec2: Ec2, instance_id: str) -> Ec2Instance | None:
    return (await ec2.describe_many(REGION, [instance_id])).get(instance_id)


async def until(ec2: Ec2, instance: Ec2Instance, state: InstanceState) -> Ec2Instance:
    async with asyncio.timeout(60):
        while True:
            seen = await described(ec2, instance.instance_id)
            if seen and seen.state is state:
                return seen
            await asyncio.sleep(0.05)
