"""The rooms of the code, from the bottom up: what each module may import.

A module belongs to the room with the longest prefix of its name: ``bus.rabbit`` and ``bus.rabbit_errors`` to *bus.rabbit*,
every other file in ``bus/`` to *bus*. A room may import itself, the rooms it names, which stand above it in this table (but
for parts of one folder), and the packages it names; nothing else. A module in no room fails the check: enter it here.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from cml_workers.process.registry import ROLES

PURE = frozenset(
    [
        "abc",
        "base64",
        "binascii",
        "bisect",
        "collections",
        "contextlib",
        "copy",
        "dataclasses",
        "datetime",
        "enum",
        "fnmatch",
        "functools",
        "hashlib",
        "heapq",
        "hmac",
        "itertools",
        "json",
        "math",
        "operator",
        "re",
        "string",
        "types",
        "typing",
        "uuid",
    ]
)
"""Of the standard library: nothing that waits, reads, writes or differs from run to run."""
HANDLER = PURE | {"asyncio", "contextvars", "weakref"}
"""A handler may wait; clock, ids and chance are handed to it, or the simulation could not repeat a run."""
ANYTHING = sys.stdlib_module_names

CORE = ("contracts", "foundation", "domain", "bus", "eventstore")
"""What every role is made of: rules and ports."""
HANDS = ("bus.rabbit", "eventstore.following", "runtime", "sql")
"""What a role's ``main.py`` composes besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """``modules``: prefixes of the names of its modules."""

    modules: tuple[str, ...]
    imports: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    library: frozenset[str] = HANDLER

    @property
    def timeless(self) -> bool:
        """Clock and ids come from outside."""
        return self.library is not ANYTHING


def _service(*names: str) -> tuple[str, ...]:
    return tuple(f"cml_workers.{name}" for name in names)


def _roles() -> dict[str, Room]:
    """Each role on its own: the role knows ports, its ``main.py`` knows adapters."""
    rooms = {}
    for role in ROLES.values():
        main = role.compose.__module__
        name = main.removeprefix("cml_workers.").removesuffix(".main")
        rooms[name] = Room(modules=_service(name), imports=CORE, packages=("pydantic", "structlog"))
        rooms[f"{name}.main"] = Room(
            modules=(main,), imports=(*CORE, *HANDS, name), packages=("structlog",), library=ANYTHING
        )
    return rooms


