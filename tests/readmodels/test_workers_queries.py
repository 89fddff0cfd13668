"""Queries on workers and operations, as their callers see them."""

import base64
import json
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from cml_contracts.events import LaunchFailed, TagsUpdated, TerminationRequested, WorkerTerminated
from cml_contracts.instance import WorkerStatus
from cml_contracts.queries import GetCMLWorker, GetOperation, ListCMLWorkers, WorkerPage, WorkerView
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.ownership import Viewer
from cml_workers.readmodels.model import Found
from cml_workers.readmodels.workers.fold import worker_row
from cml_workers.readmodels.workers.queries import list_workers
from support.given import NOW
from support.projecting import CREATED, LAUNCH, LAUNCHED, TAGS, Projected

PROBLEM = Problem.of(ProblemCode.EC2_CAPACITY, "no capacity")
FORGED = [
    base64.urlsafe_b64encode(json.dumps(["created_at", False, text, str(UUID(int=0))]).encode()).decode()
    for text in ("\0", "\ud800")
]
"""Cursors as they are handed out, with a text that no database takes."""


async def test_a_worker_is_answered_as_it_is_stored(projected: Projected):
    (worker_id,) = await projected.workers(1, CREATED, LAUNCH, LAUNCHED)
    await projected.catch_up()
    result = await projected.ask(GetCMLWorker(worker_id=worker_id))
    assert (result.outcome, result.worker_id, result.problem) == ("succeeded", worker_id, None)
    assert WorkerView.model_validate(result.data) == worker_row(await projected.folded(worker_id))


async def test_an_operation_is_answered_with_its_worker(projected: Projected):
    (worker_id,) = await projected.workers(1, CREATED, LAUNCH, LAUNCHED, *TAGS)
    await projected.catch_up()
    result = await projected.ask(GetOperation(command_id=f"tag/{worker_id}"))
    assert (result.worker_id, result.data["result"]["outcome"]) == (worker_id, "succeeded")


async def test_what_is_not_there_is_said_to_be_so_and_may_come(projected: Projected):
    for query, code in (
        (GetCMLWorker(worker_id=uuid4()), ProblemCode.WORKER_NOT_FOUND),
        (GetOperation(command_id="x"), ProblemCode.OPERATION_NOT_FOUND),
    ):
        result = await projected.ask(query)
        assert (result.outcome, result.data) == ("rejected", None)
        assert result.problem is not None
        assert (result.problem.code, result.problem.retryable) == (code, True)


async def test_no_workers_are_an_empty_page(projected: Projected):
    result = await projected.ask(ListCMLWorkers())
    assert result.data == {"workers": [], "next_cursor": None}


async def test_lists_are_filtered_by_everything_and_all_at_once(projected: Projected):
    for name, region, owner, tags in (
        ("lab_1", "us-east-1", "ann", {"course": "ccna"}),
        ("lab%2", "us-east-1", "ben", {"course": "ccnp"}),
        ("Other", "eu-west-1", "ann", {"Course": "x"}),
    ):
        changes = {"name": name, "aws_region": region, "created_by": owner, "tags": tags}
        await projected.record(uuid4(), CREATED.model_copy(update=changes))
    await projected.catch_up()
    assert await projected.names(sort="name") == ["Other", "lab%2", "lab_1"]
    assert await projected.names(aws_region="eu-west-1") == ["Other"]
    assert await projected.names(owner="ann", sort="name") == ["Other", "lab_1"]
    assert await projected.names(tag="course", sort="name") == ["lab%2", "lab_1"]
    assert await projected.names(tag="course=ccnp") == ["lab%2"]
    assert await projected.names(name_part="LAB", sort="name", descending=True) == ["lab_1", "lab%2"]
    assert await projected.names(name_part="%") == ["lab%2"]
    assert await projected.names(name_part="_") == ["lab_1"]
    assert len(await projected.names(status=WorkerStatus.PENDING)) == 3
    assert await projected.names(status=WorkerStatus.RUNNING) == []
    assert await projected.names(owner="ann", tag="course=ccna", aws_region="us-east-1") == ["lab_1"]


async def test_every_part_of_a_name_finds_it_and_no_other(projected: Projected):
    names = ["a", "ab", "bab", "lab-42", "LAB-4", "Über", "日本語", "a%b", "x_'y", "🙂🙂🙃", "Łódź", "\\1"]
    for name in names:
        await projected.record(uuid4(), CREATED.model_copy(update={"name": name}))
    await projected.catch_up()
    ends = [(name, first, last) for name in names for last in range(len(name) + 1) for first in range(last)]
    for part in sorted({name[first:last] for name, first, last in ends}):
        wanted = sorted(name for name in names if part.lower() in name.lower())
        assert sorted(await projected.names(name_part=part)) == wanted, part
    for part in ("ba-", "aba", "1a", "🙃🙂"):
        assert await projected.names(name_part=part) == []


