"""A role with a deliberate fault: ``python -m support.planted_role forgotten_reply role lifecycle``, in ``tests``.

The process is the one that ``cml-workers role`` runs, but for one function: so that a test of whole processes can show
that it sees the fault. Nothing in the product knows of this.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import structlog

from cml_workers.bus.port import Ack, Message, Verdict
from cml_workers.cli import main
from cml_workers.lifecycle.handler import Finish, Lifecycle

log = structlog.get_logger(__name__)


def forgotten_reply() -> None:
    """A command that was accepted before and is pending is done at once.

    So it was: what else its events settled, e.g. the start that a termination superseded, is never answered where the
    first delivery recorded them and sent no reply.
    """
    transact = Lifecycle._transact

    async def _transact(self: Lifecycle, worker_id: UUID, cause: str, judge: Any, *origin: Any) -> Any:
        worker = await self._workers.newest(worker_id)
        operation = worker.operations.get(cause)
        if operation is not None and operation.result is None and isinstance(judge(worker), Finish):
            sys.stderr.write(f"planted: {cause} is done\n")
            sys.stderr.flush()
            return Ack()
        return await transact(self, worker_id, cause, judge, *origin)

    Lifecycle._transact = _transact  # type: ignore[assignment, method-assign]


def headers_logged() -> None:
    """A line for each command, with all that came with it."""
    on_command = Lifecycle.on_command

    async def _on_command(self: Lifecycle, message: Message) -> Verdict:
        log.debug("a command", headers=message.headers)
        return await on_command(self, message)

    Lifecycle.on_command = _on_command  # type: ignore[method-assign]


PLANTS: Mapping[str, Callable[[], None]] = {
    plant.__name__: plant for plant in (forgotten_reply, headers_logged)
}

if __name__ == "__main__":
    PLANTS[sys.argv[1]]()
    sys.argv[:] = ["cml-workers", *sys.argv[2:]]
    main()
