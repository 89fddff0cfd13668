"""Structured logs: lines for people on a terminal, JSON elsewhere; without secrets, whoever logs them."""

import json
import logging
import sys
import traceback
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any

import structlog
from pydantic_core import to_json

from cml_workers.foundation.secrets import conceal, redacted, redacted_values
from cml_workers.foundation.texts import visible, visible_json
from cml_workers.runtime.settings import Settings


def configure_logging(settings: Settings) -> None:
    """Set structlog up for this process; logs go to stderr, results to stdout.

    Tracebacks come without local variables: these may hold what must not be logged.
    """
    conceal(settings.secrets())
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    libraries = logging.StreamHandler(sys.stderr)
    libraries.setFormatter(_OfLibraries("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[libraries])
    sys.excepthook = _unexpected
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _without_secrets,
            *(
                [
                    _on_one_line,
                    structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
                ]
                if console
                else [structlog.processors.JSONRenderer(_as_json)]
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr)
        if console
        else structlog.BytesLoggerFactory(sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )


def _as_json(line: Any, **_: Any) -> bytes:
    """Several times faster than the standard library's, which takes what this one cannot write."""
    try:
        written = to_json(line, fallback=repr, inf_nan_mode="strings")
        return visible_json(written.decode()).encode()
    except ValueError:  # bytes or text that is no UTF-8
        return json.dumps(line, default=repr).encode()


def _without_secrets(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """``exc_info`` is a text by now."""
    return {name: redacted_values(value) for name, value in line.items()}


def _on_one_line(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """For a terminal, which no sender is to command, nor to show lines of his own; tracebacks have several."""
    several = ("exception", "stack")
    return {
        name: value
        if isinstance(value, int | float | None)
        else visible(str(value), keep="\n\t" if name in several else "")
        for name, value in line.items()
    }


class _OfLibraries(logging.Formatter):
    """What libraries log with the standard library, tracebacks included."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        return visible(super().formatMessage(record), keep="")

    def format(self, record: logging.LogRecord) -> str:
        return visible(redacted(super().format(record)))


def _unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What ends a process unexpectedly, as Python shows it, without secrets."""
    sys.stderr.write(visible(redacted("".join(traceback.format_exception(kind, error, trace)))))
