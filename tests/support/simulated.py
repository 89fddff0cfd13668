"""An EC2 simulator and a client of it, for the tests of one module.

The client is made once, as that takes a third of a second: such a module has
``pytestmark = pytest.mark.asyncio(loop_scope="module")``.
"""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from cml_embedded.ec2_simulator import Ec2Simulator
from cml_workers.ec2_adapter.aws import AwsEc2Client
from support.ec2 import SimulatorAdmin
from support.listed_calls import not_listed


@pytest.fixture(scope="module")
def simulator() -> Iterator[Ec2Simulator]:
    """Instances take a fifth of a second from state to state."""
    with Ec2Simulator(transition_seconds=0.2) as running:
        yield running


@pytest.fixture
def admin(simulator: Ec2Simulator) -> Iterator[SimulatorAdmin]:
    """No fault and no call of a test before; and no call during the test that is not in the list of them."""
    admin = SimulatorAdmin(simulator.url)
    admin.forget_calls()
    yield admin
    admin.clear()
    assert not_listed(admin.calls()) == set()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ec2(simulator: Ec2Simulator) -> AsyncIterator[AwsEc2Client]:
    """The adapter's own client, over HTTP."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "simulator")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "simulator")
        async with AwsEc2Client(endpoint_url=simulator.url) as first:
            await first.find_image("us-east-1", "none")  # moto takes its time over the first of all calls
        async with AwsEc2Client(endpoint_url=simulator.url, call_seconds=5) as client:
            yield client
