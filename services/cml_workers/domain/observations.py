"""What EC2 shows becomes events, and a termination ends what is pending.

Observations are never judged: they are recorded as they are, and marked as drift where nothing that was decided explains them.
"""

from cml_contracts.events import (
    InstanceStateObserved,
    TerminationRequested,
    WorkerEvent,
    WorkerTerminated,
)
from cml_contracts.instance import (
    Ec2Instance,
    InstanceState,
)
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.operations import REVERSIBLE, Failure, intents
from cml_workers.domain.worker import Operation, Worker


def failure_of(operation: Operation, problem: Problem) -> Failure:
    """The event of its failure."""
    return operation.kind.failure(operation_id=operation.command_id, problem=problem)


def end(worker: Worker, operation_id: str | None, warning: str | None = None) -> list[WorkerEvent]:
    """The termination, before which every other open intent gets its outcome."""
    gone = Problem.of(ProblemCode.WORKER_TERMINATED, f"worker {worker.id} was terminated meanwhile")
    return [
        *(failure_of(operation, gone) for operation in worker.pending(*intents(REVERSIBLE))),
        WorkerTerminated(operation_id=operation_id, warning=warning),
    ]


def observe(worker: Worker, instance: Ec2Instance | None) -> list[WorkerEvent]:
    """What is news of its instance; None: EC2 does not know it any more."""
    recorded = worker.instance
    if recorded is None:
        return []
    if instance is None or instance.state is InstanceState.TERMINATED:
        terminations = worker.pending(TerminationRequested)
        return end(worker, terminations[0].command_id if terminations else None)
    seen = InstanceStateObserved(
        instance_state=instance.state,
        instance_status_check=instance.instance_status_check,
        ec2_system_status_check=instance.ec2_system_status_check,
        public_ip=instance.public_ip,
        private_ip=instance.private_ip,
        drift=instance.state is not recorded.state and not _expected(worker, recorded.state, instance.state),
    )
    known = (
        recorded.state,
        recorded.instance_status_check,
        recorded.ec2_system_status_check,
        recorded.public_ip,
        recorded.private_ip,
    )
    now = (
        seen.instance_state,
        seen.instance_status_check,
        seen.ec2_system_status_check,
        seen.public_ip,
        seen.private_ip,
    )
    return [] if known == now else [seen]


def _expected(worker: Worker, before: InstanceState, after: InstanceState) -> bool:
    """Whether what was decided explains that the instance went from one state to another."""
    if (before, after) in (
        (InstanceState.PENDING, InstanceState.RUNNING),
        (InstanceState.STOPPING, InstanceState.STOPPED),
    ):
        return True
    return any(after in operation.kind.explains for operation in worker.operations.values())
