"""Tag updates: written and read back, one after another, and written again where a late call undid them."""

from collections.abc import Mapping, Sequence

import pytest

from cml_contracts.events import InstanceLaunched, InstanceStateObserved, TagsUpdated, TagsUpdateRequested
from cml_contracts.instance import Ec2Instance, InstanceState
from cml_workers.bus.port import Ack, Message, Retry
from cml_workers.domain.messages import (
    AttemptDelayed,
    InstanceObserved,
    OperationFailed,
    OperationSucceeded,
    Reminder,
)
from cml_workers.ec2_adapter.errors import EC2Error, EC2TagOperationException
from cml_workers.ec2_adapter.instances import SETTLING
from cml_workers.ec2_adapter.recheck import LATEST
from cml_workers.ec2_adapter.tenure import FRESH
from support.buses import delivered
from support.given import NOW, instance
from support.given_adapter import Adapter, Given, a_reminder
from support.histories import REQUESTED, RUNNING, TAG, UNKNOWN, WAITS

OLD = TAG.model_copy(update={"tags": {"a": "old"}})
AFTER_BOTH = {**instance().tags, "a": "new"}
SUPERSEDED = (
    TagsUpdated(operation_id="the-operation", tags={**instance().tags, "a": "old"}),
    TagsUpdateRequested(operation_id="next", tags={"a": "new"}),
    TagsUpdated(operation_id="next", tags=AFTER_BOTH),
)
"""What is recorded by the time that a call for the old tag comes late."""


def shown(adapter: Adapter) -> Mapping[str, str]:
    return adapter.ec2.instances[instance().instance_id].tags


async def test_a_tag_update_is_two_calls_and_one_read_from_request_to_outcome(given: Given):
    adapter = await given(*RUNNING, TAG).observed(instance()).then_calls("add_tags", "describe_many")
    (report,) = adapter.reports(OperationSucceeded)
    assert report.instance
    assert report.instance.tags == {**instance().tags, "a": "1"}
    reads = adapter.store.reads
    await adapter.happened(TagsUpdated(operation_id="the-operation", tags=report.instance.tags))
    message = await adapter.trigger()
    adapter.store.reads = 0
    assert reads
    assert await adapter.handles(message) == Ack()
    assert adapter.store.reads == 0
    assert adapter.ec2.calls == ["add_tags", "describe_many"]


async def test_tag_updates_go_one_after_the_other_each_triggered_by_the_outcome_before(given: Given):
    first, second = (TagsUpdateRequested(operation_id=name, tags={"a": name}) for name in ("one", "two"))
    adapter = given(*RUNNING, first, second).observed(instance())
    await adapter.triggered()
    assert [report.operation_id for report in adapter.reports(OperationSucceeded)] == ["one"]
    await adapter.happened(TagsUpdated(operation_id="one", tags={"a": "one"}))
    await adapter.triggered()
    assert adapter.reports(OperationSucceeded)[-1].operation_id == "two"
    assert shown(adapter)["a"] == "two"


async def test_tags_that_are_not_visible_yet_are_awaited(given: Given, monkeypatch: pytest.MonkeyPatch):
    adapter = given(*RUNNING, TAG).observed(instance())
    describe = adapter.ec2.describe_many
    lag = [instance()]

    async def lagging(region: str, instance_ids: Sequence[str]) -> Mapping[str, Ec2Instance]:
        return {lag[0].instance_id: lag.pop()} if lag else await describe(region, instance_ids)

    monkeypatch.setattr(adapter.ec2, "describe_many", lagging)
    assert await adapter.triggered() == WAITS
    assert adapter.reports(OperationSucceeded) == []
    await adapter.passes(2)
    assert len(adapter.reports(OperationSucceeded)) == 1


async def test_tags_of_an_instance_that_ended_outside_fail(given: Given):
    """EC2 takes them, whether or not it shows them."""
    adapter = given(*RUNNING, TAG).observed(instance(InstanceState.TERMINATED))
    await adapter.triggered()
    await adapter.passes(2 * SETTLING.total_seconds())
    (failed,) = adapter.outcomes(OperationFailed)
    assert "terminated" in failed.problem.detail
    (seen,) = adapter.outcomes(InstanceObserved)
    assert seen.instance
    assert seen.instance.state is InstanceState.TERMINATED


@pytest.mark.parametrize("error", [None, UNKNOWN, EC2TagOperationException("limit")])
async def test_tags_that_a_call_changed_after_another_leader_went_on_are_written_again(
    given: Given, monkeypatch: pytest.MonkeyPatch, error: EC2Error | None
):
    """A process that is paused in its call is given up; the next update is done before the call is."""
    adapter = given(*RUNNING, OLD).observed(instance())
    add_tags = adapter.ec2.add_tags

    async def paused(region: str, instance_id: str, tags: Mapping[str, str]) -> None:
        await adapter.happened(*SUPERSEDED)
        adapter.clock.at += FRESH
        if error is not None:
            adapter.refusing("add_tags", error, after=True)
        await add_tags(region, instance_id, tags)

    monkeypatch.setattr(adapter.ec2, "add_tags", paused)
    assert await adapter.triggered() == WAITS
    assert shown(adapter)["a"] == "old"
    assert adapter.reports(OperationSucceeded) == []
    (published,) = (each for each in adapter.published if each.type != AttemptDelayed.TYPE)
    assert published.type == Reminder.TYPE

    await adapter.restarted()  # the leader
    monkeypatch.setattr(adapter.ec2, "add_tags", add_tags)
    recheck = delivered(published)
    assert await adapter.handles(recheck) == Retry()
    assert shown(adapter)["a"] == "new"
    written = adapter.called("add_tags")
    assert await adapter.handles(recheck) == Retry()
    await adapter.passes(SETTLING.total_seconds())
    assert await adapter.handles(recheck) == Ack()
    assert adapter.called("add_tags") == written


