"""The body of a dead letter: shown, and edited in an editor or read from a file."""

import json
import sys
from pathlib import Path

import click

from cml_contracts.commands import COMMANDS
from cml_contracts.deadletters import (
    DeadLetterDetails,
)
from cml_workers.cli.terminal import (
    NOT_DONE,
    USAGE,
    fail,
    valid,
)


def pretty(body: str) -> str:
    """The body, indented if it is JSON."""
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return body


def in_editor(details: DeadLetterDetails) -> str:
    """The body as its operator leaves it in the editor."""
    if details.encoding != "utf-8" or details.size > len(details.body.encode()):
        fail(
            "the body is not text, or too long to be edited here; give another one with --body or --file",
            NOT_DONE,
        )
    try:
        edited = click.edit(pretty(details.body), extension=".json")
    except (click.ClickException, OSError, ValueError) as error:
        cause = error.message if isinstance(error, click.ClickException) else str(error)
        fail(f"{cause}; the dead letter is unchanged. Use another EDITOR, or --body or --file", NOT_DONE)
    if edited is None:
        fail("nothing was changed, so nothing is done; `redrive` sends the message unchanged", NOT_DONE)
    return edited.strip()


def read_body(file: Path) -> str:
    """The body from a file, or (-) from the standard input."""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file}: {error}", USAGE)


def check(message_type: str, body: str) -> None:
    """End with a line about what lifecycle would reject."""
    model = COMMANDS.get(message_type)
    if model is None:
        fail(
            f"there is no command {message_type!r}; --type takes one of: {', '.join(sorted(COMMANDS))}", USAGE
        )
    valid(lambda: model.model_validate_json(body), "the body")
