"""Whether every module imports only what its room may: the table in ``rooms.py`` against the import graph.

Imports within functions count too. Beyond the table: no two modules import each other, directly or in a circle, and where
clock and ids come from outside (``Room.timeless``) nobody asks the standard library for them.
"""

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import grimp

from cml_tools.rooms import ROOMS, Room

PACKAGES = ("cml_contracts", "cml_embedded", "cml_workers", "cml_tools")
_CLOCKS = frozenset({"datetime", "date", "uuid"})
_OF_THE_MOMENT = frozenset({"now", "utcnow", "today", "uuid1", "uuid4"})

Graph = Mapping[str, frozenset[str]]
"""Each of our modules, with what it imports: ours by their full names, others by their package's."""


def import_graph() -> Graph:
    """All of our modules as they are installed."""
    graph = grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)
    ours = (module for module in graph.modules if _package(module) in PACKAGES)
    return {module: frozenset(graph.find_modules_directly_imported_by(module)) for module in ours}


def room_of(module: str) -> str | None:
    """The name of the room a module belongs to."""
    if module in PACKAGES and module != "cml_contracts":
        return "roots"
    fitting = [
        (len(prefix), name)
        for name, room in ROOMS.items()
        for prefix in room.modules
        if module == prefix or module.startswith((f"{prefix}.", f"{prefix}_"))
    ]
    return max(fitting)[1] if fitting else None


def breaches(graph: Graph) -> Iterator[str]:
    """One line for each import against the table, and for each module that is in no room."""
    for module, imported in sorted(graph.items()):
        name = room_of(module)
        if name is None:
            yield f"{module} is in no room: enter it in cml_tools/rooms.py"
            continue
        for each in sorted(imported):
            if not _allowed(name, each):
                yield f"{module} (room {name}) must not import {each}"


def _allowed(name: str, imported: str) -> bool:
    room = ROOMS[name]
    if _package(imported) in PACKAGES:
        return room_of(imported) in (name, *room.imports)
    if imported in sys.stdlib_module_names:
        return imported in room.library
    return imported in room.packages


def disorder(rooms: Mapping[str, Room]) -> Iterator[str]:
    """One line for each room that names one which does not stand above it; parts of one folder may name each other."""
    order = list(rooms)
    for place, (name, room) in enumerate(rooms.items()):
        for each in room.imports:
            if each not in rooms:
                yield f"{name} names {each}, which is no room"
            elif order.index(each) >= place and _package(each) != _package(name):
                yield f"{name} names {each}, which does not stand above it"


def circle(graph: Graph) -> list[str]:
    """The modules of one circle of imports; empty if there is none."""
    ours = {module: {each for each in imported if each in graph} for module, imported in graph.items()}
    try:
        TopologicalSorter(ours).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def moments(module: str, source: str) -> Iterator[str]:
    """One line for each use of a clock or a random id in a module that must be handed them."""
    name = room_of(module)
    if name is None or not ROOMS[name].timeless:
        return
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(ast.Name(owner) | ast.Attribute(attr=owner), used) if owner in _CLOCKS:
                pass
            case ast.alias(used):
                pass
            case _:
                continue
        if used in _OF_THE_MOMENT:
            yield f"{module}:{node.lineno} (room {name}) must be handed what it takes from {used}"


def sources() -> Iterator[tuple[str, str]]:
    """Name and text of every module."""
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.submodule_search_locations  # noqa: S101, PT018 - they are installed
        root = Path(spec.submodule_search_locations[0])
        for path in sorted(root.rglob("*.py")):
            parts = (package, *path.relative_to(root).with_suffix("").parts)
            yield ".".join(parts).removesuffix(".__init__"), path.read_text()


def problems() -> Iterable[str]:
    """Whatever is wrong."""
    graph = import_graph()
    yield from disorder(ROOMS)
    yield from breaches(graph)
    if found := circle(graph):
        yield f"a circle of imports: {' -> '.join(found)}"
    for module, source in sources():
        yield from moments(module, source)


def _package(module: str) -> str:
    return module.partition(".")[0]


def main() -> None:
    """Print what is wrong, and fail if anything is."""
    argparse.ArgumentParser(description="Check the import rules.").parse_args()
    found = list(problems())
    sys.stdout.write("".join(f"{each}\n" for each in found))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
