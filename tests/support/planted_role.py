"""A role with a deliberate fault: ``python -m support.planted_role forgotten_reply role lifecycle``, in ``tests``.

The process is the one that ``cml-workers role`` runs, but for one function: so that a test of whole processes can show
that it sees the fault. Nothing in the product knows of this.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from cml_workers.bus.port import Ack
from cml_workers.cli import main
from cml_workers.lifecycle.handler import Finish, Lifecycle


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


PLANTS: Mapping[str, Callable[[], None]] = {"forgotten_reply": forgotten_reply}

if __name__ == "__main__":
    PLANTS[sys.argv[1]]()
    sys.argv[:] = ["cml-workers", *sys.argv[2:]]
    main()
