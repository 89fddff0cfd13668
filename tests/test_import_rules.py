"""The import rules hold, and every breach of them is noticed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cml_tools.import_rules import Graph, breaches, circle, disorder, import_graph, moments, problems, room_of
from cml_tools.rooms import ANYTHING, ROOMS, Room

ROOT = Path(__file__).parents[1]
FOREIGN = sorted({package for room in ROOMS.values() for package in room.packages} | {"flask", "boto3"})
OF_THE_MACHINE = sorted(ANYTHING & {"os", "random", "socket", "sqlite3", "subprocess", "threading", "time"})
EXAMPLES = [
    ("cml_workers.projector.queries", "aio_pika"),
    ("cml_workers.projector.queries", "cml_workers.bus.rabbit"),
    ("cml_workers.reminders.reminders", "sqlalchemy"),
    ("cml_workers.deadletters.handler", "sqlalchemy"),
    ("cml_workers.deadletters.archive", "cml_workers.eventstore.sqlite"),
    ("cml_workers.runtime.endpoints", "cml_workers.process.system"),
    ("cml_workers.bus.rabbit", "cml_workers.runtime.endpoints"),
    ("cml_workers.bus.rabbit", "cml_embedded.amqp_broker"),
    ("cml_workers.bus.port", "aiormq"),
    ("cml_workers.bus.delivery", "random"),
    ("cml_workers.lifecycle.handler", "time"),
    ("cml_workers.lifecycle.handler", "random"),
    ("cml_workers.lifecycle.handler", "cml_workers.eventstore.sqlite"),
    ("cml_workers.lifecycle.main", "cml_workers.relay.main"),
    ("cml_workers.relay.relay", "cml_workers.projector.queries"),
    ("cml_workers.relay.relay", "cml_workers.sql.database"),
    ("cml_workers.ec2_adapter.executor", "cml_workers.ec2_adapter.aws"),
    ("cml_workers.ec2_adapter.executor", "botocore"),
    ("cml_workers.eventstore.sqlite", "cml_workers.bus.port"),
    ("cml_workers.eventstore.port", "cml_workers.lifecycle.handler"),
    ("cml_workers.eventstore.worker_streams", "kurrentdbclient"),
    ("cml_workers.domain.decide", "asyncio"),
    ("cml_workers.domain.worker", "cml_workers.eventstore.port"),
    ("cml_embedded.amqp_broker", "cml_workers.lifecycle.handler"),
    ("cml_contracts.commands", "aio_pika"),
    ("cml_contracts.client", "cml_workers.bus.port"),
]
"""Twelve of their kind went through before; the names change with the code, the kinds stay."""


def first_module(graph: Graph, room: str) -> str | None:
    """A module of the room that holds code; a room may be without, for now."""
    modules = sorted(module for module in graph if room_of(module) == room and "migrations" not in module)
    return next((each for each in modules if graph[each]), modules[0] if modules else None)


def allowed(room: Room, imported: str) -> bool:
    """Said once more, and plainer than in the check."""
    return imported in (*room.imports, *room.packages, *room.library)


def forbidden(graph: Graph) -> Iterator[tuple[str, str]]:
    """Module and import, for every ordered pair of rooms, and every room and package, that is forbidden."""
    targets = {name: first_module(graph, name) for name in ROOMS}
    targets |= {name: name for name in (*FOREIGN, *OF_THE_MACHINE)}
    for name, room in ROOMS.items():
        if module := first_module(graph, name):
            for target, imported in targets.items():
                if target != name and imported and not allowed(room, target):
                    yield module, imported


@pytest.fixture(scope="module")
def graph() -> Graph:
    return import_graph()


def test_the_rules_hold():
    assert list(problems()) == []


def test_every_room_stands_below_what_it_imports(graph: Graph):
    assert list(disorder(ROOMS)) == []
    upside_down = {"a": Room(modules=("a",), imports=("b",)), "b": Room(modules=("b",))}
    assert list(disorder(upside_down)) == ["a names b, which does not stand above it"]


def test_every_breach_is_noticed_in_the_code_itself(tmp_path: Path, graph: Graph):
    """All of them are planted at once in a copy, within functions, where imports hide best."""
    planted = {*forbidden(graph), *EXAMPLES}
    assert len(planted) > len(ROOMS) * len(FOREIGN)
    for part in ("services", "contracts"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for module, imported in planted:
        folder = tmp_path / ("contracts" if module.startswith("cml_contracts") else "services")
        path = folder / module.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        with path.open("a") as file:
            file.write(f"\n\ndef _planted_{imported.replace('.', '_')}():\n    import {imported}\n")
    (tmp_path / "services/cml_workers/attic").mkdir()
    (tmp_path / "services/cml_workers/attic/box.py").touch()
    (tmp_path / "services/cml_workers/attic/__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-m", "cml_tools.import_rules"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}/services{os.pathsep}{tmp_path}/contracts"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    found = set(done.stdout.splitlines())
    expected = {f"{each} (room {room_of(each)}) must not import {imported}" for each, imported in planted}
    expected |= {
        f"cml_workers.attic{each} is in no room: enter it in cml_tools/rooms.py" for each in ("", ".box")
    }
    assert sorted(expected - found) == []
    assert {line for line in found - expected if "circle" not in line} == set()


@pytest.mark.parametrize(("module", "imported"), EXAMPLES)
def test_each_example_is_noticed_alone(graph: Graph, module: str, imported: str):
    assert module in graph, "renamed: rename it here"
    with_it = {**graph, module: graph[module] | {imported}}
    assert [*breaches(with_it)] == [f"{module} (room {room_of(module)}) must not import {imported}"]


def test_modules_of_one_room_do_not_import_each_other_in_a_circle(graph: Graph):
    importing, imported = next(
        (module, each)
        for module, imports in sorted(graph.items())
        for each in sorted(imports)
        if each in graph and room_of(module) == room_of(each) == "domain"
    )
    back = {**graph, imported: graph[imported] | {importing}}
    assert list(breaches(back)) == []
    assert circle(graph) == []
    assert {importing, imported} <= set(circle(back))


@pytest.mark.parametrize(
    ("source", "noticed"),
    [
        ("from datetime import datetime\nx = datetime.now()", True),
        ("import datetime\nx = datetime.datetime.now()", True),
        ("from datetime import date\nx = date.today()", True),
        ("from uuid import uuid4", True),
        ("import uuid\nx = uuid.uuid4()", True),
        ("x = self.now()", False),
        ("from uuid import uuid5", False),
    ],
)
@pytest.mark.parametrize("module", ["cml_workers.domain.new", "cml_workers.lifecycle.new"])
def test_modules_that_are_given_the_time_do_not_ask_for_it(module: str, source: str, noticed: bool):
    assert bool(list(moments(module, source))) is noticed
    assert list(moments("cml_workers.runtime.new", source)) == []


def test_a_new_file_belongs_to_the_room_of_its_folder():
    assert room_of("cml_workers.domain.attic") == "domain"
    assert room_of("cml_workers.bus.rabbit_errors") == "bus.rabbit"
    assert room_of("cml_workers.eventstore.sqlite.writer") == "eventstore.sqlite"
    assert room_of("cml_workers.attic") is None
    assert room_of("cml_attic") is None
