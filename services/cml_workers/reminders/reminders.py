"""Reminders of pending operations, so that a lost or dead-lettered message delays an operation and never loses it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID, uuid5

import structlog

from cml_workers.bus.codec import internal
from cml_workers.bus.port import Publish
from cml_workers.domain.messages import OperationOutstanding, Reminder
from cml_workers.domain.operations import ids_of
from cml_workers.readmodels.workers.queries import pending, unsettled
from cml_workers.sql.port import Database

log = structlog.get_logger(__name__)

_NAMESPACE = UUID("3c1c2a0e-5b0f-4c52-9a53-6f3f3a8c7b14")


class Reminders:
    """Finds in the read model what has waited for longer than it should.

    ``after``: the age at which a pending operation is reminded of, again at every round. ``deadline``: the age at
    which it is also reported as outstanding, which makes an event of it.
    """

    def __init__(
        self,
        *,
        database: Database,
        publish: Publish,
        now: Callable[[], datetime],
        after: timedelta,
        deadline: timedelta,
    ) -> None:
        self._database = database
        self._publish = publish
        self._now = now
        self._after = after
        self._deadline = deadline

    async def round(self) -> int:
        """Trigger every worker with a pending operation, or whose instance is in transition; how many that were.

        Raises:
            DatabaseUnavailableError, BusUnavailableError: the next round will do.
        """
        now = self._now()
        waiting = await pending(self._database, now - self._after)
        workers = dict.fromkeys(
            [*(each.view.worker_id for each in waiting), *await unsettled(self._database)]
        )
        for worker_id in workers:
            await self._send(Reminder(worker_id=worker_id), f"{worker_id}/{now.isoformat()}")
        for each in waiting:
            operation = each.view
            if operation.overdue_at is None and operation.requested_at < now - self._deadline:
                log.error(
                    "operation overdue",
                    worker_id=str(operation.worker_id),
                    **ids_of(each.operation_id),
                    since=operation.requested_at.isoformat(),
                )
                outstanding = OperationOutstanding(
                    worker_id=operation.worker_id, operation_id=each.operation_id
                )
                await self._send(outstanding, f"{each.operation_id}/outstanding")
        return len(workers)

    async def _send(self, message: Reminder | OperationOutstanding, identity: str) -> None:
        await self._publish(internal(message, str(uuid5(_NAMESPACE, identity))))
