"""Lists by which tests choose what they look at are complete: each is compared with where its entries come from."""

from typing import get_args

import pytest

from cml_contracts.commands import COMMANDS
from cml_contracts.envelope import EventEnvelope
from cml_contracts.events import (
    EVENTS,
    CommandRejected,
    CommandSkipped,
    ImportFailed,
    InstanceStateObserved,
    Intent,
    OperationDelayed,
    OperationOverdue,
    OperationRefused,
    WorkerCreated,
    WorkerImported,
    WorkerRecreated,
)
from cml_contracts.results import TITLES, OperationResult, ProblemCode
from cml_workers.bus.topology import EC2_TRIGGERS, TRIGGERS_EXCHANGE
from cml_workers.domain.messages import REPORTS, WorkerReport
from cml_workers.ec2_adapter import errors
from ec2_adapter.test_errors import TABLE
from simulation import coverage, scripts
from simulation.planted import PLANTED, SEEN_BY_THE_WALK
from support.invariants import OUTCOMES, SAME_LANE
from support.walk import TRIED, walk
from system.chaos import messages

NO_OUTCOME = {
    *(WorkerCreated, WorkerRecreated, WorkerImported, ImportFailed, InstanceStateObserved),
    *(OperationRefused, OperationDelayed, OperationOverdue, CommandRejected, CommandSkipped),
}
"""Events that are neither an intent nor the outcome of one."""


def name(command_type: str) -> str:
    """``stop`` for ``cml.worker.stop.v1``."""
    return command_type.split(".")[2]


def test_every_command_is_tried_in_every_situation() -> None:
    assert {type(each) for each in TRIED} == set(COMMANDS.values())


def test_every_report_comes_about_in_some_situation() -> None:
    reported = {type(step.message) for step in walk()} - set(COMMANDS.values())
    assert reported == set(get_args(WorkerReport))


def test_every_event_is_an_intent_an_outcome_or_neither() -> None:
    outcomes = {outcome for each in OUTCOMES.values() for outcome in each}
    assert OUTCOMES.keys() == set(get_args(Intent))
    assert outcomes | OUTCOMES.keys() | NO_OUTCOME == set(EVENTS.values())
    assert not outcomes & NO_OUTCOME


def test_a_no_op_depends_on_what_may_be_pending_in_its_lane() -> None:
    assert SAME_LANE.keys() <= COMMANDS.keys()
    assert {intent for lane in SAME_LANE.values() for intent in lane} < OUTCOMES.keys()


def test_the_simulation_sends_and_crosses_every_command() -> None:
    assert coverage.CALLS.keys() == {name(each) for each in COMMANDS}
    assert {type(send.command) for send in scripts.every_command().sends} == set(COMMANDS.values())


def test_every_trigger_is_taken_away_in_a_planted_fault_or_seen_by_the_walk() -> None:
    triggers = {
        EVENTS[each.routing_key] for each in EC2_TRIGGERS.bindings if each.exchange == TRIGGERS_EXCHANGE
    }
    planted = {each.removeprefix("no_trigger_") for each in PLANTED if each.startswith("no_trigger_")}
    assert planted | {each.__name__ for each in SEEN_BY_THE_WALK} == {each.__name__ for each in triggers}


def test_every_problem_of_ec2_has_its_exception_and_every_problem_its_title() -> None:
    exceptions = {each for each in vars(errors) if each.startswith("EC2") and each.endswith("Exception")}
    of_ec2 = {f"{code}Exception" for code in ProblemCode if code.startswith("EC2")}
    assert exceptions - {"EC2Exception"} == of_ec2
    assert TITLES.keys() == set(ProblemCode)
    assert {code for _, code, *_ in TABLE} <= {str(code) for code in ProblemCode}


def test_chaos_breaks_connections_at_every_command_but_those_it_does_not_send() -> None:
    assert {each.TYPE for each in messages.COMMANDS} == COMMANDS.keys() - {"cml.worker.import.v1"}
    assert {each.TYPE for each in messages.EVENTS} <= EVENTS.keys()
    assert {each.TYPE for each in messages.REPORTS} <= REPORTS.keys()


@pytest.mark.parametrize("model", [EventEnvelope, OperationResult])
def test_what_travels_to_others_bears_no_reply_address(model: type) -> None:
    assert "reply" not in model.model_fields  # type: ignore[attr-defined]
