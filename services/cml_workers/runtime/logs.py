"""Structured logs: lines for people on a terminal, JSON elsewhere; without secrets, whoever logs them.

What libraries and the interpreter say comes in the same form. What a line is about: ``foundation.ids``.
"""

import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, TextIO

import structlog
from pydantic_core import to_json

from cml_workers.foundation.secrets import conceal, redacted_values
from cml_workers.foundation.texts import visible, visible_json
from cml_workers.foundation.tracing import here, trace_of
from cml_workers.runtime.settings import Settings

Line = MutableMapping[str, Any]

FIRST = ("timestamp", "level", "role", "event")
"""What every line begins with; then comes what is said, then what it is about, and at the end what takes most room."""
IDS = (
    "command",
    "command_id",
    "operation_id",
    "worker_id",
    "instance_id",
    "revision",
    "queue",
    "message_id",
    "correlation_id",
    "trace_id",
)
LAST = ("logger", "exception", "stack", "detail")
WITH_CONTENTS = ("aio_pika", "aiormq", "aiobotocore", "boto3", "botocore", "moto", "sqlalchemy", "urllib3")
"""Libraries that show messages, requests and rows at the level debug: bodies, user data, tokens. They get no lower than info."""
AWS_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
SHORTEST_OF_AWS = 16
"""Characters of a key's id, the shortest of them (https://docs.aws.amazon.com/IAM/latest/APIReference/API_AccessKey.html)."""

_PLACED = frozenset((*FIRST, *IDS, *LAST))
EVERYTHING = structlog.make_filtering_bound_logger(logging.NOTSET)

log = structlog.get_logger(__name__)


def configure_logging(settings: Settings) -> None:
    """Set structlog and the standard library's logs up for this process; logs go to stderr, results to stdout.

    Tracebacks come without local variables: these may hold what must not be logged.
    """
    conceal([*settings.secrets(urls=False), *_of_aws()], settings.secrets(urls=True))
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        in_its_trace,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.add_logger_name,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _ordered_without_secrets,
        *(
            [
                _on_one_line,
                structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
                _bytes,
            ]
            if is_console(settings)
            else [structlog.processors.JSONRenderer(_as_json)]
        ),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=_to_stderr,
        cache_logger_on_first_use=True,
    )
    of_libraries = settings.library_log_level.upper()
    logging.basicConfig(level=of_libraries, handlers=[_Libraries()])
    if of_libraries != "WARNING":  # otherwise as little as whoever uses them wants
        for library in WITH_CONTENTS:
            logging.getLogger(library).setLevel(max(logging.getLogger().level, logging.INFO))
    warnings.showwarning = _warned
    sys.excepthook = _unexpected
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _unexpected_in_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unexpected_in_passing
    # The C core of gRPC writes to stderr by itself, in a form of its own, what it also raises.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def ready(role: str) -> None:
    """Said whatever the level is: somebody waits for it."""
    structlog.wrap_logger(_to_stderr(__name__), wrapper_class=EVERYTHING).info(f"{role} is ready")


def ends(cause: str) -> None:
    """What ends a process that cannot go on, and is no error of the program."""
    log.critical("the process ends", cause=cause)


def _of_aws() -> list[str]:
    """What the environment has of them; the ids of keys are found by their form. The simulator's are words."""
    return [value for name in AWS_SECRETS if len(value := os.environ.get(name, "")) >= SHORTEST_OF_AWS]


def is_console(settings: Settings) -> bool:
    """Whether the lines are for people."""
    return settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())


def _to_stderr(name: str = "") -> structlog.BytesLogger:
    return structlog.BytesLogger(sys.stderr.buffer, name=name)


class _Libraries(logging.Handler):
    """What libraries log with the standard library, and asyncio of errors that nobody awaits."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            said, _, detail = record.getMessage().strip().partition("\n")
            level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
            # Its level was compared already, with the one for libraries.
            logger = structlog.wrap_logger(_to_stderr(record.name), wrapper_class=EVERYTHING)
            more = {"detail": detail} if detail else {}
            logger.log(level, said, exc_info=record.exc_info or None, **more)
        except Exception:  # noqa: BLE001 - as with all handlers of the standard library
            self.handleError(record)


def in_its_trace(_logger: Any, _method: str, line: Line) -> Line:
    """The line with the id of the current trace, if there is one."""
    if traceparent := here():
        line["trace_id"] = trace_of(traceparent)
    return line


def _ordered_without_secrets(_logger: Any, _method: str, line: Line) -> Line:
    """``exc_info`` is a text by now."""
    kept = (*FIRST, *(name for name in line if name not in _PLACED), *IDS, *LAST)
    shown: Line = redacted_values({name: line[name] for name in kept if name in line})
    return shown


def _bytes(_logger: Any, _method: str, line: str) -> bytes:
    return line.encode(errors="backslashreplace")


def _as_json(line: Any, **_: Any) -> bytes:
    """Several times faster than the standard library's, which takes what this one cannot write."""
    try:
        written = to_json(line, fallback=repr, inf_nan_mode="strings")
        return visible_json(written.decode()).encode()
    except ValueError:  # bytes or text that is no UTF-8
        return json.dumps(line, default=repr).encode()


def _on_one_line(_logger: Any, _method: str, line: Line) -> Line:
    """For a terminal, which no sender is to command, nor to show lines of his own; tracebacks have several."""
    return {
        name: value
        if isinstance(value, int | float | None)
        else visible(str(value), keep="\n\t" if name in LAST else "")
        for name, value in line.items()
    }


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001 - nobody names one
    line: str | None = None,  # noqa: ARG001 - it is in the file
) -> None:
    warning = structlog.get_logger("py.warnings")
    warning.warning(str(message), category=category.__name__, where=f"{filename}:{lineno}")


def _unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("unexpected error: the process ends", exc_info=(kind, error, trace))


def _unexpected_in_thread(about: threading.ExceptHookArgs) -> None:
    if about.exc_value is not None and not isinstance(about.exc_value, SystemExit):
        log.error(
            "unexpected error: a thread ends",
            thread=about.thread and about.thread.name,
            exc_info=(about.exc_type, about.exc_value, about.exc_traceback),
        )


def _unexpected_in_passing(about: "sys.UnraisableHookArgs") -> None:
    """E.g. in a destructor."""
    if about.exc_value is not None:
        log.error(
            "unexpected error where nobody can be given it",
            where=getattr(about.object, "__qualname__", type(about.object).__qualname__),
            exc_info=(about.exc_type, about.exc_value, about.exc_traceback),
        )
