"""The command line: every command, by its name and its place in the help."""

from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from cml_workers.cli import commands, queries, system
from cml_workers.cli.broker_users import broker_user
from cml_workers.cli.bundle import bundle
from cml_workers.cli.deadletters import deadletters
from cml_workers.cli.doctor import doctor
from cml_workers.cli.migrate import migrate
from cml_workers.cli.rebuild import rebuild
from cml_workers.cli.replay import replay
from cml_workers.cli.terminal import show_version

OPERATE = "Operate it"
BY_PANEL: Mapping[str, Mapping[str, Callable[..., None]]] = {
    "Run the system": {
        "run": system.run,
        "role": system.role,
        "health": system.health,
        "demo": system.demo,
    },
    "Use it": {
        **commands.BY_NAME,
        "get": queries.get,
        "list": queries.show_workers,
        "operation": queries.show_operation,
        "history": queries.history,
        "watch": queries.watch,
    },
}

app = typer.Typer(
    name="cml-workers",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # tracebacks are as logs show them: without secrets
    rich_markup_mode="rich",
    help="Run fleets of [bold]CML workers[/bold]: AWS EC2 instances that each host Cisco Modeling Labs.",
    epilog="Exit codes: 0 done; 1 rejected or failed; 2 wrong usage or configuration; 3 a service cannot be "
    "reached; 4 no result within the deadline (the command stands: ask with `cml-workers operation`).",
)


@app.callback()
def _common(
    _: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """What every command has."""


for panel, of_panel in BY_PANEL.items():
    for name, command in of_panel.items():
        app.command(name, rich_help_panel=panel)(command)
app.command("bundle", rich_help_panel=OPERATE)(bundle)
app.command("doctor", rich_help_panel=OPERATE)(doctor)
app.command("migrate", rich_help_panel=OPERATE)(migrate)
app.command("rebuild", rich_help_panel=OPERATE)(rebuild)
app.command("replay", rich_help_panel=OPERATE)(replay)
app.add_typer(deadletters, rich_help_panel=OPERATE)
app.add_typer(broker_user, rich_help_panel=OPERATE)
