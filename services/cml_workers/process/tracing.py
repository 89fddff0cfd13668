"""Whether a process traces what its roles do; all of them, by their ports, and none has a line of its own for that."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace

from cml_workers.foundation import tracing
from cml_workers.runtime.role import Infrastructure, Part, Role
from cml_workers.runtime.settings import Settings


@asynccontextmanager
async def traced(
    settings: Settings, roles: Collection[Role]
) -> AsyncIterator[Callable[[Infrastructure], Infrastructure]]:
    """Until the context ends, what is made of what the roles are given: the same with spans, where somebody is to get them."""
    if not settings.traces:
        yield lambda given: given
        return
    # Not imported by a process that does not trace.
    from cml_workers.tracing.bus import traced as traced_bus  # noqa: PLC0415
    from cml_workers.tracing.exporting import exported  # noqa: PLC0415
    from cml_workers.tracing.store import TracedStore  # noqa: PLC0415
    from cml_workers.tracing.tracer import Spans  # noqa: PLC0415

    service = "-".join(["cml", *(role.name for role in roles)]) if len(roles) == 1 else "cml-workers"
    exporting = exported(service, {"service.namespace": settings.deployment})
    spans = Spans(exporting.__enter__())
    tracing.use(spans)

    def with_spans(given: Infrastructure) -> Infrastructure:
        if any(Part.STORE in role.needs for role in roles):
            given = replace(given, store=TracedStore(given.store, spans))
        return replace(given, kind_of_bus=traced_bus(spans))

    try:
        yield with_spans
    finally:
        tracing.use(None)
        await asyncio.to_thread(exporting.__exit__, None, None, None)
