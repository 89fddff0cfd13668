"""Launching: one instance for each launch, whatever EC2 answers and whoever dies."""

import asyncio
from datetime import timedelta

import pytest

from cml_contracts.events import (
    InstanceLaunched,
    LaunchFailed,
    LaunchRequested,
    OperationRefused,
    WorkerRecreated,
)
from cml_contracts.instance import DEPLOYMENT_TAG, WORKER_TAG, InstanceState
from cml_workers.bus.port import Ack
from cml_workers.domain.creation import launch_token
from cml_workers.domain.messages import AttemptDelayed, AttemptRefused, OperationFailed, OperationSucceeded
from cml_workers.ec2_adapter.errors import (
    EC2AuthenticationException,
    EC2CapacityException,
    EC2Exception,
    EC2InvalidParameterException,
    EC2QuotaExceededException,
    EC2ThrottledException,
    Remedy,
)
from support.given import WORKER, instance, launch
from support.given_adapter import Given
from support.histories import CREATED, REQUESTED, UNKNOWN, WAITS

NO_QUOTA = EC2QuotaExceededException("no vCPU")
NOT_ALLOWED = EC2AuthenticationException("not allowed")


async def test_a_launch_is_one_call_and_is_reported_with_its_instance(given: Given):
    adapter = await given(*REQUESTED).then_calls("launch")
    (report,) = adapter.reports(OperationSucceeded)
    assert report.operation_id == "create"
    assert report.instance
    assert report.instance.state is InstanceState.PENDING


async def test_repeated_and_stale_triggers_launch_once(given: Given):
    adapter = given(*REQUESTED)
    await adapter.triggered()
    await asyncio.gather(*(adapter.triggered() for _ in range(5)))
    assert len(adapter.ec2.instances) == 1
    await adapter.happened(InstanceLaunched(operation_id="create", instance=instance()))
    assert await adapter.triggered(revision=1) == Ack()
    assert adapter.ec2.calls == ["launch"]


async def test_an_unknown_launch_is_repeated_under_its_token_until_it_is_known(given: Given):
    adapter = given(*REQUESTED).refusing("launch", UNKNOWN, after=True, times=4)
    adapter.ec2.hidden.add("i-00000000000000000")
    for _ in range(3):
        assert await adapter.triggered() == WAITS
    adapter.ec2.hidden.clear()
    assert await adapter.triggered() == Ack()
    assert len(adapter.ec2.instances) == 1
    assert adapter.reports(OperationFailed) == []


@pytest.mark.parametrize(
    "error",
    [
        EC2InvalidParameterException("bad type"),
        NO_QUOTA,
        EC2CapacityException("no capacity", retryable=True),
        NOT_ALLOWED,
    ],
)
async def test_a_definite_error_fails_the_launch_at_once(given: Given, error: EC2Exception):
    adapter = given(*REQUESTED).refusing("launch", error)
    assert await adapter.triggered() == Ack()
    (report,) = adapter.reports(OperationFailed)
    assert report.problem == error.problem


AGAIN = (
    *REQUESTED,
    LaunchFailed(operation_id="create", problem=NO_QUOTA.problem),
    WorkerRecreated(**dict(CREATED), generation=2),
    LaunchRequested(
        operation_id="again", launch=launch(generation=2, client_token=launch_token("default", WORKER, 2))
    ),
)


async def test_a_worker_that_is_created_again_is_launched_under_its_new_token(given: Given):
    adapter = await given(*AGAIN).then_calls("list_instances", "launch")
    (report,) = adapter.reports(OperationSucceeded)
    assert report.operation_id == "again"
    assert list(adapter.ec2.tokens) == [launch_token("default", WORKER, 2)]


async def test_a_late_call_of_the_launch_that_failed_was_a_second_instance(given: Given):
    """What it launched is adopted, and nothing is launched beside it."""
    late = instance(InstanceState.PENDING, instance_id="i-0aaaaaaaaaaaaaaaa")
    adapter = await given(*AGAIN).observed(late).then_calls("list_instances")
    (report,) = adapter.reports(OperationSucceeded)
    assert report.instance
    assert report.instance.instance_id == late.instance_id


