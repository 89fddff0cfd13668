"""What a worker's stream says is to be done at AWS: a plain function of the folded worker."""

from collections.abc import Sequence
from dataclasses import dataclass

from cml_contracts.events import (
    Intent,
    LaunchRequested,
    TagsUpdateRequested,
    TerminationRequested,
)
from cml_contracts.instance import InstanceState
from cml_workers.domain.operations import SWITCHES, intents, is_adoption
from cml_workers.domain.worker import Operation, Worker


@dataclass(frozen=True, slots=True)
class Act:
    """Carry out a pending operation."""

    operation: Operation
    intent: Intent


@dataclass(frozen=True, slots=True)
class Watch:
    """Do nothing but look at the instance until it has settled."""


_UNSETTLED = (InstanceState.PENDING, InstanceState.STOPPING, InstanceState.SHUTTING_DOWN)


def next_actions(worker: Worker) -> Sequence[Act | Watch]:
    """What to do now: at most one power action or a watch, and the oldest tag update.

    A launch comes before everything, a termination before every other power operation: an unresolved launch
    is resolved first, then what was launched is terminated. So does an adoption: before it, the instance is not ours.
    """
    if worker.terminated:
        return []
    launches = worker.pending(LaunchRequested)
    if launches:
        return [_act(launches[0])]
    if worker.instance is None:
        return []
    adoptions = [each for each in worker.pending(TagsUpdateRequested) if is_adoption(each.command_id)]
    if adoptions:
        return [_act(adoptions[0])]
    terminations = worker.pending(TerminationRequested)
    if terminations:
        return [_act(terminations[0])]
    actions: list[Act | Watch] = [_act(each) for each in worker.pending(TagsUpdateRequested)[:1]]
    powers = worker.pending(*intents(SWITCHES))
    if powers:
        actions.append(_act(powers[0]))
    elif worker.instance.state in _UNSETTLED:
        actions.append(Watch())
    return actions


def _act(operation: Operation) -> Act:
    return Act(operation, operation.intent)