ROOMS: Mapping[str, Room] = {
    "roots": Room(modules=(), library=PURE),
    "contracts": Room(modules=("cml_contracts",), packages=("pydantic", "pydantic_core"), library=PURE),
    "contracts.client": Room(
        modules=tuple(
            f"cml_contracts.{name}"
            for name in ("amqp", "broker", "client", "session", "subscription", "unreadable")
        ),
        imports=("contracts",),
        packages=("aio_pika", "aiormq", "pydantic", "yarl"),
        library=ANYTHING,
    ),
    "embedded.private": Room(modules=("cml_embedded.private",), library=ANYTHING),
    "embedded.amqp": Room(
        modules=("cml_embedded.amqp", "cml_embedded.amqp_broker"),
        imports=("embedded.private",),
        packages=("pamqp",),
        library=ANYTHING,
    ),
    "embedded.ec2": Room(
        modules=("cml_embedded.ec2",),
        imports=("embedded.private",),
        packages=("botocore", "moto", "werkzeug"),
        library=ANYTHING,
    ),
    "foundation": Room(
        modules=_service("foundation"), packages=("prometheus_client", "structlog"), library=ANYTHING
    ),
    "domain": Room(modules=_service("domain"), imports=("contracts",), packages=("pydantic",), library=PURE),
    "bus": Room(
        modules=_service("bus"),
        imports=("contracts", "foundation", "domain"),
        packages=("pydantic",),
        library=PURE,
    ),
    "bus.rabbit": Room(
        modules=_service("bus.rabbit"),
        imports=("contracts", "contracts.client", "foundation", "bus"),
        packages=("aio_pika", "aiormq", "faststream", "structlog", "yarl"),
        library=ANYTHING,
    ),
    "eventstore": Room(
        modules=_service("eventstore"), imports=("contracts", "foundation", "domain"), packages=("structlog",)
    ),
    "eventstore.following": Room(
        modules=_service("eventstore.following"),
        imports=("foundation", "eventstore"),
        packages=("structlog",),
        library=HANDLER | {"random"},
    ),
    "eventstore.sqlite": Room(
        modules=_service("eventstore.sqlite"), imports=("foundation", "eventstore"), library=ANYTHING
    ),
    "eventstore.kurrentdb": Room(
        modules=_service("eventstore.kurrentdb"),
        imports=("foundation", "eventstore"),
        packages=("grpc", "kurrentdbclient"),
        library=ANYTHING,
    ),
    "eventstore.opening": Room(
        modules=_service("eventstore.opening"),
        imports=("eventstore", "eventstore.sqlite", "eventstore.kurrentdb"),
    ),
    "sql.port": Room(modules=_service("sql.port", "sql.schema"), packages=("sqlalchemy",)),
    "sql": Room(
        modules=_service("sql"),
        imports=("foundation", "sql.port"),
        packages=("alembic", "asyncpg", "sqlalchemy"),
        library=ANYTHING,
    ),
    "readmodels.changes": Room(modules=_service("readmodels.changes"), library=PURE),
    "readmodels.fold": Room(
        modules=_service("readmodels.workers.fold"),
        imports=("contracts", "domain", "readmodels.changes"),
        library=PURE,
    ),
    "readmodels": Room(
        modules=_service("readmodels"),
        imports=(
            "contracts",
            "foundation",
            "domain",
            "eventstore",
            "eventstore.following",
            "sql.port",
            "readmodels.changes",
            "readmodels.fold",
        ),
        packages=("sqlalchemy", "structlog"),
    ),
    "reminders": Room(
        modules=_service("reminders"), imports=(*CORE, "sql.port", "readmodels"), packages=("structlog",)
    ),
    "deadletters": Room(
        modules=_service("deadletters"), imports=(*CORE, "deadletters.archive"), packages=("structlog",)
    ),
    "deadletters.archive": Room(
        modules=_service("deadletters.archive"),
        imports=("contracts", "sql", "sql.port", "deadletters"),
        packages=("sqlalchemy",),
    ),
    "runtime": Room(
        modules=_service("runtime"),
        imports=(*CORE, "contracts.client", "bus.rabbit", "eventstore.following", "sql.port"),
        packages=(
            "prometheus_client",
            "pydantic",
            "pydantic_core",
            "pydantic_settings",
            "sqlalchemy",
            "structlog",
        ),
        library=ANYTHING,
    ),
    "tracing": Room(
        modules=_service("tracing"),
        imports=(*CORE, "bus.rabbit"),
        packages=("opentelemetry", "structlog"),
        library=ANYTHING,
    ),
    **_roles(),
    "ec2_adapter.aws": Room(
        modules=_service("ec2_adapter.aws"),
        imports=("contracts", "foundation", "ec2_adapter"),
        packages=("aioboto3", "aiobotocore", "aiohttp", "botocore", "structlog", "types_aiobotocore_ec2"),
        library=ANYTHING,
    ),
    "ec2_adapter.main": Room(
        modules=_service("ec2_adapter.main"),
        imports=(*CORE, *HANDS, "ec2_adapter", "ec2_adapter.aws"),
        packages=("structlog",),
        library=ANYTHING,
    ),
    "projector": Room(
        modules=_service("projector"),
        imports=(*CORE, "sql.port", "readmodels"),
        packages=("structlog",),
    ),
    "projector.main": Room(
        modules=_service("projector.main"),
        imports=(
            *CORE,
            *HANDS,
            "readmodels",
            "reminders",
            "deadletters",
            "deadletters.archive",
            "projector",
        ),
        packages=("structlog",),
        library=ANYTHING,
    ),
    "doctor": Room(
        modules=_service("doctor"),
        imports=(
            *CORE,
            "bus.rabbit",
            "eventstore.opening",
            "sql",
            "readmodels",
            "runtime",
            "relay",
            "ec2_adapter",
            "ec2_adapter.aws",
        ),
        packages=("botocore",),
    ),
    "bundle": Room(
        modules=_service("bundle"),
        imports=(
            *CORE,
            "bus.rabbit",
            "deadletters",
            "deadletters.archive",
            "eventstore.opening",
            "sql",
            "readmodels",
            "runtime",
        ),
        packages=("pydantic", "pydantic_core"),
        library=ANYTHING,
    ),
    "process": Room(
        modules=_service("process"),
        imports=(
            "embedded.amqp",
            "embedded.ec2",
            "contracts.client",
            "foundation",
            "bus",
            "bus.rabbit",
            "eventstore",
            "eventstore.opening",
            "sql",
            "runtime",
            "tracing",
            *(f"{role.compose.__module__.removeprefix('cml_workers.')}" for role in ROLES.values()),
        ),
        packages=("structlog",),
        library=ANYTHING,
    ),
    "cli": Room(
        modules=_service("cli"),
        imports=(
            *CORE,
            "bus.rabbit",
            "contracts.client",
            "eventstore.opening",
            "sql",
            "sql.port",
            "readmodels",
            "runtime",
            "doctor",
            "bundle",
            "relay",
            "process",
            "cli.demo",
        ),
        packages=("click", "pydantic", "rich", "typer", "uvloop"),
        library=ANYTHING,
    ),
    "cli.demo": Room(
        modules=_service("cli.demo"),
        imports=(
            *CORE,
            "contracts.client",
            "embedded.ec2",
            "eventstore.opening",
            "ec2_adapter.aws",
            "runtime",
            "process",
            "cli",
        ),
        packages=("rich",),
        library=ANYTHING,
    ),
    "tools": Room(
        modules=("cml_tools",),
        imports=(
            "roots",
            "contracts",
            "foundation",
            "domain",
            "bus",
            "runtime",
            "ec2_adapter",
            "ec2_adapter.aws",
            "doctor",
            "process",
        ),
        packages=("botocore", "grimp", "pydantic", "yaml"),
        library=ANYTHING,
    ),
}