async def test_nothing_is_launched_beside_an_instance_that_is_about_to_end(given: Given):
    ending = instance(InstanceState.SHUTTING_DOWN, instance_id="i-0aaaaaaaaaaaaaaaa")
    adapter = given(*AGAIN).observed(ending)
    assert await adapter.triggered() == WAITS
    assert adapter.called("launch") == 0
    adapter.ec2.settle()
    await adapter.passes(2)
    assert adapter.called("launch") == 1


async def test_whose_tags_are_anothers_and_what_has_ended_is_not_what_was_left_behind(given: Given):
    others = {**instance().tags, DEPLOYMENT_TAG: "other"}
    adapter = given(*AGAIN).observed(
        instance(InstanceState.TERMINATED, instance_id="i-0aaaaaaaaaaaaaaaa"),
        instance(instance_id="i-0bbbbbbbbbbbbbbbb", tags=others),
    )
    await adapter.then_calls("list_instances", "launch")


async def test_nothing_is_launched_again_while_nobody_can_look_what_was_left_behind(given: Given):
    adapter = given(*AGAIN).refusing("list_instances", UNKNOWN)
    assert await adapter.triggered() == WAITS
    assert adapter.called("launch") == 0
    await adapter.passes(2)
    assert adapter.called("launch") == 1


async def test_an_unknown_launch_of_a_later_generation_is_adopted_when_it_shows(given: Given):
    adapter = given(*AGAIN).refusing("launch", UNKNOWN, after=True)
    assert await adapter.triggered() == WAITS
    await adapter.passes(2)
    (report,) = adapter.reports(OperationSucceeded)
    assert report.instance
    assert len(adapter.ec2.instances) == adapter.called("launch") == 1


async def test_a_definite_error_after_an_unknown_one_is_no_failure_if_the_launch_got_through(given: Given):
    adapter = given(*REQUESTED).refusing("launch", UNKNOWN, after=True)
    assert await adapter.triggered() == WAITS
    adapter.refusing("launch", EC2AuthenticationException("not allowed any more"))
    assert await adapter.triggered() == Ack()
    assert len(adapter.reports(OperationSucceeded)) == 1


async def test_a_definite_error_after_an_unknown_one_waits_while_the_launch_may_show(given: Given):
    adapter = given(*REQUESTED).refusing("launch", UNKNOWN)
    await adapter.triggered()
    adapter.refusing("launch", NO_QUOTA)
    assert await adapter.triggered() == WAITS
    await adapter.passes(4 * 60)
    assert adapter.reports(OperationFailed) == []
    await adapter.passes(90)
    assert len(adapter.reports(OperationFailed)) == 1


@pytest.mark.parametrize("how", ["redelivered", "restarted"])
async def test_what_a_dead_process_may_have_launched_is_not_declared_failed(given: Given, how: str):
    adapter = given(*REQUESTED).refusing("launch", NO_QUOTA)
    await adapter.happened(*REQUESTED)
    if how == "restarted":
        await adapter.passes(1)
        await adapter.restarted()
    adapter._events = ()
    assert await adapter.triggered(redelivered=how == "redelivered") == WAITS
    assert adapter.reports(OperationFailed) == []


async def test_a_mismatch_adopts_what_was_launched_under_the_token(given: Given):
    adapter = given(*REQUESTED)
    await adapter.ec2.launch(launch(instance_type="m5.xlarge"))
    assert await adapter.triggered() == Ack()
    (report,) = adapter.reports(OperationSucceeded)
    assert report.instance
    assert report.instance.instance_type == "m5.xlarge"


