"""Lines of one form, whoever logs them, and what they are about."""

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest
from structlog.contextvars import get_contextvars

from cml_workers.domain.operations import ids_of, of_user
from cml_workers.foundation.ids import about, apart, bind
from support.running import unconfigured

Line = dict[str, Any]

SAID = """
import asyncio, gc, logging, os, sys, threading, warnings
import structlog
from cml_workers.foundation.ids import about
from cml_workers.runtime.logs import configure_logging
from cml_workers.runtime.settings import load_settings
settings = load_settings()
configure_logging(settings)
structlog.get_logger("cml_workers.some").info("ours", password="hidden-1", nested={"api_key": "hidden-2"}, n=1)
structlog.get_logger("cml_workers.some").debug("ours at debug")

def fails(what):
    secret = "hid" + "den-3"
    raise RuntimeError(what)

class Destroyed:
    def __del__(self):
        fails("in a destructor")

async def main():
    with about(worker_id="w-1", command_id="c-1"):
        for library in ("botocore.endpoint", "aiormq.connection", "aio_pika", "sqlalchemy.engine.Engine", "some.library"):
            for level in (logging.DEBUG, logging.INFO, logging.WARNING, 35):
                logging.getLogger(library).log(level, "%s: Authorization: hidden-4", level)
        warnings.warn("a warning", stacklevel=1)
        task = asyncio.create_task(asyncio.to_thread(fails, "in a task"))
        await asyncio.wait([task])
        del task
        gc.collect()
        thread = threading.Thread(target=fails, args=("in a thread",), name="some-thread")
        thread.start()
        thread.join()
        Destroyed()

asyncio.run(main())
fails("at the end, postgresql://me:hidden-5@host/name")
"""


def said(**settings: str) -> list[Line]:
    done = subprocess.run(
        [sys.executable, "-c", SAID],
        env={**unconfigured(), "CML_LOG_FORMAT": "json", **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "hidden-" not in done.stderr
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_every_line_is_of_the_same_form() -> None:
    lines = said()
    for line in lines:
        assert list(line)[:3] == ["timestamp", "level", "event"]
        assert line["logger"]
        assert "\n" not in line["event"]
    assert lines[0]["nested"] == {"api_key": "***"}
    assert (lines[0]["password"], lines[0]["n"]) == ("***", 1)
    [warned] = (line for line in lines if line["logger"] == "py.warnings")
    assert (warned["event"], warned["category"]) == ("a warning", "UserWarning")
    assert warned["where"].startswith("<string>:")


def test_an_unexpected_error_has_a_stack_trace_wherever_it_is() -> None:
    failed = {line["event"]: line for line in said() if "exception" in line}
    assert {event: line["level"] for event, line in failed.items()} == {
        "Task exception was never retrieved": "error",
        "unexpected error: a thread ends": "error",
        "unexpected error where nobody can be given it": "error",
        "unexpected error: the process ends": "critical",
    }
    for line in failed.values():
        assert "in fails\nRuntimeError: " in line["exception"]
    assert failed["Task exception was never retrieved"]["worker_id"] == "w-1"
    assert failed["unexpected error: a thread ends"]["thread"] == "some-thread"
    assert "postgresql://me:***@host/name" in failed["unexpected error: the process ends"]["exception"]


@pytest.mark.parametrize(
    ("level", "of_some", "of_those_that_show_contents"),
    [
        ("debug", ["debug", "info", "warning", "warning"], ["info", "warning", "warning"]),
        ("info", ["info", "warning", "warning"], ["info", "warning", "warning"]),
        ("warning", ["warning", "warning"], ["warning", "warning"]),
        ("error", [], []),
    ],
)
def test_libraries_have_a_level_of_their_own(
    level: str, of_some: list[str], of_those_that_show_contents: list[str]
) -> None:
    lines = said(CML_LIBRARY_LOG_LEVEL=level, CML_LOG_LEVEL="error")
    assert [line["level"] for line in lines if line["logger"] == "some.library"] == of_some
    for library in ("botocore.endpoint", "aiormq.connection", "aio_pika", "sqlalchemy.engine.Engine"):
        of_it = [line for line in lines if line["logger"] == library]
        assert [line["level"] for line in of_it] == of_those_that_show_contents, library
        assert all((line["worker_id"], line["command_id"]) == ("w-1", "c-1") for line in of_it)
    assert not any(line["event"] == "ours" for line in lines)


def test_what_is_bound_ends_with_what_it_was_bound_for() -> None:
    with about(role="lifecycle"):
        with about(queue="q"):
            bind(worker_id=1, instance_id=None)
            assert get_contextvars() == {"role": "lifecycle", "queue": "q", "worker_id": 1}
            with about(worker_id=None, **ids_of("c")):
                assert get_contextvars() == {"role": "lifecycle", "queue": "q", "command_id": "c"}
            assert get_contextvars() == {"role": "lifecycle", "queue": "q", "worker_id": 1}
        assert get_contextvars() == {"role": "lifecycle"}
    assert get_contextvars() == {}


def test_an_operation_that_another_users_has_the_id_of_is_known_by_both_its_ids() -> None:
    own = of_user("c", "portal")
    assert ids_of("c") == {"command_id": "c", "operation_id": None}
    assert ids_of(own) == {"command_id": "c", "operation_id": own}


async def test_a_task_of_its_own_is_about_its_role_and_nothing_else() -> None:
    async def known() -> dict[str, Any]:
        return get_contextvars()

    loop = asyncio.get_running_loop()
    with about(role="relay", worker_id="w"):
        assert await loop.create_task(known()) == {"role": "relay", "worker_id": "w"}
        assert await loop.create_task(known(), context=apart()) == {"role": "relay"}
    assert await loop.create_task(known(), context=apart()) == {}
