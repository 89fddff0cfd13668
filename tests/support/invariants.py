"""What must be true whatever died and whenever: the promises, checked on what can be seen from outside.

``safety`` holds at every moment; ``quiescence`` once nothing is under way any more.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from cml_contracts.commands import StartCMLWorker, StopCMLWorker, UpdateCMLWorkerTags
from cml_contracts.envelope import EventEnvelope
from cml_contracts.events import (
    CommandRejected,
    CommandSkipped,
    InstanceLaunched,
    InstanceStarting,
    InstanceStateObserved,
    InstanceStopping,
    Intent,
    LaunchFailed,
    LaunchRequested,
    OperationDelayed,
    OperationOverdue,
    OperationRefused,
    StartFailed,
    StartRequested,
    StopFailed,
    StopRequested,
    TagsUpdated,
    TagsUpdateFailed,
    TagsUpdateRequested,
    TerminationFailed,
    TerminationRequested,
    WorkerImported,
    WorkerTerminated,
)
from cml_contracts.instance import DEPLOYMENT_TAG, WORKER_TAG, InstanceState, WorkerStatus
from cml_contracts.queries import OperationView
from cml_contracts.results import OperationResult, ProblemCode
from cml_workers.domain.fold import evolve
from cml_workers.domain.history import Recorded
from cml_workers.domain.ledger import Ledger, entries
from cml_workers.domain.worker import Worker, status_of
from cml_workers.eventstore.names import worker_of
from cml_workers.eventstore.port import StoredEvent
from cml_workers.readmodels.workers.fold import operation_view, worker_row
from support.canaries import CANARY
from support.observed import Observed, SeenInstance

OUTCOMES: Mapping[type[Intent], tuple[type[Any], ...]] = {
    LaunchRequested: (InstanceLaunched, LaunchFailed),
    StartRequested: (InstanceStarting, StartFailed),
    StopRequested: (InstanceStopping, StopFailed),
    TerminationRequested: (WorkerTerminated, TerminationFailed),
    TagsUpdateRequested: (TagsUpdated, TagsUpdateFailed),
}

NOT_RECORDED = (ProblemCode.VALIDATION_FAILED, ProblemCode.DUPLICATE_COMMAND, ProblemCode.UNAUTHORIZED)
"""Why a message is rejected that names no command of a worker, or another one than it says."""

POWER = (StartRequested, StopRequested, TerminationRequested)
SAME_LANE: Mapping[str, tuple[type[Intent], ...]] = {
    StartCMLWorker.TYPE: POWER,
    StopCMLWorker.TYPE: POWER,
    UpdateCMLWorkerTags.TYPE: (TagsUpdateRequested,),
}
"""What must not be pending when such a command is a no-op."""


def violations(seen: Observed, *, quiet: bool = True) -> list[str]:
    """Every broken promise, in words; none when all is well."""
    streams = seen.streams()
    found = list(safety(seen, streams))
    if quiet:
        found += quiescence(seen, streams)
    return found


def safety(seen: Observed, streams: Mapping[UUID, Sequence[Recorded]]) -> Iterator[str]:
    """What holds at every moment."""
    tokens = Counter(each.token for each in seen.instances if each.token)
    yield from (f"1: {n} instances under token {token}" for token, n in tokens.items() if n > 1)
    ours = [each for each in seen.instances if WORKER_TAG in each.tags]
    live = Counter(each.tags[WORKER_TAG] for each in ours if each.state is not InstanceState.TERMINATED)
    yield from (f"1: {n} live instances of worker {worker}" for worker, n in live.items() if n > 1)
    wanted = {
        str(worker_id): sum(isinstance(each.event, LaunchRequested | WorkerImported) for each in history)
        for worker_id, history in streams.items()
    }
    for worker, n in Counter(each.tags[WORKER_TAG] for each in ours).items():
        if n > wanted.get(worker, 0):
            yield f"1: {n} instances of worker {worker}, which asked for {wanted.get(worker, 0)}"
    launched = {each.token: each for each in ours}
    for worker_id, history in streams.items():
        yield from _of_stream(worker_id, history, launched)
    yield from _replies(seen, streams)
    yield from _secrets(seen)


def _secrets(seen: Observed) -> Iterator[str]:
    """The callers of every run have secrets in the headers of their messages."""
    secret = CANARY.encode()
    for stored in seen.events:
        if secret in stored.data or secret in stored.metadata:
            yield f"8: a secret in {stored.stream}@{stored.revision}"
    for command_id, replies in seen.replies.items():
        if any(CANARY in reply.model_dump_json() for reply in replies):
            yield f"8: a secret in a reply to {command_id}"
    for envelope in seen.published or ():
        if CANARY in repr(envelope):
            yield f"8: a secret in {envelope.type} of {envelope.worker_id} as published"


def _of_stream(
    worker_id: UUID, history: Sequence[Recorded], launched: Mapping[str | None, SeenInstance]
) -> Iterator[str]:
    open_intents: dict[str, Intent] = {}
    settled: set[str] = set()
    terminated = False
    launches: list[LaunchRequested] = []
    begun: dict[str, Intent] = {}
    unsuccessful: dict[str, int] = {}
    for place, recorded in enumerate(history):
        event, at = recorded.event, f"worker {worker_id}@{recorded.revision}"
        if recorded.revision != place:
            yield f"4: a gap before {at}"
        if terminated and not isinstance(event, CommandRejected | CommandSkipped):
            yield f"5: {event.TYPE} after the termination, {at}"
        if isinstance(event, LaunchRequested):
            if event.launch.generation != len(launches) + 1:
                yield f"1: a launch of generation {event.launch.generation} after {len(launches)}, {at}"
            if event.launch.client_token in {each.launch.client_token for each in launches}:
                yield f"1: a second launch under a token, {at}"
            others = [each for each in open_intents.values() if each.operation_id != event.operation_id]
            if any(isinstance(each, LaunchRequested) for each in others):
                yield f"1: a launch while another one is open, {at}"
            launches.append(event)
        if isinstance(event, tuple(OUTCOMES)):
            intent: Any = event
            before = open_intents.get(intent.operation_id)
            if isinstance(before, LaunchRequested) and isinstance(intent, LaunchRequested):
                yield from _in_another_place(before, intent, history[:place], launched, at)
            elif before is not None or intent.operation_id in settled:
                yield f"3: operation {intent.operation_id} twice, {at}"
            power = [each for each in open_intents.values() if not isinstance(each, TagsUpdateRequested)]
            if isinstance(event, StartRequested | StopRequested) and power:
                yield f"3: {event.TYPE} while another power operation is open, {at}"
            open_intents[intent.operation_id] = intent
        elif isinstance(event, OperationRefused | OperationDelayed | OperationOverdue):
            if event.operation_id not in open_intents:
                yield f"3: {event.TYPE} without an open intent, {at}"
            if isinstance(event, OperationDelayed):
                if event.attempts <= unsuccessful.get(event.operation_id, 0):
                    yield f"3: {event.attempts} attempts after {unsuccessful[event.operation_id]}, {at}"
                unsuccessful[event.operation_id] = event.attempts
        elif isinstance(event, WorkerTerminated):
            terminated = True
            for operation_id, intent in list(open_intents.items()):
                if not isinstance(intent, TerminationRequested):
                    yield f"3: {intent.TYPE} open at the termination, {at}"
                settled.add(operation_id)
                del open_intents[operation_id]
        elif isinstance(event, tuple(kind for kinds in OUTCOMES.values() for kind in kinds)):
            outcome: Any = event
            answered = open_intents.pop(outcome.operation_id, None)
            if answered is None and isinstance(event, LaunchFailed | StartFailed):
                answered = begun.pop(outcome.operation_id, None)  # it never came to run
            if isinstance(event, InstanceLaunched | InstanceStarting) and answered is not None:
                begun = {outcome.operation_id: answered}
            if answered is None or not isinstance(event, OUTCOMES[type(answered)]):
                yield f"3: {event.TYPE} without its intent, {at}"
            settled.add(outcome.operation_id)
            if isinstance(event, LaunchFailed) and isinstance(answered, LaunchRequested):
                there = launched.get(answered.launch.client_token)
                if there is not None and there.state is not InstanceState.TERMINATED:
                    yield f"7: launch recorded as failed, but {there.instance_id} was launched, {at}"
        elif isinstance(event, InstanceStateObserved):
            if event.instance_state is InstanceState.RUNNING:
                begun.clear()
        elif isinstance(event, CommandRejected | CommandSkipped | WorkerImported):
            lane = SAME_LANE.get(event.command_type) if isinstance(event, CommandSkipped) else None
            if lane and any(isinstance(pending, lane) for pending in open_intents.values()):
                yield f"6: {event.operation_id} was a no-op while another operation was pending, {at}"
            if event.operation_id in settled or event.operation_id in open_intents:
                yield f"3: command {event.operation_id} decided twice, {at}"
            settled.add(event.operation_id)


def _in_another_place(
    before: LaunchRequested,
    intent: LaunchRequested,
    history: Sequence[Recorded],
    launched: Mapping[str | None, SeenInstance],
    at: str,
) -> Iterator[str]:
    """A launch goes on elsewhere only after it was refused, and where it was refused nothing was launched."""
    refusals = [
        each.event.problem.code
        for each in history
        if isinstance(each.event, OperationRefused) and each.event.operation_id == intent.operation_id
    ]
    if not refusals or refusals[-1] is not ProblemCode.EC2_CAPACITY:
        yield f"3: launched elsewhere without a refusal, {at}"
    if len(intent.alternatives) != len(before.alternatives) - 1:
        yield f"3: another place than the next one, {at}"
    if (there := launched.get(before.launch.client_token)) is not None:
        yield f"1: launched elsewhere, but {there.instance_id} was launched, {at}"


def _ledgers(streams: Mapping[UUID, Sequence[Recorded]]) -> list[Ledger]:
    return [Ledger.of(worker_id, history) for worker_id, history in streams.items()]


def _replies(seen: Observed, streams: Mapping[UUID, Sequence[Recorded]]) -> Iterator[str]:
    results = _results(streams)
    for command_id, replies in seen.replies.items():
        if command_id in seen.status_updates:
            continue  # a repetition is answered by what EC2 shows then
        recorded = results.get(command_id)
        if len({reply.model_dump_json() for reply in replies}) > max(1, len(recorded or ())):
            yield f"6: command {command_id} got different replies: {replies}"
        if recorded is None:
            for reply in replies:
                if reply.problem is None or reply.problem.code not in NOT_RECORDED:
                    yield f"6: command {command_id} was answered {reply}, which is not recorded"
            continue
        for reply in replies:
            if not recorded:
                yield f"6: command {command_id} was answered {reply.outcome} before its outcome was recorded"
            elif not any(
                (reply.outcome, reply.problem, plain(reply.data))
                == (each.outcome, each.problem, plain(each.data))
                for each in recorded
            ):
                yield f"6: command {command_id} was answered {reply}, recorded is {recorded}"


def _results(streams: Mapping[UUID, Sequence[Recorded]]) -> dict[str, list[OperationResult]]:
    """What was recorded of each command: none while it is pending, two where what was done never came to run."""
    results: dict[str, list[OperationResult]] = {}
    for worker_id, history in streams.items():
        worker = Worker(worker_id)
        for recorded in history:
            after = evolve(worker, recorded)
            for entry in entries(worker, recorded, after):
                results.setdefault(entry.command_id, []).extend([entry.result] if entry.result else [])
            worker = after
    return results


def quiescence(seen: Observed, streams: Mapping[UUID, Sequence[Recorded]]) -> Iterator[str]:
    """What holds once nothing is under way."""
    ledgers = _ledgers(streams)
    folded = {ledger.worker.id: ledger.worker for ledger in ledgers}
    by_id = {each.instance_id: each for each in seen.instances}
    for instance in seen.instances:
        owner = instance.tags.get(WORKER_TAG)
        if owner is None or DEPLOYMENT_TAG not in instance.tags:
            continue
        if instance.state is InstanceState.TERMINATED:
            continue
        worker = folded.get(UUID(owner))
        if worker is None or worker.terminated or worker.instance is None:
            yield f"2: {instance.instance_id} is {instance.state}, its worker {owner} does not own it"
        elif worker.instance.instance_id != instance.instance_id:
            yield f"2: {instance.instance_id} is {instance.state}, its worker {owner} has another one"
    known = {command_id for ledger in ledgers for command_id in ledger.entries}
    for command_id in seen.confirmed - known - seen.replies.keys() - frozenset(seen.status_updates):
        yield f"3: command {command_id} was taken, and neither recorded nor answered"
    for address, command_id in seen.awaited.items():
        if address not in seen.answered:
            yield f"10: command {command_id} was taken, and {address} got no answer"
    if seen.published is not None:
        yield from _published(seen.events, seen.published)
    for worker in folded.values():
        yield from _at_rest(worker, by_id)
    if seen.rows is not None:
        wanted = {worker.id: row for worker in folded.values() if (row := worker_row(worker))}
        shown = {row.id: row for row in seen.rows}
        for worker_id in wanted.keys() | shown.keys():
            if wanted.get(worker_id) != shown.get(worker_id):
                yield f"4: the read model shows {shown.get(worker_id)}, the stream {wanted.get(worker_id)}"
    if seen.operations is not None:
        recorded, listed = _by_id(_operations(seen.streams()).values()), _by_id(seen.operations)
        for command_id in recorded.keys() | listed.keys():
            if recorded.get(command_id) != listed.get(command_id):
                yield f"4: the read model's operations of {command_id} are not the streams'"


def _by_id(operations: Iterable[OperationView]) -> Mapping[str, Sequence[str]]:
    """What is shown of the operations under each command id, of which each user may have one."""
    found: dict[str, list[str]] = {}
    for each in operations:
        shown = json.dumps(plain(each.model_dump(mode="json")), sort_keys=True)
        found.setdefault(each.command_id, []).append(shown)
    return {command_id: sorted(shown) for command_id, shown in found.items()}


def _operations(streams: Mapping[UUID, Sequence[Recorded]]) -> Mapping[tuple[str, str | None], OperationView]:
    """The operations by command id and user: what was recorded last of each."""
    found: dict[tuple[str, str | None], OperationView] = {}
    for worker_id, history in streams.items():
        worker = Worker(worker_id)
        for recorded in history:
            after = evolve(worker, recorded)
            for entry in entries(worker, recorded, after):
                view = operation_view(entry, after)
                found[view.command_id, entry.requested.user] = view
            worker = after
    return found


def _published(events: Sequence[StoredEvent], published: Sequence[EventEnvelope]) -> Iterator[str]:
    """Every stored event came to the subscribers, and nothing else; repetitions apart, in its stream's order."""
    stored = {each.event_id: each for each in events}
    came: dict[UUID, EventEnvelope] = {}
    for each in published:
        came.setdefault(each.id, each)
    for event_id in stored.keys() - came.keys():
        yield f"4: {stored[event_id].stream}@{stored[event_id].revision} was never published"
    last: dict[UUID, int] = {}
    for each in came.values():
        event = stored.get(each.id)
        if event is None:
            yield f"4: {each.type} of worker {each.worker_id} was published and is not stored"
        elif (each.worker_id, each.revision, each.type, each.data) != (
            worker_of(event.stream),
            event.revision,
            event.type,
            json.loads(event.data),
        ):
            yield f"4: {event.stream}@{event.revision} was published as {each}"
        if each.revision != (expected := last.get(each.worker_id, -1) + 1):
            yield f"4: event {each.revision} of worker {each.worker_id} came where {expected} was next"
        last[each.worker_id] = max(each.revision, last.get(each.worker_id, -1))


def _at_rest(worker: Worker, by_id: Mapping[str, SeenInstance]) -> Iterator[str]:
    for operation in worker.operations.values():
        yield f"3: operation {operation.command_id} of worker {worker.id} is open"
    if worker.instance is None:
        return
    real = by_id.get(worker.instance.instance_id)
    state = InstanceState.TERMINATED if real is None else real.state
    status = WorkerStatus.TERMINATED if worker.terminated else worker.status
    if status is not status_of(state):
        yield f"5: worker {worker.id} is {status}, its instance {worker.instance.instance_id} is {state}"
    if real is not None and state is not InstanceState.TERMINATED and dict(real.tags) != dict(worker.tags):
        yield f"4: worker {worker.id} has tags {dict(worker.tags)}, its instance {dict(real.tags)}"


def plain(data: Any) -> Any:
    """As JSON, without what is None: an absent field, e.g. of a version that did not have it, and an empty one say the same."""
    return json.loads(json.dumps(data), object_hook=_without_none)


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}
