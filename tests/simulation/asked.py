"""What the adapter asked EC2 in simulated runs, asked once more over HTTP: the simulator refuses what EC2 would refuse.

EC2 in memory takes any request. So each call is noted by its shape (the method, and its arguments without what is chosen at
random), and one of each shape is made by AWS's client.
"""

import asyncio
import contextlib
import os
import re
from collections.abc import Mapping
from typing import Any, cast
from unittest.mock import patch

from pydantic import BaseModel

from cml_contracts.instance import LaunchParameters
from cml_embedded.ec2_simulator import Ec2Simulator
from cml_workers.ec2_adapter.aws import AwsEc2Client
from cml_workers.ec2_adapter.errors import EC2Error
from cml_workers.ec2_adapter.port import Ec2
from support.ec2 import SimulatorAdmin
from support.malformed import in_words

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
"""A method of the port, and its arguments, by position and by name."""


class NotedEc2:
    """The port, with every call noted in ``asked``: the first one of each shape."""

    def __init__(self, ec2: Ec2, asked: dict[str, Call]) -> None:
        self._ec2 = ec2
        self._asked = asked

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._ec2, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self._asked.setdefault(f"{name} {_shape(arguments)} {_shape(named)}", (name, arguments, named))
            return method(*arguments, **named)

        return call


def noted(ec2: Ec2, asked: dict[str, Call]) -> Ec2:
    """See ``NotedEc2``."""
    return cast(Ec2, NotedEc2(ec2, asked))


def refused(asked: Mapping[str, Call]) -> list[str]:
    """Those of the calls that EC2 would refuse for what they are, in words."""
    credentials = {"AWS_ACCESS_KEY_ID": "simulator", "AWS_SECRET_ACCESS_KEY": "simulator"}
    with patch.dict(os.environ, credentials), Ec2Simulator(transition_seconds=0) as simulator:
        admin = SimulatorAdmin(simulator.url)
        for _, arguments, named in asked.values():
            for each in (*arguments, *named.values()):
                if isinstance(each, LaunchParameters):
                    admin.add_image(each.aws_region, "simulated", each.ami_id)
        asyncio.run(_ask(simulator.url, asked))
        return in_words(admin.malformed())


async def _ask(url: str, asked: Mapping[str, Call]) -> None:
    async with AwsEc2Client(endpoint_url=url) as ec2:
        for name, arguments, named in asked.values():
            with contextlib.suppress(EC2Error):  # none of the instances is there
                await getattr(ec2, name)(*arguments, **named)


def _shape(value: Any) -> Any:
    match value:
        case str():
            return re.sub("[0-9a-f]", "x", value)
        case BaseModel():
            return _shape(value.model_dump())
        case Mapping():
            return sorted((_shape(key), _shape(each)) for key, each in value.items())
        case list() | tuple():
            return [_shape(each) for each in value]
        case _:
            return repr(value)
