"""An EC2 simulator for the tests of a module, its admin endpoint without faults, and a client."""

from collections.abc import Iterator
from typing import Any

import pytest

from cml_embedded.ec2_simulator import Ec2Simulator
from support.ec2 import SimulatorAdmin
from support.ec2_calls import client


@pytest.fixture(scope="module")
def simulator() -> Iterator[Ec2Simulator]:
    with Ec2Simulator(transition_seconds=0.3, vcpu_limit=100) as running:
        yield running


@pytest.fixture
def admin(simulator: Ec2Simulator) -> Iterator[SimulatorAdmin]:
    yield (admin := SimulatorAdmin(simulator.url))
    admin.clear()


@pytest.fixture
def ec2(simulator: Ec2Simulator) -> Iterator[Any]:
    yield (ec2 := client(simulator.url))
    ec2.close()
