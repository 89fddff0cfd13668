"""What a line of the log is about: the ids that are bound here are in every line of what is done for them, libraries' lines included.

They are in the context of the task, so each task that is made has them, too; one that outlives what it was made in is made ``apart``.
Names are the same everywhere: ``role``; ``queue`` and ``message_id`` of the message that is handled; ``command``, the type, and ``command_id``,
as it was sent; ``operation_id``, which is what the streams know it by; ``worker_id``, ``instance_id``, ``revision``; ``trace_id`` where it is traced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context

from structlog.contextvars import (
    bind_contextvars,
    clear_contextvars,
    get_contextvars,
    unbind_contextvars,
)


def bind(**ids: object) -> None:
    """Until the end of the innermost ``about``; None: there is none."""
    unbind_contextvars(*(name for name, value in ids.items() if value is None))
    bind_contextvars(**{name: _plain(value) for name, value in ids.items() if value is not None})


@contextmanager
def about(**ids: object) -> Iterator[None]:
    """Bind the ids, and whatever is bound within, until the context ends."""
    before = get_contextvars()
    bind(**ids)
    try:
        yield
    finally:
        clear_contextvars()
        bind_contextvars(**before)


def apart() -> Context:
    """A context for a task that belongs to no message, whoever happens to make it: it knows its role, and nothing else."""
    context = Context()
    if role := get_contextvars().get("role"):
        context.run(bind_contextvars, role=role)
    return context


def _plain(value: object) -> object:
    return value if isinstance(value, int) else str(value)
