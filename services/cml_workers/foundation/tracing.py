"""Spans of what a process does, where it traces: roles name here what is worth one beside what goes through their ports anyway.

Off, as it is by default, a span costs a comparison, and nothing of OpenTelemetry is imported. Attributes are ids, types, codes and
numbers; never a name, a reason, a tag or another free text.
"""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Protocol

TRACEPARENT = "traceparent"
"""The header: https://www.w3.org/TR/trace-context/#traceparent-header"""
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

Attributes = Mapping[str, str | int | float | bool | None]
"""Those that are None are omitted."""

WORKER, INSTANCE, STATUS, REGION = "cml.worker_id", "cml.instance_id", "cml.status", "aws.region"
COMMAND, COMMAND_ID = "cml.command", "cml.command_id"
API = "rpc.method"
ATTEMPT, OUTCOME, PROBLEM = "cml.attempt", "cml.outcome", "cml.problem_code"


class Span(Protocol):
    """What is being measured."""

    def put(self, attributes: Attributes, /) -> None:
        """Say more of it."""
        ...


class Tracer(Protocol):
    """Makes the spans of a process."""

    def span(
        self, name: str, about: Attributes, *, parent: str | None, link: str | None, outside: bool
    ) -> AbstractContextManager[Span]:
        """See ``span``."""
        ...

    def past(
        self, name: str, about: Attributes, since: datetime, until: datetime, parent: str | None
    ) -> None:
        """See ``past``."""
        ...

    def here(self) -> str | None:
        """See ``here``."""
        ...


class _Nothing:
    def put(self, _: Attributes, /) -> None:
        pass


_OFF = nullcontext(_Nothing())
_tracer: Tracer | None = None


def use(tracer: Tracer | None) -> None:
    """Have the process's spans made by it; None: there are none."""
    global _tracer  # noqa: PLW0603 - one for the process, as its metrics
    _tracer = tracer


def span(
    name: str,
    about: Attributes,
    *,
    parent: str | None = None,
    link: str | None = None,
    outside: bool = False,
) -> AbstractContextManager[Span]:
    """While the context lasts. It is within the span that is current, and linked to ``link``, a traceparent.

    ``parent``: the traceparent of the operation that it is part of, whatever brings it about now; that is linked where it is of another trace.
    ``outside``: another system is called.
    """
    return _OFF if _tracer is None else _tracer.span(name, about, parent=parent, link=link, outside=outside)


def past(name: str, about: Attributes, *, since: datetime, until: datetime, parent: str | None) -> None:
    """What is over, and outlives processes: its span is made at its end. ``parent``: the operation's traceparent."""
    if _tracer is not None:
        _tracer.past(name, about, since, until, parent)


def here() -> str | None:
    """The traceparent of the current span; None if there is none."""
    return None if _tracer is None else _tracer.here()


def trace_of(traceparent: str) -> str:
    """The id of its trace."""
    return traceparent.split("-")[1]


def as_traceparent(header: object) -> str | None:
    """What somebody wrote into the header, if it is one. It says what belongs together, and is believed for nothing else."""
    return header if isinstance(header, str) and _TRACEPARENT.fullmatch(header) else None
