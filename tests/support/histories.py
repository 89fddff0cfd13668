"""Events of a worker's life, for tests to put together."""

from datetime import timedelta

from cml_contracts.events import (
    InstanceLaunched,
    InstanceStopping,
    LaunchRequested,
    StartRequested,
    StopRequested,
    TagsUpdateRequested,
    TerminationRequested,
    WorkerCreated,
)
from cml_contracts.instance import InstanceState
from cml_workers.bus.port import Retry
from cml_workers.ec2_adapter.errors import OutcomeUnknownError
from cml_workers.ec2_adapter.retry_policy import HANDED_ON
from support.given import instance, launch

SECOND = timedelta(seconds=1)
CREATED = WorkerCreated(
    name="lab", aws_region="us-east-1", instance_type="m5.large", ami_id="ami-11111111", created_by="ann"
)
LAUNCH = LaunchRequested(operation_id="create", launch=launch())
REQUESTED = (CREATED, LAUNCH)
PENDING = (*REQUESTED, InstanceLaunched(operation_id="create", instance=instance(InstanceState.PENDING)))
RUNNING = (*REQUESTED, InstanceLaunched(operation_id="create", instance=instance()))
STOPPED = (
    *RUNNING,
    StopRequested(operation_id="stop"),
    InstanceStopping(operation_id="stop", instance=instance(InstanceState.STOPPED)),
)
START = StartRequested(operation_id="the-operation")
STOP = StopRequested(operation_id="the-operation")
TERMINATE = TerminationRequested(operation_id="the-operation")
TAG = TagsUpdateRequested(operation_id="the-operation", tags={"a": "1"})

UNKNOWN = OutcomeUnknownError("no answer")
WAITS = Retry(HANDED_ON)
"""An operation goes on in memory, and its message comes back in case the process dies."""
