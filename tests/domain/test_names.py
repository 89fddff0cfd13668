"""The name of a worker is the Name tag of its instance, as EC2 shows it."""

import pytest

from cml_contracts.events import (
    InstanceStateObserved,
    TagsUpdated,
    TagsUpdateRequested,
    WorkerEvent,
    WorkerImported,
    WorkerTerminated,
)
from cml_contracts.instance import InstanceState
from cml_workers.domain.fold import evolve
from cml_workers.domain.worker import Worker
from cml_workers.readmodels.workers.fold import worker_row
from support.given import NOW, WORKER, created, instance, recorded
from support.situations import IS_RUNNING

RUNNING = InstanceState.RUNNING


def folded(*events: WorkerEvent) -> Worker:
    worker = Worker(WORKER)
    for event in events:
        worker = evolve(worker, recorded(worker, event, NOW, "cause"))
    return worker


def name(*events: WorkerEvent) -> str:
    """As view and list show it, and as the instance's data say."""
    row = worker_row(folded(*events))
    assert row is not None
    assert row.instance is None or row.instance.instance_name == row.name
    return row.name


def retagged(**tags: str) -> InstanceStateObserved:
    """Somebody else wrote these, and no others."""
    return InstanceStateObserved(instance_state=RUNNING, tags=tags, changed=("tags",), drift=True)


def test_a_tag_update_of_the_name_renames_the_worker():
    given = folded(*IS_RUNNING).given_name
    renamed = (
        *IS_RUNNING,
        TagsUpdateRequested(operation_id="t", tags={"Name": "new"}),
        TagsUpdated(operation_id="t", tags={"Name": "new"}),
    )
    assert name(*renamed[:-1]) == name(*IS_RUNNING) == given
    assert name(*renamed) == "new"


def test_a_name_that_somebody_else_wrote_renames_the_worker_when_it_is_observed():
    assert name(*IS_RUNNING, retagged(Name="theirs", a="1")) == "theirs"


@pytest.mark.parametrize("tags", [{}, {"Name": ""}, {"name": "other key"}])
def test_without_a_name_tag_the_worker_has_the_name_that_it_was_given(tags: dict[str, str]):
    given = folded(*IS_RUNNING).given_name
    assert name(*IS_RUNNING, retagged(Name="theirs"), retagged(**tags)) == given


def test_a_name_that_the_caller_gave_as_a_tag_is_the_name_from_the_start():
    assert name(created(tags={"Name": "tagged"})) == "tagged"


def test_an_imported_instance_without_a_name_is_named_by_its_id_until_it_gets_one():
    bare = instance(RUNNING, tags={})
    imported = WorkerImported(operation_id="import", name=bare.instance_id, instance=bare, created_by="ann")
    assert name(imported) == instance().instance_id
    assert name(imported, retagged(Name="found")) == "found"


def test_an_observation_without_tags_leaves_the_name():
    stopped = InstanceStateObserved(instance_state=InstanceState.STOPPED, changed=("instance_state",))
    assert name(*IS_RUNNING, retagged(Name="theirs"), stopped) == "theirs"


def test_a_terminated_worker_keeps_its_last_name():
    assert name(*IS_RUNNING, retagged(Name="theirs"), WorkerTerminated(), retagged(Name="late")) == "theirs"
