"""What EC2 shows becomes events, and a termination ends what is pending.

Observations are never judged: they are recorded as they are, and marked as drift where nothing that was decided explains them.
"""

from collections.abc import Mapping
from typing import Any

from cml_contracts.events import (
    InstanceStateObserved,
    LaunchRequested,
    TerminationRequested,
    WorkerEvent,
    WorkerTerminated,
)
from cml_contracts.instance import (
    Ec2Instance,
    InstanceState,
)
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.operations import LAUNCH, REVERSIBLE, START, Failure, intents
from cml_workers.domain.worker import Operation, Worker


def failure_of(operation: Operation, problem: Problem) -> Failure:
    """The event of its failure."""
    return operation.kind.failure(operation_id=operation.command_id, problem=problem)


def end(
    worker: Worker,
    operation_id: str | None,
    *,
    warning: str | None = None,
    instance: Ec2Instance | None = None,
) -> list[WorkerEvent]:
    """The termination, before which every other open intent gets its outcome; ``instance``: as EC2 shows it, if it does."""
    gone = Problem.of(ProblemCode.WORKER_TERMINATED, f"worker {worker.id} was terminated meanwhile")
    why: dict[str, Any] = {}
    if instance is not None:
        why = {"reason": instance.reason, **{name: getattr(instance, name) for name in _REASONS}}
    return [
        *(failure_of(operation, gone) for operation in worker.pending(*intents(REVERSIBLE))),
        WorkerTerminated(operation_id=operation_id, warning=warning, **why),
    ]


def observe(worker: Worker, instance: Ec2Instance | None) -> list[WorkerEvent]:
    """What is news of its instance; None: EC2 does not know it any more."""
    recorded = worker.instance
    if recorded is None:
        return []
    if instance is None or instance.state is InstanceState.TERMINATED:
        terminations = worker.pending(TerminationRequested)
        ended = _ended(recorded, instance)
        if ended is not None and not terminations and (died := died_at_birth(worker, ended)):
            return died
        return end(worker, terminations[0].command_id if terminations else None, instance=ended)
    known, shown = _shown(recorded), _shown(instance)
    changed = tuple(name for name in known if known[name] != shown[name])
    if instance.instance_status_check is None:
        # They were not asked for. Those of another state say nothing of this one.
        kept = known if instance.state is recorded.state else dict.fromkeys(_CHECKS)
        shown |= {name: kept[name] for name in _CHECKS}
        changed = tuple(name for name in changed if name not in _CHECKS)
    if not changed:
        return []
    given = {name: shown[name] for name in shown if name not in _WHERE_CHANGED or name in changed}
    return [
        *fallen_back(worker, instance),
        InstanceStateObserved(**given, changed=changed, drift=_is_drift(worker, instance)),
    ]


def _ended(recorded: Ec2Instance, shown: Ec2Instance | None) -> Ec2Instance | None:
    """The instance at its end, with EC2's own reason if it was ever shown: somebody's later call replaces it, and time hides it."""
    was_ending = recorded.state in (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED)
    if not was_ending or not _is_of_ec2(recorded) or (shown is not None and _is_of_ec2(shown)):
        return shown
    first = {name: getattr(recorded, name) for name in _REASONS}
    return (shown or recorded).model_copy(update={"state": InstanceState.TERMINATED, **first})


def _is_of_ec2(instance: Ec2Instance) -> bool:
    return instance.state_reason is not None and instance.state_reason.is_of_ec2


def died_at_birth(worker: Worker, instance: Ec2Instance) -> list[WorkerEvent]:
    """The failures where EC2 ended the instance before it ever ran: of what is pending, and of the launch; else none."""
    launches = [each for each in (worker.beginning, *worker.pending(LaunchRequested)) if each]
    if not launches or launches[0].kind is not LAUNCH:
        return []
    problem = _problem_of(worker, instance, ProblemCode.EC2_INSTANCE_CREATION)
    operations = (*worker.pending(*intents(REVERSIBLE)), launches[0])
    return [failure_of(operation, problem) for operation in operations] if problem else []


def fallen_back(worker: Worker, instance: Ec2Instance) -> list[WorkerEvent]:
    """The failure of a start where EC2 stopped the instance before it ran; else none."""
    start = worker.beginning
    if instance.state is not InstanceState.STOPPED or start is None or start.kind is not START:
        return []
    problem = _problem_of(worker, instance, ProblemCode.EC2_INSTANCE_OPERATION)
    return [failure_of(start, problem)] if problem else []


def _problem_of(worker: Worker, instance: Ec2Instance, code: ProblemCode) -> Problem | None:
    """Why the instance did not come to run, in EC2's words; None if somebody asked for its end."""
    reason = instance.state_reason
    if reason is None or not reason.is_of_ec2:
        return None
    by_ec2 = reason.code.startswith("Server.")
    if "Capacity" in reason.code:
        code = ProblemCode.EC2_CAPACITY
    elif reason.code.endswith("LimitExceeded"):
        code = ProblemCode.EC2_QUOTA_EXCEEDED
    detail = (
        f"instance {instance.instance_id} of worker {worker.id} is {instance.state} and never ran: {reason}"
    )
    return Problem.of(code, detail, retryable=by_ec2)


_CHECKS = ("instance_status_check", "ec2_system_status_check")
_REASONS = ("state_reason", "state_transition_reason")
_WHERE_CHANGED = frozenset({"instance_type", "tags", *_REASONS})
"""What an observation says only of what changed: it is much, or new in it."""


def _shown(instance: Ec2Instance) -> dict[str, Any]:
    """What an observation is about, by the names of its fields."""
    names = InstanceStateObserved.model_fields.keys() & Ec2Instance.model_fields.keys()
    return {"instance_state": instance.state} | {
        name: getattr(instance, name) for name in InstanceStateObserved.model_fields if name in names
    }


def _is_drift(worker: Worker, instance: Ec2Instance) -> bool:
    """Whether nothing that was decided explains what changed; addresses, checks and reasons change by themselves."""
    recorded = worker.instance
    assert recorded is not None  # noqa: S101 - `observe` saw it
    return (
        (instance.state is not recorded.state and not _expected(worker, recorded.state, instance.state))
        or instance.instance_type != recorded.instance_type
        or not _is_requested(worker, recorded.tags, instance.tags)
    )


def _is_requested(worker: Worker, before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Whether pending tag updates explain how the tags differ."""
    requested = {tag for operation in worker.operations.values() for tag in operation.tags.items()}
    return before.keys() <= after.keys() and after.items() - before.items() <= requested


def _expected(worker: Worker, before: InstanceState, after: InstanceState) -> bool:
    """Whether what was decided explains that the instance went from one state to another."""
    if (before, after) in (
        (InstanceState.PENDING, InstanceState.RUNNING),
        (InstanceState.STOPPING, InstanceState.STOPPED),
    ):
        return True
    return any(after in operation.kind.explains for operation in worker.operations.values())
