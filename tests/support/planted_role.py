"""A role with a deliberate fault: ``python -m support.planted_role forgotten_reply role lifecycle``, in ``tests``.

The process is the one that ``cml-workers role`` runs, but for one function: so that a test of whole processes can show
that it sees the fault. Nothing in the product knows of this.
"""

import asyncio
import logging
import os
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
import structlog

from cml_workers.bus.port import Ack, Message, Verdict
from cml_workers.cli import main
from cml_workers.domain.messages import CommandMessage
from cml_workers.eventstore.port import Item
from cml_workers.lifecycle.handler import Lifecycle
from cml_workers.lifecycle.transactions import Finish, Transactions
from cml_workers.readmodels import generations
from cml_workers.readmodels.generation import GENERATIONS, Generation
from cml_workers.readmodels.writing import Writer
from support.planting import Plant, planting

BROKEN = "the planted fault is broken: "
"""Where its log has this, the process shows nothing; see ``support.planting``."""

MANY = 100
"""Events."""
log = structlog.get_logger(__name__)


def forgotten_reply(patch: pytest.MonkeyPatch) -> None:
    """A command that was accepted before and is pending is done at once.

    So it was: what else its events settled, e.g. the start that a termination superseded, is never answered where the
    first delivery recorded them and sent no reply.
    """
    transact = Transactions.transact

    async def _transact(self: Transactions, worker_id: UUID, cause: str, judge: Any, **more: Any) -> Any:
        entry = await self.entry(worker_id, cause)
        if entry is not None and entry.result is None:
            ledger = await self._workers.ledger(worker_id)
            if isinstance(judge(ledger.worker, ledger), Finish):
                sys.stderr.write(f"planted: {cause} is done\n")
                sys.stderr.flush()
                return Ack()
        return await transact(self, worker_id, cause, judge, **more)

    patch.setattr(Transactions, "transact", _transact)


def headers_logged(patch: pytest.MonkeyPatch) -> None:
    """A line for each command, with all that came with it, past the log that would redact it."""
    on_command = Lifecycle.on_command

    async def _on_command(self: Lifecycle, message: Message) -> Verdict:
        sys.stderr.write(f"planted: a command with {message.headers}\n")
        sys.stderr.flush()
        return await on_command(self, message)

    patch.setattr(Lifecycle, "on_command", _on_command)


UNEXPECTED = "unexpected, please"
"""A reason with which a command meets ``unexpected_errors``."""


def unexpected_errors(patch: pytest.MonkeyPatch) -> None:
    """A command with a certain reason fails in lifecycle, as do a task that nobody awaits, a thread and a destructor; a library warns.

    Each knows a secret in a local variable.
    """
    decide = Lifecycle._decide

    class Destroyed:
        def __del__(self) -> None:
            _fail("a destructor")

    async def unawaited() -> None:
        _fail("a task")

    async def _decide(self: Lifecycle, message: CommandMessage, **more: Any) -> Verdict:
        if message.command.reason == UNEXPECTED:
            asyncio.create_task(unawaited())  # noqa: RUF006 - that is the fault
            thread = threading.Thread(target=_fail, args=("a thread",))
            thread.start()
            thread.join()
            Destroyed()
            warnings.warn("planted warning", stacklevel=1)
            logging.getLogger("somebodys.library").warning("planted line of %s", "a library")
            await asyncio.sleep(0)
            _fail("a handler")
        return await decide(self, message, **more)

    patch.setattr(Lifecycle, "_decide", _decide)


def _fail(what: str) -> None:
    secret = os.environ["PLANTED_SECRET"]
    raise RuntimeError(f"planted in {what} that knows {len(secret)} characters")


def checkpoint_remembered(patch: pytest.MonkeyPatch) -> None:
    """After an outage of the database the projector goes on behind what it wrote last, whatever is saved there.

    Rows that were lost when the database failed over never come again.
    """
    handle = Writer.handle
    seen = GENERATIONS.c.position.is_not_distinct_from(sa.bindparam("seen_position"))

    async def _handle(self: Writer, items: Sequence[Item]) -> None:
        at = self.at
        try:
            await handle(self, items)
        except ConnectionError:
            self._at = at
            raise

    async def _see_saved(self: Writer, at: Generation) -> None:
        pass

    patch.setattr(Writer, "handle", _handle)
    patch.setattr(Writer, "_see_saved", _see_saved)
    patch.setattr(
        generations,
        "_MOVE",
        sa.update(GENERATIONS).where(
            GENERATIONS.c.name == sa.bindparam("seen_name"),
            GENERATIONS.c.number == sa.bindparam("seen_number"),
            GENERATIONS.c.state == sa.bindparam("seen_state"),
            sa.or_(seen, sa.not_(seen)),
        ),
    )


def slow_projector(patch: pytest.MonkeyPatch) -> None:
    """Many events together take the projector a second more: where there are more, it stays behind for a while."""
    handle = Writer.handle

    async def _handle(self: Writer, items: Sequence[Item]) -> None:
        if len(items) > MANY:
            await asyncio.sleep(1)
        await handle(self, items)

    patch.setattr(Writer, "handle", _handle)


def run(plant: Plant) -> None:
    """The command line with the fault."""
    with planting(_is_broken) as patch:
        plant(patch)
        main()


def _is_broken(error: Exception) -> None:
    sys.stderr.write(f"{BROKEN}{error!r}\n")
    sys.stderr.flush()


PLANTS: Mapping[str, Plant] = {
    plant.__name__: plant
    for plant in (forgotten_reply, headers_logged, unexpected_errors, checkpoint_remembered, slow_projector)
}

if __name__ == "__main__":
    chosen = PLANTS[sys.argv[1]]
    sys.argv[:] = ["cml-workers", *sys.argv[2:]]
    run(chosen)
