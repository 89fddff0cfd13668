"""An import's tags: two fleets may want the same instance, each of which saw that it was nobody's. One gets it."""

from collections.abc import Mapping, Sequence

import pytest

from cml_contracts.events import TagsUpdateRequested, WorkerEvent, WorkerImported
from cml_contracts.instance import CONSENT_TAG, DEPLOYMENT_TAG, WORKER_TAG, Ec2Instance
from cml_workers.domain.decisions import Record
from cml_workers.domain.ledger import Ledger
from cml_workers.domain.messages import OperationFailed, OperationSucceeded, WorkerReport
from cml_workers.domain.operations import adoption_of
from cml_workers.domain.reports import decide_report
from cml_workers.ec2_adapter.instances import SETTLING
from cml_workers.eventstore.worker_streams import load_ledger
from support.given import WORKER, instance
from support.given_adapter import Adapter, Given

FOUND = instance(tags={"Name": "found", CONSENT_TAG: "north"})
FOR_SOUTH = FOUND.model_copy(update={"tags": {"Name": "found", CONSENT_TAG: "south"}})
"""As it was before its owner chose the other fleet."""


def imported(deployment: str) -> Sequence[WorkerEvent]:
    """Its lookup showed nobody's instance."""
    ours = {WORKER_TAG: str(WORKER), DEPLOYMENT_TAG: deployment}
    return (
        WorkerImported(operation_id="import", name="found", instance=FOUND, created_by="ann"),
        TagsUpdateRequested(operation_id=adoption_of("import"), tags=ours),
    )


async def both(given: Given) -> tuple[Adapter, Adapter]:
    """Fleets in one account, each of which has decided to import the instance."""
    north, south = given(*imported("north")).observed(FOUND), given(*imported("south"))
    south.ec2 = north.ec2
    await south.restarted()
    return north, south


async def recorded(adapter: Adapter) -> Ledger:
    """What lifecycle makes of the outcome."""
    reports: list[WorkerReport] = [
        *adapter.outcomes(OperationSucceeded),
        *adapter.outcomes(OperationFailed),
    ]
    for report in reports:
        decision = decide_report(report, (await load_ledger(adapter.store, WORKER)).worker)
        assert isinstance(decision, Record)
        await adapter.happened(*decision.events)
    return await load_ledger(adapter.store, WORKER)


async def is_norths(north: Adapter, south: Adapter) -> None:
    """It alone has the instance, and its import alone has succeeded."""
    await south.passes(SETTLING.total_seconds() + 60)
    assert north.ec2.instances[FOUND.instance_id].tags[DEPLOYMENT_TAG] == "north"
    owner, other = await recorded(north), await recorded(south)
    succeeded, failed = owner.entries["import"].result, other.entries["import"].result
    assert succeeded
    assert failed
    assert (succeeded.outcome, failed.outcome) == ("succeeded", "failed")
    assert owner.worker.instance
    assert owner.worker.tags[DEPLOYMENT_TAG] == "north"
    assert other.worker.instance is None
    assert other.worker.status == "FAILED"


async def test_what_another_fleet_has_adopted_meanwhile_is_left_alone(given: Given):
    north, south = await both(given)
    await north.triggered()
    written = north.called("add_tags")
    await south.triggered()
    await is_norths(north, south)
    assert north.called("add_tags") == written == 1
    (failed,) = south.outcomes(OperationFailed)
    assert "belongs to another deployment already" in failed.problem.detail


async def test_a_consent_that_is_withdrawn_before_the_tags_are_written_is_none(given: Given):
    north = given(*imported("north")).observed(FOUND.model_copy(update={"tags": {"Name": "found"}}))
    await north.triggered()
    await north.passes(SETTLING.total_seconds() + 60)
    assert north.called("add_tags") == 0
    (failed,) = north.outcomes(OperationFailed)
    assert "does not bear the tag cml:import=north" in failed.problem.detail


async def test_what_bears_our_tags_already_needs_no_consent_any_more(given: Given):
    """The call got through, its answer was lost, and the owner has removed the tag since."""
    events = imported("north")
    assert isinstance(events[1], TagsUpdateRequested)
    ours = FOUND.model_copy(update={"tags": {"Name": "found", **events[1].tags}})
    north = given(*events).observed(ours)
    await north.triggered()
    assert north.called("add_tags") == 0
    result = (await recorded(north)).entries["import"].result
    assert result
    assert result.outcome == "succeeded"


async def test_two_fleets_that_adopt_one_instance_at_the_same_moment(
    given: Given, monkeypatch: pytest.MonkeyPatch
):
    """Both look before either writes: EC2 refuses the second, for the policy of its user."""
    north, south = await both(given)
    await north.triggered()
    look = south.ec2.describe_many
    before = [{FOUND.instance_id: FOR_SOUTH}]

    async def earlier(region: str, instance_ids: Sequence[str]) -> Mapping[str, Ec2Instance]:
        return before.pop() if before else await look(region, instance_ids)

    monkeypatch.setattr(south.ec2, "describe_many", earlier)
    await south.triggered()
    assert before == []
    await is_norths(north, south)
    assert north.called("add_tags") == 2


async def test_where_no_policy_refuses_it_what_ec2_shows_afterwards_counts(
    given: Given, monkeypatch: pytest.MonkeyPatch
):
    """The other one's tags came right behind ours."""
    north, south = await both(given)
    write = south.ec2.add_tags

    async def overwritten(region: str, instance_id: str, tags: Mapping[str, str]) -> None:
        await write(region, instance_id, tags)
        theirs = {**FOUND.tags, WORKER_TAG: str(WORKER), DEPLOYMENT_TAG: "north"}
        south.ec2.put(FOUND.model_copy(update={"tags": theirs}))

    monkeypatch.setattr(south.ec2, "add_tags", overwritten)
    south.ec2.put(FOR_SOUTH)
    await south.triggered()
    assert north.called("add_tags") == 1
    monkeypatch.undo()
    await north.triggered()
    await is_norths(north, south)