@pytest.mark.parametrize("tag", [DEPLOYMENT_TAG, WORKER_TAG])
async def test_what_another_deployment_or_worker_launched_is_not_adopted(given: Given, tag: str):
    adapter = given(*REQUESTED)
    await adapter.ec2.launch(launch(tags={**launch().tags, tag: "another's"}))
    assert await adapter.triggered() == WAITS
    assert len(adapter.reports(AttemptRefused)) == 1
    await adapter.passes(3600)
    assert len(adapter.outcomes(OperationFailed)) == 1
    assert adapter.reports(OperationSucceeded) == []


async def test_a_launch_that_was_terminated_meanwhile_is_reported_so(given: Given):
    adapter = given(*REQUESTED)
    launched = await adapter.ec2.launch(launch())
    adapter.observed(launched.model_copy(update={"state": InstanceState.TERMINATED}))
    assert await adapter.triggered() == Ack()
    (report,) = adapter.reports(OperationSucceeded)
    assert report.instance
    assert report.instance.state is InstanceState.TERMINATED


async def test_throttling_never_fails_an_operation(given: Given):
    throttled = EC2ThrottledException("slow down", remedy=Remedy.RETRY)
    adapter = given(*REQUESTED).refusing("launch", throttled, times=1000)
    assert await adapter.triggered() == WAITS
    await adapter.passes(2 * 3600)
    assert {each.type for each in adapter.outbox.sent} == {AttemptDelayed.TYPE}
    adapter.ec2.faults.clear()
    await adapter.passes(60)
    assert len(adapter.reports(OperationSucceeded)) == 1


@pytest.mark.parametrize(
    ("remedy", "patience"),
    [
        (Remedy.RETRY_BRIEFLY, timedelta(minutes=2)),
        (Remedy.REFRESH, timedelta(minutes=1)),
        (Remedy.DESCRIBE, timedelta(minutes=10)),
    ],
)
async def test_some_errors_are_definite_after_a_while(given: Given, remedy: Remedy, patience: timedelta):
    error = EC2InvalidParameterException("not yet", remedy=remedy)
    adapter = given(*REQUESTED).refusing("launch", error, times=1000)
    assert await adapter.triggered() == WAITS
    await adapter.passes(patience.total_seconds() - 20)
    assert adapter.reports(AttemptRefused) == []
    await adapter.passes(40)
    assert len(adapter.outcomes(AttemptRefused)) == 1
    assert set(adapter.ec2.refreshed) == ({"us-east-1"} if remedy is Remedy.REFRESH else set())


async def test_a_second_generation_under_one_operation_calls_ec2_again(given: Given):
    adapter = given(*REQUESTED).refusing("launch", EC2CapacityException("no capacity"))
    await adapter.triggered()
    assert len(adapter.reports(OperationFailed)) == 1
    again = launch(generation=2, client_token="another", instance_type="m5.xlarge")
    await adapter.happened(LaunchRequested(operation_id="create", launch=again))
    assert await adapter.triggered() == Ack()
    assert adapter.called("launch") == 2
    (done,) = adapter.reports(OperationSucceeded)
    assert done.instance
    assert done.instance.instance_type == "m5.xlarge"


async def test_after_a_refusal_nobody_tries_again_and_what_another_process_launched_is_adopted(given: Given):
    adapter = given(*REQUESTED).refusing("launch", UNKNOWN, after=True)
    assert await adapter.triggered() == WAITS
    await adapter.happened(OperationRefused(operation_id="create", problem=NO_QUOTA.problem))
    await adapter.restarted()
    await adapter.passes(1)
    assert await adapter.triggered() == Ack()
    assert adapter.called("launch") == 1
    assert len(adapter.reports(OperationSucceeded)) == 1


async def test_an_uncertain_operation_does_not_fail_before_it_was_looked_at(given: Given):
    adapter = (
        given(*REQUESTED).refusing("launch", NOT_ALLOWED).refusing("list_instances", NOT_ALLOWED, times=1000)
    )
    assert await adapter.triggered(redelivered=True) == WAITS
    await adapter.passes(3600)
    assert adapter.reports(OperationFailed) == []
    adapter.ec2.faults.clear()
    await adapter.passes(60)
    assert len(adapter.outcomes(OperationFailed)) == 1