@pytest.mark.parametrize(("later", "shown"), [(-1, True), (0, True), (1, False)])
async def test_what_was_terminated_before_a_time_is_left_out_where_that_is_asked_for(
    projected: Projected, later: int, shown: bool
):
    end = TerminationRequested(operation_id="end"), WorkerTerminated(operation_id="end")
    for events in (
        (LAUNCH, LAUNCHED),
        (LAUNCH, LaunchFailed(operation_id=LAUNCH.operation_id, problem=PROBLEM)),
        (LAUNCH, LAUNCHED, *end),
    ):
        await projected.record(uuid4(), CREATED, *events)
    await projected.catch_up()

    async def statuses(**conditions: object) -> list[str]:
        result = await projected.ask(ListCMLWorkers.model_validate({"sort": "status", **conditions}))
        return [view.status for view in WorkerPage.model_validate(result.data).workers]

    since = NOW + timedelta(seconds=later)
    ended = ["TERMINATED"] if shown else []
    assert await statuses(terminated_since=since) == ["FAILED", "RUNNING", *ended]
    assert await statuses(terminated_since=since, status=WorkerStatus.TERMINATED) == ended
    assert await statuses() == ["FAILED", "RUNNING", "TERMINATED"]


@pytest.mark.parametrize("sort", ["created_at", "name", "status", "aws_region"])
@pytest.mark.parametrize("descending", [False, True])
async def test_pages_hold_everything_once_in_order(projected: Projected, sort: str, descending: bool):
    for number in range(7):
        await projected.record(uuid4(), CREATED.model_copy(update={"name": f"lab-{number // 2}"}))
    await projected.catch_up()
    names: list[str] = []
    ids: set[UUID] = set()
    cursor = None
    for _ in range(4):
        query = ListCMLWorkers.model_validate(
            {"sort": sort, "descending": descending, "limit": 2, "cursor": cursor}
        )
        page = WorkerPage.model_validate((await projected.ask(query)).data)
        names += [view.name for view in page.workers]
        ids |= {view.id for view in page.workers}
        cursor = page.next_cursor
    assert cursor is None
    assert len(ids) == len(names) == 7
    if sort == "name":
        assert names == sorted(names, reverse=descending)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    ("tag", "viewer"),
    [
        ("course", None),
        ("course=ccna", None),
        (None, Viewer("nobody", frozenset({"ccna", "x"}), "course")),
        (None, Viewer("ben", frozenset({"ccna"}), "course")),
    ],
)
async def test_those_with_a_tag_come_in_the_order_of_the_names_that_they_have_now(
    projected: Projected,
    tag: str | None,
    viewer: Viewer | None,
    descending: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("cml_workers.readmodels.workers.queries.NEXT_ONES", 0)
    names = ["b", "a", "d", "c", "c", "f", "e"]
    for name in names:
        for tags in ({"course": "ccna"}, {}, {"exam": "ccna"}):
            owner = "ben" if tags and name < "c" else "ann"
            if viewer and viewer.actor == owner and "exam" in tags:
                names = [*names, name]
            changes = {"name": name, "tags": tags, "created_by": owner}
            await projected.record(uuid4(), CREATED.model_copy(update=changes))
    (renamed,) = await projected.workers(1, CREATED, LAUNCH, LAUNCHED)
    await projected.catch_up()
    for name in ("aa", "bb"):
        update = TagsUpdated(operation_id="tag", tags={"Name": name, "course": "ccna"})
        await projected.record(renamed, TAGS[0], update)
        await projected.catch_up()
    names = [*names, "bb"]
    found: list[str] = []
    cursor = None
    while not found or cursor:
        query = ListCMLWorkers(sort="name", tag=tag, descending=descending, limit=2, cursor=cursor)
        answer = await list_workers(projected.database, query, viewer)
        assert isinstance(answer, Found)
        page = WorkerPage.model_validate_json(answer.data)
        found += [view.name for view in page.workers]
        cursor = page.next_cursor
    assert found == sorted(names, reverse=descending)


@pytest.mark.parametrize(
    "cursor", ["x", "AAAA", "bnVsbA==", "W10=", "WzEsIDIsIDMsIDRd", "W1tb" * 200, FORGED[0], FORGED[1]]
)
async def test_a_made_up_cursor_is_refused(projected: Projected, cursor: str):
    result = await projected.ask(ListCMLWorkers(cursor=cursor))
    assert result.problem is not None
    assert result.problem.code is ProblemCode.VALIDATION_FAILED


async def test_a_tag_that_is_gone_finds_nothing(projected: Projected):
    (worker_id,) = await projected.workers(1, CREATED, LAUNCH, LAUNCHED)
    await projected.catch_up()
    assert await projected.names(tag="cml:worker-id") == ["lab"]
    await projected.record(worker_id, *TAGS)
    await projected.catch_up()
    assert await projected.names(tag="cml:worker-id") == []
    assert await projected.names(tag="a=1") == ["lab"]
