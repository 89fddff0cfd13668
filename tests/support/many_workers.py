"""A read model of very many workers, written as fast as a database takes them, and what one may ask of them.

As fleets are after years: most workers are terminated, and these were created first; what is rare is among the newest.
"""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg  # type: ignore[import-untyped]

from cml_contracts.instance import WorkerStatus
from cml_contracts.queries import WorkerView
from cml_workers.domain.ownership import Viewer
from cml_workers.readmodels.changes import Put
from cml_workers.readmodels.workers.fold import NEVER, sortable
from cml_workers.readmodels.workers.tables import WORKER_TAGS, WORKERS
from support.given import NOW
from support.projecting import Projected

REGIONS = ("us-east-1", "us-east-2", "us-west-2", "eu-west-1", "eu-central-1", "ap-south-1", "sa-east-1")
COURSES = ("ccna", "ccnp", "ccie", "devnet", "cyberops", "security", "wireless", "data-center")
SINCE = NOW - timedelta(days=1)
"""Until then the terminated ones had ended."""

Filters = Mapping[str, Any]
FILTERS: Mapping[str, Filters] = {
    "everything": {},
    "a region": {"aws_region": REGIONS[3]},
    "a region of few": {"aws_region": "eu-north-1"},
    "a region of none": {"aws_region": "ca-west-1"},
    "a status of many": {"status": "RUNNING"},
    "a status of most": {"status": "TERMINATED"},
    "a status of few": {"status": "PENDING"},
    "an owner of many": {"owner": "portal"},
    "an owner": {"owner": "owner-17"},
    "a tag of all": {"tag": "cml:deployment=default"},
    "a key of all": {"tag": "Name"},
    "a tag of many": {"tag": "course=ccna"},
    "a tag of few": {"tag": "exam=final"},
    "a tag of one": {"tag": "Name=lab-ccna-00000"},
    "a tag of none": {"tag": "course=none"},
    "a part of every name": {"name_part": "lab"},
    "a part of many names": {"name_part": "CCNA"},
    "a part of few names": {"name_part": "zebra"},
    "a number": {"name_part": "1234"},
    "a part of no name": {"name_part": "qqq"},
    "two characters": {"name_part": "qz"},
    "one character": {"name_part": "z"},
    "a tag that none of an owner has": {"tag": "course=ccna", "owner": "portal"},
    "a tag that many of an owner have": {"tag": "course=devnet", "owner": "portal"},
    "a part that no name of an owner has": {"name_part": "ccna", "owner": "portal"},
    "the living": {"terminated_since": SINCE},
}
"""By what to call it: what is common, and what is rare and comes last."""
VIEWERS: Mapping[str, Viewer] = {
    "what is open to a team of many": Viewer("nobody", frozenset({"ccna"}), "course"),
    "what is open to an owner of many and its team": Viewer("portal", frozenset({"ccna"}), "course"),
    "what is open to a team of few": Viewer("nobody", frozenset({"final"}), "exam"),
}
SORTS = ("created_at", "name", "status", "aws_region")


def worker(number: int, of: int) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Columns and tags of one of so many."""
    newest = number >= of - 20
    ended = number < of * 0.6
    status = (
        WorkerStatus.TERMINATED
        if ended
        else WorkerStatus.PENDING
        if newest
        else (WorkerStatus.RUNNING, WorkerStatus.RUNNING, WorkerStatus.STOPPED)[number % 3]
    )
    course = COURSES[number * 7 % len(COURSES)]
    name = f"{'zebra' if newest else 'lab'}-{course}-{number:05}"
    tags = {
        "Name": name,
        "cml:deployment": "default",
        "course": course,
        **({"exam": "final"} if newest else {}),
    }
    created = NOW - timedelta(days=900) + number * timedelta(seconds=600)
    view = WorkerView(
        id=UUID(int=number * 0x9E3779B97F4A7C15 % 2**64 << 64 | number),
        name=name,
        status=status,
        aws_region="eu-north-1" if newest else REGIONS[number % len(REGIONS)],
        instance_type="m5.2xlarge",
        owner="portal" if number % 2 else f"owner-{number % 400}",
        tags=tags,
        created_at=created,
        updated_at=created + timedelta(hours=3),
        revision=9,
    )
    columns = {
        **{name: getattr(view, name) for name in ("id", "name", "aws_region", "owner")},
        "status": status.value,
        "created_at": sortable(created),
        "view": view.model_dump_json(),
        "ended_at": sortable(view.updated_at) if ended else NEVER,
    }
    return columns, tags


def rows(numbers: range, of: int) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Of the tables of workers and of tags."""
    made = [worker(number, of) for number in numbers]
    tags: list[Mapping[str, Any]] = [
        {
            "worker_id": columns["id"],
            "key": key,
            "value": value,
            "name": columns["name"],
            "owner": columns["owner"],
        }
        for columns, of_worker in made
        for key, value in of_worker.items()
    ]
    return [columns for columns, _ in made], tags


async def fill(projected: Projected, number: int, url: str | None) -> None:
    """The active generation; ``url``: of a PostgreSQL, which takes them faster by itself."""
    generation = await projected.active()
    connection = await asyncpg.connect(url) if url else None
    for few in _pieces(number):
        workers, tags = rows(few, number)
        if connection is None:
            changes = {"workers": [Put("workers", each) for each in workers]}
            changes["worker_tags"] = [Put("worker_tags", each) for each in tags]
            generation = await projected.generations.write(generation, changes, f"p{few.stop}", len(few))
        else:
            for table, made in ((WORKERS, workers), (WORKER_TAGS, tags)):
                await connection.copy_records_to_table(
                    table.name, records=[tuple(each.values()) for each in made], columns=list(made[0])
                )
    if connection is not None:
        await connection.execute("VACUUM ANALYZE workers")
        await connection.execute("VACUUM ANALYZE worker_tags")
        await connection.close()
    else:
        await projected.database.write(lambda database: database.exec_driver_sql("ANALYZE"))


def _pieces(number: int, size: int = 5_000) -> Iterator[range]:
    for start in range(0, number, size):
        yield range(start, min(start + size, number))
