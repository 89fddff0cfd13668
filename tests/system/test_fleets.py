"""Fleets that share an account: a short run of ``make fleets``, and that its judgement sees what it must."""

from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console

from cml_contracts.instance import DEPLOYMENT_TAG, WORKER_TAG, CMLWorkerInstanceDto, InstanceState
from cml_contracts.queries import WorkerView
from system.fleets.commands import WEIGHTS as COMMANDS
from system.fleets.interference import WEIGHTS as INTERFERENCE
from system.fleets.journal import trespasses
from system.fleets.outcome import Outcome, untruths
from system.fleets.run import live_beside_each_other

WORKER = "22222222-2222-4222-8222-222222222222"
OURS, THEIRS = "i-00000000000000001", "i-00000000000000002"


@pytest.mark.timeout(400)
async def test_two_fleets_in_one_account_show_the_truth_and_touch_only_their_own(tmp_path: Path):
    out = Console(width=200)
    outcome = await live_beside_each_other(tmp_path, seconds=25, seed=12, pause=0.25, out=out)
    out.print(outcome.table())
    assert outcome.violations == []
    assert outcome.unanswered == 0
    assert all(outcome.counts[fleet]["import of the other's"] for fleet in ("north", "south"))
    assert all(outcome.counts[fleet].total() > 40 for fleet in ("north", "south"))
    assert outcome.interference.total() > 20


def launch(instance_id: str, owner: str | None) -> dict[str, Any]:
    tag = {"TagSpecification.1.Tag.1.Key": DEPLOYMENT_TAG, "TagSpecification.1.Tag.1.Value": owner}
    return {"instance_id": instance_id, "form": tag if owner else {}}


def called(caller: str, operation: str, instance_id: str, status: int = 200, **more: Any) -> dict[str, Any]:
    key = "ResourceId.1" if operation == "CreateTags" else "InstanceId.1"
    return {
        "access_key": caller,
        "operation": operation,
        "parameters": {key: instance_id, **more},
        "status": status,
    }


ADOPT: dict[str, Any] = {"Tag.1.Key": DEPLOYMENT_TAG, "Tag.1.Value": "south"}


@pytest.mark.parametrize(
    ("calls", "seen"),
    [
        ([called("north", "StopInstances", OURS)], 0),
        ([called("stranger", "TerminateInstances", OURS)], 0),
        ([called("south", "StopInstances", OURS)], 1),
        ([called("south", "TerminateInstances", OURS, status=400)], 1),
        ([called("south", "StopInstances", OURS, DryRun="true")], 0),
        ([called("south", "CreateTags", OURS, **ADOPT)], 1),
        ([called("south", "CreateTags", THEIRS, **ADOPT), called("south", "StopInstances", THEIRS)], 0),
        ([called("south", "StopInstances", THEIRS), called("south", "CreateTags", THEIRS, **ADOPT)], 1),
        ([called("south", "CreateTags", THEIRS, **ADOPT), called("north", "StopInstances", THEIRS)], 1),
        ([called("south", "CreateTags", THEIRS, 400, **ADOPT)], 1),
    ],
)
def test_who_touches_what_is_not_its_own_is_seen(calls: list[dict[str, Any]], seen: int):
    assert len(list(trespasses(calls, [launch(OURS, "north"), launch(THEIRS, None)]))) == seen


def test_a_launch_for_another_fleet_is_seen():
    form = launch(OURS, "north")["form"]
    call = {"access_key": "south", "operation": "RunInstances", "parameters": form, "status": 200}
    assert len(list(trespasses([call], []))) == 1


TAGS = {DEPLOYMENT_TAG: "north", WORKER_TAG: WORKER, "a": "1"}


def described(**changes: Any) -> dict[str, Any]:
    return {
        "State": {"Name": "running"},
        "InstanceType": "m5.large",
        "PublicIpAddress": "192.0.2.1",
        "PrivateIpAddress": "10.0.0.1",
        "Tags": [{"Key": key, "Value": value} for key, value in TAGS.items()],
        **changes,
    }


def row(**changes: Any) -> WorkerView:
    instance = CMLWorkerInstanceDto(
        id=UUID(WORKER),
        aws_instance_id=OURS,
        aws_region="us-east-1",
        instance_name="lab",
        ami_id="ami-11111111",
        instance_type="m5.large",
        instance_state=InstanceState.RUNNING,
        public_ip="192.0.2.1",
        private_ip="10.0.0.1",
        tags=TAGS,
    )
    fields = {
        "id": WORKER,
        "name": "lab",
        "status": "RUNNING",
        "aws_region": "us-east-1",
        "instance_type": "m5.large",
        "owner": "ann",
        "tags": TAGS,
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z",
        "revision": 3,
        "instance": instance.model_dump(mode="json"),
    }
    return WorkerView.model_validate_json(
        WorkerView.model_validate(fields, strict=False).model_copy(update=changes).model_dump_json()
    )


@pytest.mark.parametrize(
    ("there", "number"),
    [
        (described(), 0),
        (described(State={"Name": "stopped"}), 2),
        (described(State={"Name": "terminated"}), 1),
        (described(InstanceType="m5.xlarge"), 2),
        (described(PublicIpAddress=None), 1),
        (described(PrivateIpAddress="10.0.0.2"), 1),
        (described(Tags=[*described()["Tags"], {"Key": "b", "Value": "1"}]), 2),
        (None, 1),
    ],
)
def test_every_difference_between_a_row_and_its_instance_is_seen(there: dict[str, Any] | None, number: int):
    found = list(untruths("north", [row()], {OURS: there} if there else {}))
    assert len(found) == number, found


def test_an_instance_that_no_worker_has_is_seen():
    assert len(list(untruths("north", [], {OURS: described()}))) == 1
    assert list(untruths("south", [], {OURS: described()})) == []
    assert len(list(untruths("north", [row(instance=None)], {}))) == 1


def test_what_was_never_done_is_listed():
    none: Counter[str] = Counter()
    outcome = Outcome(1, {"north": Counter(dict.fromkeys(COMMANDS, 1))}, {}, none, none, {}, 0, 1.0, [])
    assert outcome.never == [f"nobody interfered by: {kind}" for kind in INTERFERENCE]
