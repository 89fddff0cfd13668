"""``cml-workers broker-user``: the list of the users that other services have at RabbitMQ.

It changes a file and no broker: what the file says is imported into RabbitMQ, and set for the roles.
"""

import json
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from cml_contracts.commands import COMMANDS
from cml_workers.bus.users import (
    NAME,
    BrokerUser,
    hashed,
    password_variable,
    queues_of,
    read_users,
    settings_of,
    users_only,
    write_users,
)
from cml_workers.cli.terminal import NOT_DONE, USAGE, fail, out, valid
from cml_workers.domain.policy import EVERY_COMMAND
from cml_workers.foundation.failures import did_you_mean
from cml_workers.foundation.private_file import make_private
from cml_workers.process.registry import USERS

EVENTS = "-events"
"""What is added to the name of a user that sends, for the one that gets events."""
PASSWORD_BYTES = 24
SHORT = {kind.split(".")[-2]: kind for kind in COMMANDS} | {EVERY_COMMAND: EVERY_COMMAND}
"""What the commands are called after --may."""

broker_user = typer.Typer(
    name="broker-user",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Users that other services have at RabbitMQ: one list says what each may do. Whoever sends commands gets no events, and "
    "whoever gets events sends nothing: [bold]add[/bold] makes two users where a service does both.",
    epilog="A change takes effect when RabbitMQ has it (`definitions`, imported with `rabbitmqctl import_definitions`) and the roles "
    "have the settings (`settings`): docs/deployment.md.",
)

List = Annotated[Path, typer.Option("--list", metavar="FILE", help="The list; it has hashes of passwords.")]
Passwords = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Append the passwords to this file, for its owner alone, and show none."
    ),
]
Name = Annotated[str, typer.Argument(help="As it logs in at RabbitMQ; its queues are named after it.")]
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...")]
DEFAULT_LIST = Path("broker-users.json")


@broker_user.command("add")
def add(
    name: Name,
    may: Annotated[
        str, typer.Option(help=f"Commands it may send, separated by commas: {', '.join(SHORT)}.")
    ] = "",
    delegate: Annotated[
        bool, typer.Option("--delegate", help="It may send them on behalf of others, with a token.")
    ] = False,
    operate: Annotated[bool, typer.Option("--operate", help="It may deal with dead letters.")] = False,
    subscribe: Annotated[
        bool, typer.Option("--subscribe", help=f"It gets events: as NAME{EVENTS}, if it may also send.")
    ] = False,
    shared: Annotated[
        bool,
        typer.Option(
            "--shared", help="It may also publish to the exchanges of all, cml.commands and cml.queries."
        ),
    ] = False,
    users_file: List = DEFAULT_LIST,
    passwords: Passwords = None,
) -> None:
    """Add a user, with a new password. Without any option it may query, and nothing else."""
    users = _read(users_file, new=True)
    if not NAME.fullmatch(name) or name in USERS or name == "cml-monitor":
        fail(f"{name!r} cannot be a name: letters, digits, - and _, and none of our own users'", USAGE)
    sends = bool(may or delegate or operate)
    sender = valid(lambda: BrokerUser(may=_types(may), delegate=delegate, operate=operate, shared=shared))
    added: dict[str, BrokerUser] = {}
    if sends or not subscribe:
        added[name] = sender
    if subscribe:
        added[f"{name}{EVENTS}" if sends else name] = BrokerUser(subscribe=True)
    for each in added:
        if each in users:
            fail(f"there is a user {each} already; remove it first", NOT_DONE)
    _give_passwords(users | added, list(added), users_file, passwords)


@broker_user.command("list")
def show(users_file: List = DEFAULT_LIST) -> None:
    """What each user may do."""
    for name, user in _read(users_file).items():
        lacking = "" if user.password_hash else ", but has no password"
        out.print(f"{name}: {_does(user)}{lacking}", highlight=False, soft_wrap=True, markup=False)


@broker_user.command("remove")
def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME...")], users_file: List = DEFAULT_LIST
) -> None:
    """Remove users from the list, and say how they and their queues are removed at RabbitMQ."""
    users = _read(users_file)
    _known(users, names)
    _write(users_file, {name: user for name, user in users.items() if name not in names})
    for name in names:
        for line in (f"{name} is not in the list any more; now:", *_leaving(name, users[name])):
            out.print(line, highlight=False, soft_wrap=True)


