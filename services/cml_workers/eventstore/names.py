"""The names of the workers' event streams."""

from contextlib import suppress
from functools import lru_cache
from uuid import UUID

WORKER_STREAMS = "cml_worker-"
"""What the names of their streams begin with."""


def stream_of(worker_id: UUID) -> str:
    """The name of the worker's event stream."""
    return f"{WORKER_STREAMS}{worker_id}"


@lru_cache(10_000)
def worker_of(stream: str) -> UUID:
    """Whose stream it is. Raises ValueError for a stream that is no worker's, as another application may have one."""
    name = stream.removeprefix(WORKER_STREAMS)
    try:
        worker_id = UUID(name)
    except ValueError:
        worker_id = None
    # A UUID is written in many ways, and by us in one.
    if worker_id is None or stream != stream_of(worker_id):
        raise ValueError(f"{stream!r} is not a worker's stream")
    return worker_id


def about_stream(stream: str) -> dict[str, str]:
    """For the log: the stream, and its worker where it has one."""
    with suppress(ValueError):
        return {"stream": stream, "worker_id": str(worker_of(stream))}
    return {"stream": stream}


def is_workers(stream: str) -> bool:
    """Whether the stream is a worker's."""
    try:
        worker_of(stream)
    except ValueError:
        return False
    return True
