"""Secrets are in nothing that is printed, logged or kept, in whatever shape they come; and no sender writes to terminals."""

import io
import json
import logging
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from rich.table import Table
from rich.text import Text

from cml_contracts.tokens import sign
from cml_workers.cli.terminal import Terminal
from cml_workers.foundation.secrets import redacted, redacted_values, without_secrets
from cml_workers.foundation.texts import visible

SPECIAL = "Cnry1/Cnry2?Cnry3#Cnry4@Cnry5:Cnry6%Cnry7&Cnry8+Cnry9[Cnry0]"
TOKEN = sign(
    b"k" * 32,
    actor="ann",
    user="portal",
    command_id="1",
    command_type="cml.worker.stop.v1",
    body=b"{}",
    expires=datetime.now(UTC) + timedelta(minutes=5),
)
SECRET = "Cnry-4f2a"

TEXTS = (
    f"no RabbitMQ at amqps://me:{SPECIAL}@one,two/?cafile=/ca.pem: refused",
    f"amqp:/me:{SPECIAL}@host",
    f"two of them: esdb://a:{SECRET}@x:1 and postgresql://b:{SECRET}@y/z",
    f"https://:{SECRET}@host/",
    f"postgresql://host/name?user=me&password={SECRET}&sslmode=require",
    f'{{"Authorization": "Bearer {SECRET} and more {SECRET}"}}',
    f'parameters: (\'{{"x-api-key": "{SECRET}"}}\',)',
    json.dumps({"headers": json.dumps({"Cookie": f"session={SECRET}; a={SECRET}"})}),
    json.dumps(json.dumps(json.dumps({"x-cml-actor-token": SECRET}))),
    f"[('authorization', '{SECRET}')]",
    f"{{'proxy-authorization': b'{SECRET}'}}",
    f"GET / HTTP/1.1\r\nAuthorization: Basic {SECRET}\r\nHost: x",
    f"X-Amz-Security-Token: {SECRET}",
    f"the header was Bearer {SECRET}1234",
    f"the token {TOKEN} has expired",
    f"new row violates check\nDETAIL:  Failing row contains (1, {SECRET}).",
    f"[SQL: INSERT INTO t VALUES (?)]\n[parameters: ('{SECRET}', 1)]",
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_secret_is_not_shown_whatever_text_it_is_in(text: str):
    shown = redacted(text)
    assert "Cnry" not in shown
    assert TOKEN.partition(".")[2] not in shown
    assert "***" in shown
    assert redacted(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        'CML_ACTOR_TOKEN_KEYS: must be JSON, e.g. ["one", "another"]',
        "amqp://guest@127.0.0.1:5672/ does not accept user and password; fix RABBITMQ_URL",
        "no trusted connection to amqps://127.0.0.1:5671/?cafile=/certificates/ca.pem",
        "the token was made for another command",
        "cml.worker.launch-requested.v1 of cml_worker-11111111-2222-4333-8444-555555555555",
        "ann@example.org has no right to cml.worker.stop.v1",
    ],
)
def test_what_is_no_secret_is_shown(text: str):
    assert redacted(text) == text


def test_no_text_of_a_sender_takes_long():
    hostile = ("a:/b:", "a.", "a-", "\\", '"token":"', "token", "x-", "[parameters: ", "Bearer ", "eyJ")
    for part in hostile:
        for text in (part * (65_536 // len(part)), part * (65_536 // len(part)) + "@ token"):
            began = time.monotonic()
            redacted(text)
            assert time.monotonic() - began < 2, part


def test_headers_within_headers_are_kept_without_secrets():
    kept = without_secrets({"a": {"Authorization": "x", "b": 1}, "X-Api-Key": "x", "c": 2})
    assert kept == {"a": {"b": 1}, "c": 2}


def test_values_that_are_logged_are_looked_into():
    class Thing:
        def __repr__(self) -> str:
            return f"Thing(amqp://me:{SECRET}@host)"

    logged = {"headers": {"cookie": SECRET}, "all": [f"amqp://a:{SECRET}@b".encode(), Thing()], "n": 1}
    assert SECRET not in repr(redacted_values(logged))
    assert redacted_values({"n": 1, "ok": True, "none": None}) == {"n": 1, "ok": True, "none": None}


LOGGED = """
import logging, sys, structlog
from cml_workers.runtime.logs import configure_logging
from cml_workers.runtime.settings import load_settings
settings = load_settings()
configure_logging(settings)
secret, attack = sys.argv[1:]
log = structlog.get_logger()
log.info("said", headers={"Authorization": secret}, cause=f"at amqp://me:{secret}@host", reason=attack)
log.info(attack, own=settings.database_url.get_secret_value())
try:
    try:
        raise ValueError(f"DETAIL: {secret}")
    except ValueError as error:
        raise RuntimeError(f"{attack}: [parameters: ('{secret}',)]") from error
except RuntimeError:
    log.exception("failed")
    logging.getLogger("library").exception("Authorization: %s %s", secret, attack)
logging.getLogger("library").error("own %s", settings.database_url.get_secret_value()[16:40])
raise OSError(f"{attack} postgresql://me:{secret}@host")
"""
ATTACK = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202egnp\u2066\r\nforged line"


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_logger_and_no_traceback_shows_a_secret_or_commands_the_terminal(form: str):
    own = "OwnPassword-1"
    done = subprocess.run(
        [sys.executable, "-c", LOGGED, SPECIAL, ATTACK],
        env={
            "CML_LOG_FORMAT": form,
            "CML_LOG_LEVEL": "debug",
            "DATABASE_URL": f"postgresql://me:{own}@host/name",
        },
        capture_output=True,
        check=False,
    )
    said = done.stderr.decode()
    assert done.returncode == 1
    assert said.count("forged line") >= 4
    assert "Cnry" not in said
    assert own not in said
    of_senders = re.sub(r"\x1b\[[0-9;]*m", "", said) if form == "console" else said  # but for the colours
    if form == "console":
        assert not any(line.startswith("forged") for line in said.splitlines()[:2])
    assert not {*"\x1b\x07\x9b\x7f\u202e\u2066\r"} & {*of_senders}


def test_what_is_printed_cannot_command_the_terminal():
    file = io.StringIO()
    terminal = Terminal(file=file, force_terminal=True, width=400, color_system="truecolor")
    table = Table("name", box=None)
    table.add_row(Text(ATTACK, style="red"))
    terminal.print(table)
    terminal.print(ATTACK, markup=False, highlight=False, soft_wrap=True)
    terminal.print("[bold]ours[/bold]", Text("ann\u200cbob \u3000 żółw 🏴"))
    shown = file.getvalue()
    assert "\x1b[1mours" in shown, "our own colours stay"
    assert "ann\u200cbob \u3000 żółw 🏴" in shown
    for control in ("\x1b]0;", "\x1b[2J", "\x9b", "\x7f", "\u202e", "\u2066", "\x07"):
        assert control not in shown
    assert "\\x1b]0;owned" in shown


def test_a_text_on_one_line_stays_there():
    assert visible("a\nb\tc\u2028d", keep="") == "a\\x0ab\\x09c\\u2028d"
    assert visible("a\nb") == "a\nb"


def test_the_formatter_of_libraries_is_the_one_in_use(caplog: pytest.LogCaptureFixture):
    """A library that logs at its own level goes through the root's handler, as no module adds handlers of its own."""
    with caplog.at_level(logging.DEBUG, "aio_pika"):
        assert logging.getLogger("aio_pika").handlers in ([], [caplog.handler])