@broker_user.command("password")
def password(names: Names = None, users_file: List = DEFAULT_LIST, passwords: Passwords = None) -> None:
    """Give users new passwords; without a name: those that have none."""
    users = _read(users_file)
    _known(users, names or ())
    chosen = names or [name for name, user in users.items() if not user.password_hash]
    _give_passwords(users, chosen, users_file, passwords)


@broker_user.command("definitions")
def definitions(users_file: List = DEFAULT_LIST) -> None:
    """Print the users and their rights, for `rabbitmqctl import_definitions`; it changes nothing else."""
    sys.stdout.write(json.dumps(users_only(_read(users_file)), indent=2) + "\n")


@broker_user.command("settings")
def settings(users_file: List = DEFAULT_LIST) -> None:
    """Print the roles' settings that say who may do what, as lines of an environment file."""
    for name, value in settings_of(_read(users_file)).items():
        sys.stdout.write(f"{name}='{value}'\n")


def _types(may: str) -> list[str]:
    kinds = []
    for each in filter(None, map(str.strip, may.split(","))):
        kind = SHORT.get(each.replace("-", "_"), each)
        if kind not in SHORT.values():
            fail(f"{each!r} is no command{did_you_mean(each, SHORT)}", USAGE)
        kinds.append(kind)
    return kinds


def _leaving(name: str, user: BrokerUser) -> Iterator[str]:
    """What is to be done after a user was taken from the list, in this order: what it sent is done, and no role misses a queue."""
    yield f"  rabbitmqctl delete_user {name}"
    if own := queues_of({name: user}):
        queues = [queue.name for queue in own]
        exchanges = [binding.exchange.name for queue in own for binding in queue.bindings]
        yield f"  wait until {' and '.join(queues)} are empty"
        yield "  set what `settings` prints, and restart lifecycle and projector"
        yield from (f"  rabbitmqctl delete_queue {queue}" for queue in queues)
        yield f"  delete the exchanges {' and '.join(exchanges)}"


def _does(user: BrokerUser) -> str:
    if user.subscribe:
        return "gets events"
    kinds = ["every command"] if EVERY_COMMAND in user.may else user.may
    doing = [
        *([f"sends {', '.join(kinds)}"] if kinds else []),
        *(["on behalf of others"] if user.delegate else []),
        *(["deals with dead letters"] if user.operate else []),
        "queries",
    ]
    return "; ".join(doing)


def _read(path: Path, *, new: bool = False) -> dict[str, BrokerUser]:
    if new and not path.exists():
        return {}
    try:
        text = path.read_bytes()
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}; --list names the list", USAGE)
    return valid(lambda: read_users(text), str(path))


def _write(path: Path, users: Mapping[str, BrokerUser]) -> None:
    """In one step, for its owner alone."""
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    make_private(beside)
    beside.write_text(write_users(users))
    beside.replace(path)


def _known(users: Mapping[str, BrokerUser], names: list[str] | tuple[()]) -> None:
    for name in names:
        if name not in users:
            fail(f"there is no user {name} in the list", NOT_DONE)


def _give_passwords(
    users: Mapping[str, BrokerUser], names: list[str], users_file: Path, passwords: Path | None
) -> None:
    new = {name: secrets.token_hex(PASSWORD_BYTES) for name in names}
    having = {
        name: user.model_copy(update={"password_hash": hashed(new[name], secrets.token_bytes(4))})
        for name, user in users.items()
        if name in new
    }
    # Written first: a password without its user does no harm, a user whose password nobody knows is of no use.
    if passwords:
        make_private(passwords)
        passwords.chmod(0o600)
        with passwords.open("a") as file:
            file.writelines(f"{password_variable(name)}={each}\n" for name, each in new.items())
    _write(users_file, {**users, **having})
    for name, each in new.items():
        out.print(f"{name}: {_does(users[name])}", highlight=False, soft_wrap=True, markup=False)
        where = f"in {passwords}" if passwords else f"{each} (it is not shown again)"
        out.print(f"  password: {where}", highlight=False, soft_wrap=True, markup=False)