@pytest.mark.parametrize("ours", [True, False], ids=["not answered to us", "made by another one"])
async def test_tags_that_a_call_without_an_answer_may_still_change_are_compared(given: Given, ours: bool):
    """The recheck is published before the report: whoever dies in between, it is there."""
    adapter = given(*RUNNING, OLD).observed(instance())
    if ours:
        adapter.refusing("add_tags", UNKNOWN)
        assert await adapter.triggered() == WAITS
        await adapter.passes(2)
    else:
        assert await adapter.triggered(redelivered=True) == Ack()
    recheck, report = (each for each in adapter.published if each.type != AttemptDelayed.TYPE)
    assert (recheck.type, report.type) == (Reminder.TYPE, OperationSucceeded.TYPE)
    await adapter.happened(*SUPERSEDED)
    adapter.observed(instance(tags={**AFTER_BOTH, "a": "old"}))  # the call is carried out at last
    await adapter.restarted()
    assert await adapter.handles(delivered(recheck)) == Retry()
    assert shown(adapter) == AFTER_BOTH
    await adapter.passes(SETTLING.total_seconds())
    assert await adapter.handles(delivered(recheck)) == Ack()


def a_recheck(seconds_ago: float = 0) -> Message:
    return a_reminder(recheck_since=NOW.fromtimestamp(NOW.timestamp() - seconds_ago, tz=NOW.tzinfo))


async def test_a_recheck_while_ec2_does_not_answer_waits_and_publishes_nothing(given: Given):
    adapter = given().observed(instance()).refusing("describe_many", UNKNOWN)
    await adapter.happened(*RUNNING)
    assert await adapter.handles(a_recheck()) == Retry()
    assert adapter.outbox.sent == []


async def test_rechecked_tags_wait_for_the_update_that_is_pending(given: Given):
    adapter = given().observed(instance())
    await adapter.happened(*RUNNING, TAG)
    recheck = a_recheck(SETTLING.total_seconds())
    assert await adapter.handles(recheck) == Retry()
    (report,) = adapter.reports(OperationSucceeded)
    assert report.instance
    await adapter.happened(TagsUpdated(operation_id="the-operation", tags=dict(report.instance.tags)))
    assert await adapter.handles(recheck) == Ack()
    assert adapter.called("add_tags") == 1


async def test_a_recheck_of_tags_that_cannot_be_written_ends(given: Given):
    """It would come again every half minute, without end."""
    adapter = given().observed(instance())
    adapter.refusing("add_tags", EC2TagOperationException("TagLimitExceeded"))
    await adapter.happened(*RUNNING, OLD, *SUPERSEDED)
    assert await adapter.handles(a_recheck(SETTLING.total_seconds())) == Ack()
    assert shown(adapter) == instance().tags


THEIRS = {
    "a tag that AWS removed": (
        {"aws:cloudformation:stack-name": "gone", **instance().tags},
        instance().tags,
    ),
    "a tag that somebody changed": (instance().tags, {**instance().tags, "Name": "theirs"}),
}


@pytest.mark.parametrize(("recorded", "there"), THEIRS.values(), ids=THEIRS)
async def test_a_recheck_reports_what_others_did_to_tags_and_does_not_undo_it(
    given: Given, recorded: Mapping[str, str], there: Mapping[str, str]
):
    adapter = given().observed(instance(tags=there))
    await adapter.happened(
        *REQUESTED, InstanceLaunched(operation_id="create", instance=instance(tags=recorded))
    )
    assert await adapter.handles(a_recheck(SETTLING.total_seconds())) == Retry()
    (seen,) = adapter.reports(InstanceObserved)
    assert seen.instance
    assert seen.instance.tags == there
    await adapter.happened(
        InstanceStateObserved(instance_state=InstanceState.RUNNING, tags=there, changed=("tags",), drift=True)
    )
    assert await adapter.handles(a_recheck(SETTLING.total_seconds())) == Ack()
    assert shown(adapter) == there
    assert adapter.called("add_tags") == 0


async def test_a_late_call_is_undone_also_where_somebody_has_seen_its_effect(given: Given):
    """A status update recorded the older tag in between: what was written last counts all the same."""
    late = {**AFTER_BOTH, "a": "old"}
    adapter = given().observed(instance(tags=late))
    seen = InstanceStateObserved(
        instance_state=InstanceState.RUNNING, tags=late, changed=("tags",), drift=True
    )
    await adapter.happened(*RUNNING, OLD, *SUPERSEDED, seen)
    assert await adapter.handles(a_recheck(SETTLING.total_seconds())) == Retry()
    assert shown(adapter) == AFTER_BOTH


async def test_a_tag_that_was_written_long_ago_is_not_ours_to_restore(given: Given):
    there = {**AFTER_BOTH, "a": "theirs"}
    adapter = given().observed(instance(tags=there))
    await adapter.happened(*RUNNING, OLD, *SUPERSEDED)
    await adapter.passes(LATEST.total_seconds() + 1)
    assert await adapter.handles(a_recheck(SETTLING.total_seconds())) == Retry()
    assert shown(adapter) == there
