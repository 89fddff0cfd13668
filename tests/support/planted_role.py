"""A role with a deliberate fault: ``python -m support.planted_role forgotten_reply role lifecycle``, in ``tests``.

The process is the one that ``cml-workers role`` runs, but for one function: so that a test of whole processes can show
that it sees the fault. Nothing in the product knows of this.
"""

import sys
from collections.abc import Callable, Mapping

from cml_contracts.envelope import CommandMessage
from cml_workers.bus.port import Done, Verdict
from cml_workers.cli import main
from cml_workers.lifecycle.handler import Lifecycle
from cml_workers.worker import Operation, Worker


def forgotten_reply() -> None:
    """A command that was accepted before and is pending is done at once.

    So it was: what else its events settled, e.g. the start that a termination superseded, is never answered where the
    first delivery recorded them and sent no reply.
    """
    repeat = Lifecycle._repeat

    async def _repeat(
        self: Lifecycle, message: CommandMessage, worker: Worker, operation: Operation
    ) -> Verdict:
        if operation.result is None and message.reply in (None, operation.requested.reply):
            sys.stderr.write(f"planted: {message.command_id} is done\n")
            sys.stderr.flush()
            return Done()
        return await repeat(self, message, worker, operation)

    Lifecycle._repeat = _repeat  # type: ignore[method-assign]


PLANTS: Mapping[str, Callable[[], None]] = {"forgotten_reply": forgotten_reply}

if __name__ == "__main__":
    PLANTS[sys.argv[1]]()
    sys.argv[:] = ["cml-workers", *sys.argv[2:]]
    main()
