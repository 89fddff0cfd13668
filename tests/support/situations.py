"""Histories that a worker may have behind it, and commands on it, for the rules of the domain."""

from cml_contracts.commands import (
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    UpdateCMLWorkerTags,
)
from cml_contracts.events import (
    InstanceLaunched,
    InstanceStarting,
    InstanceStopping,
    LaunchFailed,
    LaunchRequested,
    StartRequested,
    StopRequested,
    TagsUpdateRequested,
    TerminationRequested,
    WorkerRecreated,
    WorkerTerminated,
)
from cml_contracts.instance import InstanceState
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.creation import launch_token
from cml_workers.domain.messages import InstanceLookup
from support.given import WORKER, created, instance, launch

CREATED = created()
LAUNCH_REQUESTED = LaunchRequested(operation_id="create", launch=launch())
PENDING = InstanceLaunched(operation_id="create", instance=instance(InstanceState.PENDING))
RUNNING = InstanceLaunched(operation_id="create", instance=instance(InstanceState.RUNNING))
QUOTA = Problem(code=ProblemCode.EC2_QUOTA_EXCEEDED, title="quota", detail="no vCPU left")
LAUNCH_FAILED = LaunchFailed(operation_id="create", problem=QUOTA)
RECREATED = WorkerRecreated(**dict(CREATED), generation=2)
LAUNCH_REQUESTED_AGAIN = LaunchRequested(
    operation_id="again", launch=launch(generation=2, client_token=launch_token("default", WORKER, 2))
)
STOP_REQUESTED = StopRequested(operation_id="stop")
STOPPING = InstanceStopping(operation_id="stop", instance=instance(InstanceState.STOPPING))
STOPPED = InstanceStopping(operation_id="stop", instance=instance(InstanceState.STOPPED))
START_REQUESTED = StartRequested(operation_id="start")
STARTING = InstanceStarting(operation_id="start", instance=instance(InstanceState.PENDING))
TERMINATION_REQUESTED = TerminationRequested(operation_id="terminate")
TERMINATED = WorkerTerminated(operation_id="terminate")
TAGS_REQUESTED = TagsUpdateRequested(operation_id="tag", tags={"a": "1"})

LAUNCHING = (CREATED, LAUNCH_REQUESTED)
IS_PENDING = (*LAUNCHING, PENDING)
IS_RUNNING = (*LAUNCHING, RUNNING)
IS_STOPPING = (*IS_RUNNING, STOP_REQUESTED)
IS_STOPPED = (*IS_STOPPING, STOPPED)
IS_STARTING = (*IS_STOPPED, START_REQUESTED)
IS_FAILED = (*LAUNCHING, LAUNCH_FAILED)
LAUNCHING_AGAIN = (*IS_FAILED, RECREATED, LAUNCH_REQUESTED_AGAIN)
IS_TERMINATING = (*IS_RUNNING, TERMINATION_REQUESTED)
IS_TERMINATED = (*IS_TERMINATING, TERMINATED)

START = StartCMLWorker(worker_id=WORKER)
STOP = StopCMLWorker(worker_id=WORKER)
TERMINATE = TerminateCMLWorker(worker_id=WORKER)
TAG = UpdateCMLWorkerTags(worker_id=WORKER, tags={"a": "1"})
STATUS = UpdateCMLWorkerStatus(worker_id=WORKER)
ASKED = InstanceLookup(aws_region="us-east-1", instance_id="i-0123456789abcdef0", seen_revision=2)
