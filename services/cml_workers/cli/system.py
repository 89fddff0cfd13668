"""Commands that run the system, or show that it runs."""

import sys
from functools import partial
from typing import Annotated, NoReturn
from urllib.error import HTTPError
from urllib.request import urlopen

import typer
from rich.markup import escape

from cml_workers.cli.terminal import (
    NOT_DONE,
    UNREACHABLE,
    USAGE,
    configured,
    fail,
    out,
    run_to_end,
)
from cml_workers.foundation.ids import bind
from cml_workers.foundation.secrets import redacted
from cml_workers.runtime.logs import ends, is_console, ready
from cml_workers.runtime.settings import Settings


def run() -> None:
    """Run all roles in one process, until Ctrl-C.

    Parts that are not configured are embedded, on loopback: AMQP broker, event store, read model, EC2 simulator.
    RABBITMQ_URL, KURRENTDB_URI, DATABASE_URL and CML_AWS=true (or AWS_ENDPOINT_URL) each replace one. Data is
    kept in CML_DATA_DIR (default .cml-workers), where endpoints.json lists the open endpoints.
    """
    from cml_workers.process.garbage import collect_seldom  # noqa: PLC0415 - of no use to a client
    from cml_workers.process.signals import ended_by_signals  # noqa: PLC0415 - slow to load, likewise
    from cml_workers.process.system import system, until_one_fails  # noqa: PLC0415 - likewise

    settings = configured()

    async def serve() -> None:
        with ended_by_signals():
            async with system(settings) as (endpoints, running):
                for name, url in endpoints.items():
                    out.print(
                        f"[bold]{name:12}[/bold] {escape(redacted(url))}", soft_wrap=True, highlight=False
                    )
                collect_seldom()
                out.print("Ready. In another terminal: cml-workers create --help. Ctrl-C stops.")
                await until_one_fails(running)
        out.print("Stopped.")

    run_to_end(serve())


def role(
    name: Annotated[str | None, typer.Argument(help="Which one; without it, they are listed.")] = None,
) -> None:
    """Run one role in a process of its own, until SIGTERM."""
    from cml_workers.process.garbage import collect_seldom  # noqa: PLC0415 - of no use to a client
    from cml_workers.process.registry import ROLES  # noqa: PLC0415 - slow to load, of no use to a client
    from cml_workers.process.signals import ended_by_signals  # noqa: PLC0415 - likewise
    from cml_workers.process.system import single_role, until_one_fails  # noqa: PLC0415 - likewise

    if name is None:
        for each in ROLES.values():
            out.print(
                f"[bold]{each.name:12}[/bold] {each.does} Needs {', '.join(each.needs)}.", soft_wrap=True
            )
        return
    if name not in ROLES:
        fail(f"there is no role {name!r}; there are: {', '.join(ROLES)}", USAGE)
    settings = configured()
    bind(role=name)

    async def serve() -> None:
        with ended_by_signals():
            async with single_role(name, settings) as running:
                collect_seldom()
                ready(name)
                await until_one_fails(running)

    run_to_end(serve(), partial(_failed, settings))


def _failed(settings: Settings, sentence: str, code: int) -> NoReturn:
    """As ``fail``, of a process whose stderr is its log: there it is a line like all others, too."""
    if not is_console(settings):
        ends(sentence)
    fail(sentence, code)


def health() -> None:
    """Check whether the process on this machine is ready (CML_HEALTH_PORT); for container health checks."""
    settings = configured()
    if settings.health_port is None:
        fail("CML_HEALTH_PORT is not set", USAGE)
    url = f"http://127.0.0.1:{settings.health_port}/readyz"
    try:
        with urlopen(url, timeout=10) as answer:
            sys.stdout.write(answer.read().decode() + "\n")
    except HTTPError as error:
        fail(error.read().decode(), NOT_DONE)
    except OSError as error:
        fail(f"{url}: {error}", UNREACHABLE)


def demo() -> None:
    """Start an embedded system, run a worker through its life cycle, and check every step."""
    from cml_workers.cli.demo import run_demo  # noqa: PLC0415 - see `run`

    if not run_to_end(run_demo(out)):
        raise typer.Exit(1)
