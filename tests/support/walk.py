"""Every situation that the rules lead a worker into: what can be sent and reported is tried in each, until none is new."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import chain

from cml_contracts.commands import (
    CreateCMLWorker,
    ImportCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    UpdateCMLWorkerTags,
    WorkerCommand,
)
from cml_contracts.events import CommandRejected, CommandSkipped, WorkerEvent
from cml_contracts.instance import CONSENT_TAG, InstanceState, StateReason
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.decide import decide
from cml_workers.domain.decisions import Ask, NoChange, Record, Reject
from cml_workers.domain.messages import (
    AttemptDelayed,
    AttemptRefused,
    CommandMessage,
    InstanceObserved,
    LookupResult,
    OperationFailed,
    OperationOutstanding,
    OperationSucceeded,
    WorkerReport,
)
from cml_workers.domain.reports import decide_report
from cml_workers.domain.worker import Worker
from support.given import NOW, POLICY, WORKER, evolved, instance

AT_ONCE = 2
"""Operations that are pending together, at most; more of them lead to nothing else."""
PROBLEM = Problem.of(ProblemCode.EC2_INSTANCE_OPERATION, "refused")
INTERNAL_ERROR = StateReason(code="Server.InternalError", message="Internal error on launch")
TRIED: Sequence[WorkerCommand] = (
    CreateCMLWorker(name="lab", aws_region="us-east-1", created_by="ann", worker_id=WORKER),
    ImportCMLWorker(aws_region="us-east-1", instance_id=instance().instance_id, created_by="ann"),
    StartCMLWorker(worker_id=WORKER),
    StopCMLWorker(worker_id=WORKER),
    TerminateCMLWorker(worker_id=WORKER),
    UpdateCMLWorkerTags(worker_id=WORKER, tags={"a": "1"}),
    UpdateCMLWorkerTags(worker_id=WORKER, tags={"a": "2"}),
    UpdateCMLWorkerStatus(worker_id=WORKER),
)


@dataclass(frozen=True)
class Step:
    """What was appended to a history because of one message; ``rejected``: a command was, for this problem."""

    history: tuple[WorkerEvent, ...]
    worker: Worker
    message: WorkerCommand | WorkerReport
    appended: tuple[WorkerEvent, ...]
    rejected: Problem | None = None


@cache
def walk() -> Sequence[Step]:
    """Every step from every situation, each with one history that leads to it."""
    steps: list[Step] = []
    start = Worker(WORKER)
    seen = {_situation(start)}
    waiting: list[tuple[tuple[WorkerEvent, ...], Worker]] = [((), start)]
    while waiting:
        history, worker = waiting.pop(0)
        for step in chain(_commanded(history, worker), _reported(history, worker)):
            steps.append(step)
            after = evolved(worker, list(step.appended))
            situation = _situation(after)
            if situation not in seen and len(after.operations) <= AT_ONCE:
                seen.add(situation)
                waiting.append(((*history, *step.appended), after))
    return steps


def _situation(worker: Worker) -> object:
    """All that the rules and the next action depend on, but for names and times."""
    return (
        worker.exists,
        worker.terminated,
        worker.launch_problem is not None,
        worker.instance and worker.instance.state,
        worker.beginning and type(worker.beginning.intent),
        tuple(
            (type(operation.intent), operation.refusal is not None)
            for operation in worker.operations.values()
        ),
    )


def _commanded(history: tuple[WorkerEvent, ...], worker: Worker) -> Iterator[Step]:
    for command in TRIED:
        # As EC2 answers before anybody asked, where it has to be asked.
        consent = {CONSENT_TAG: POLICY.deployment} if isinstance(command, ImportCMLWorker) else {}
        tags = {**instance().tags, **consent}
        for looked_up in (
            None,
            LookupResult(),
            *(LookupResult(instance=instance(state, tags=tags)) for state in InstanceState),
        ):
            message = CommandMessage(
                command_id=f"command-{worker.revision + 1}",
                command=command,
                command_type=command.TYPE,
                correlation_id="thread",
            )
            named = {"operation_id": message.command_id, "command_type": command.TYPE}
            decision = decide(
                message, worker, policy=POLICY, now=NOW + timedelta(hours=1), looked_up=looked_up
            )
            match decision:
                case Record(events):
                    yield Step(history, worker, command, tuple(events))
                case NoChange(data):
                    skipped = CommandSkipped.model_validate({**named, "data": data})
                    yield Step(history, worker, command, (skipped,))
                case Reject(problem, outcome):
                    rejected = {**named, "outcome": outcome, "problem": problem}
                    yield Step(history, worker, command, (CommandRejected.model_validate(rejected),), problem)
                case Ask():
                    continue


def _reported(history: tuple[WorkerEvent, ...], worker: Worker) -> Iterator[Step]:
    states = [instance(state) for state in InstanceState]
    states += [
        instance(state, state_reason=INTERNAL_ERROR)
        for state in (InstanceState.STOPPED, InstanceState.TERMINATED)
    ]
    reports: list[WorkerReport] = [
        InstanceObserved(worker_id=WORKER, seen_revision=worker.revision, instance=seen)
        for seen in (None, *states, *(each.model_copy(update={"public_ip": "1.2.3.4"}) for each in states))
    ]
    for operation in worker.operations.values():
        named = {"worker_id": WORKER, "operation_id": operation.command_id}
        reports += [OperationSucceeded.model_validate({**named, "instance": each}) for each in states]
        reports += [kind.model_validate({**named, "problem": PROBLEM}) for kind in _REFUSALS]
        reports += [OperationOutstanding.model_validate(named)]
        attempts = 1 + (operation.delay.attempts if operation.delay else 0)
        delayed = {**named, "problem": PROBLEM, "attempts": attempts, "next_at": NOW}
        reports += [AttemptDelayed.model_validate(delayed)]
    for report in reports:
        decision = decide_report(report, worker)
        if isinstance(decision, Record):
            yield Step(history, worker, report, tuple(decision.events))


_REFUSALS = (AttemptRefused, OperationFailed)
