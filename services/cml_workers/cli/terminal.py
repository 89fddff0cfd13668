"""What all commands share: options, a connected client, and one line for what goes wrong."""

import asyncio
import getpass
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterable
from importlib.metadata import version
from typing import Annotated, Any, NoReturn, TextIO, TypeVar

import typer
import uvloop
from pydantic import ValidationError
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment

from cml_contracts.broker import Nodes
from cml_contracts.client import NoAnswerError, NoResultYetError, WorkerClient
from cml_workers.foundation.failures import ConfigurationError, RoleFailedError
from cml_workers.foundation.secrets import redacted
from cml_workers.foundation.texts import visible
from cml_workers.runtime.endpoints import amqp_url
from cml_workers.runtime.logs import configure_logging
from cml_workers.runtime.settings import Settings, load_settings

NOT_DONE, USAGE, UNREACHABLE, NO_RESULT_YET = 1, 2, 3, 4
"""Exit codes; the first: rejected or failed."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
By = Annotated[str | None, typer.Option("--by", help="Who sends it: an opaque id; default: your user name.")]
Why = Annotated[str | None, typer.Option("--reason", help="Kept in the audit trail.")]


UNBOUNDED = 10_000
"""Columns for programs and files, which accept lines of any length."""


def _width(stream: TextIO) -> int | None:
    """The terminal's own, or what COLUMNS says; elsewhere no line is truncated."""
    return None if stream.isatty() or "COLUMNS" in os.environ else UNBOUNDED


class Terminal(Console):
    """Names, tags, actors, reasons and bodies are what any sender wrote: no control character of theirs reaches the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escaped where everything passes that is printed; the terminal's own controls are segments apart."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


out = Terminal(width=_width(sys.stdout))
err = Terminal(stderr=True, width=_width(sys.stderr))
T = TypeVar("T")


def with_client(use: Callable[[WorkerClient], Coroutine[Any, Any, T]]) -> T:
    """Use the configured system, or the one that runs here."""
    settings = client_settings()

    async def connected() -> T:
        async with client_of(settings) as client:
            return await use(client)

    return run_to_end(connected())


def client_of(settings: Settings) -> WorkerClient:
    """Of the user that the settings name."""
    url = amqp_url(settings)
    return WorkerClient(url, deadline=15, own_exchanges=Nodes(url, "RABBITMQ_URL").user in settings.senders)


def configured() -> Settings:
    """The settings, or a line that says what to fix in them."""
    try:
        settings = load_settings()
    except ConfigurationError as error:
        fail(str(error), USAGE)
    configure_logging(settings)
    return settings


def client_settings() -> Settings:
    """The same for a client: what goes wrong with its connection is said in a line of ours, not in the library's traceback."""
    settings = configured()
    for library in ("aiormq", "aio_pika"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    return settings


def fail(sentence: str, code: int) -> NoReturn:
    """End with a line about what is wrong."""
    err.print(f"[red]cml-workers:[/red] {escape(redacted(sentence))}", soft_wrap=True, highlight=False)
    raise typer.Exit(code)


def run_to_end(work: Coroutine[Any, Any, T], fail: Callable[[str, int], NoReturn] = fail) -> T:
    """Run to the end; an expected error becomes one line and an exit code."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    except ConfigurationError as error:
        fail(str(error), USAGE)
    except NoAnswerError as error:
        fail(str(error), UNREACHABLE)
    except NoResultYetError as error:
        fail(f"{error}: cml-workers operation {error.command_id}", NO_RESULT_YET)
    except ConnectionError as error:
        fail(str(error), UNREACHABLE)
    except RoleFailedError as error:
        fail(str(error), NOT_DONE)
    except UnicodeEncodeError as error:
        fail(f"{error.object!r} is not UTF-8", USAGE)
    except ValueError as error:
        fail(str(error), USAGE)


def show_version(wanted: bool) -> None:
    """Show the version of the installed program, and end."""
    if wanted:
        out.print(f"cml-workers {version('cml-workers')}", highlight=False)
        raise typer.Exit


def valid(make: Callable[[], T], whole: str = "") -> T:
    """What ``make`` makes, or a line about what is invalid; ``whole``: its name where no field is to blame."""
    try:
        return make()
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            where = ".".join(map(str, problem["loc"])) or whole
            lines.append(f"{where}{': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}")
        fail("; ".join(lines), USAGE)


def me() -> str:
    """The default for ``--by``."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, where no user has a name
        return "cml-workers"
