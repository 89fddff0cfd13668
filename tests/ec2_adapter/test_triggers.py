"""Which events trigger the EC2 adapter: those after which it has something to do that it had not before, and no others.

What is needed follows from the rules and the next action alone; the list it is compared with is in the topology.
"""

from collections.abc import Collection, Mapping
from functools import cache
from typing import get_args

import pytest

from cml_contracts.events import WorkerEvent
from cml_workers.bus.topology import EC2_TRIGGERS, TRIGGERS_EXCHANGE
from cml_workers.domain.worker import Worker
from cml_workers.ec2_adapter.next_action import Act, next_actions
from support.given import WORKER, evolved
from support.given_adapter import Given
from support.walk import walk

EVENT_TYPES: tuple[type[WorkerEvent], ...] = get_args(WorkerEvent)
TRIGGERS = [binding.routing_key for binding in EC2_TRIGGERS.bindings if binding.exchange is TRIGGERS_EXCHANGE]


def due(worker: Worker) -> set[object]:
    """What is to be done: an operation, and again once it is refused; a watch on what an event showed."""
    return {
        (action.operation.command_id, action.operation.refusal is not None)
        if isinstance(action, Act)
        else worker.observed_revision
        for action in next_actions(worker)
    }


def newly_due(before: Worker, after: Worker) -> set[object]:
    """Also a watch that something else came before, which has ended."""
    return due(after) - due(before)


@cache
def needed() -> Mapping[str, tuple[WorkerEvent, ...]]:
    """The events that must trigger, each with a history whose last one it is."""
    found: dict[str, tuple[WorkerEvent, ...]] = {}
    for step in walk():
        worker, history = step.worker, step.history
        for event in step.appended:
            before, worker = worker, evolved(worker, [event])
            history = (*history, event)
            if newly_due(before, worker):
                found.setdefault(event.TYPE, history)
    return found


def wrong(triggers: Collection[str]) -> set[str]:
    """What is left out, and what is too much."""
    return set(triggers) ^ set(needed())


def test_every_event_happens_in_the_histories_that_are_looked_at():
    assert {type(event) for step in walk() for event in step.appended} == set(EVENT_TYPES)


def test_what_makes_something_due_triggers_and_nothing_else_does():
    assert wrong(TRIGGERS) == set()
    assert len(TRIGGERS) == len(set(TRIGGERS))


@pytest.mark.parametrize("event", EVENT_TYPES, ids=lambda event: event.__name__)
def test_each_one_left_out_or_added_is_seen(event: type[WorkerEvent]):
    assert wrong(set(TRIGGERS) ^ {event.TYPE}) == {event.TYPE}


@pytest.mark.parametrize("trigger", sorted(TRIGGERS))
async def test_the_adapter_does_something_when_it_is_triggered(given: Given, trigger: str):
    """What is due here is what the adapter itself takes for due: at the least it looks at EC2, sooner or later."""
    adapter = given()
    await adapter.happened(*needed()[trigger])
    await adapter.passes(3600)  # another leader may have attempted it since
    worker = evolved(Worker(WORKER), list(needed()[trigger]))
    if worker.instance is not None:
        adapter.observed(worker.instance)
    await adapter.triggered(revision=worker.revision)
    await adapter.passes(2)
    assert adapter.ec2.calls
