"""Where and why a message died: as the role wrote that dead-lettered it, or else the broker."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cml_contracts.tokens import NOT_KEPT, TOKEN_HEADER
from cml_workers.bus.headers import (
    CAUSE_HEADER,
    DEATH_HEADER,
    DELIVERIES_HEADER,
    QUEUE_HEADER,
    REASON_HEADER,
)
from cml_workers.bus.topology import DELIVERY_LIMIT, counts_as
from cml_workers.foundation.secrets import without_secrets

_BROKER_CAUSES: Mapping[str, tuple[str, str]] = {
    "delivery_limit": (
        "DeliveryLimit",
        f"delivered {DELIVERY_LIMIT + 1} times and never settled: it kills its consumer, or the consumer was killed each time",
    ),
    "rejected": ("Rejected", "rejected by its consumer"),
    "expired": ("Expired", "waited for too long"),
    "maxlen": ("QueueFull", "its queue was full"),
}


@dataclass(frozen=True, slots=True)
class Death:
    """``mark``: distinguishes it from other deaths of the same message."""

    queue: str
    cause: str
    reason: str
    mark: str
    deliveries: int

    @property
    def headers(self) -> dict[str, object]:
        """What says it in a message that is published again, which does not keep what the broker wrote."""
        return {
            QUEUE_HEADER: self.queue,
            CAUSE_HEADER: self.cause,
            REASON_HEADER: self.reason,
            DEATH_HEADER: self.mark,
            DELIVERIES_HEADER: self.deliveries,
        }


def death_of(headers: Mapping[str, object]) -> Death:
    """The last death of a message that is in the dead letters."""
    if QUEUE_HEADER in headers:
        return Death(
            str(headers[QUEUE_HEADER]),
            str(headers.get(CAUSE_HEADER, "Refused")),
            str(headers.get(REASON_HEADER, "")),
            str(headers.get(DEATH_HEADER, "")),
            count(headers.get(DELIVERIES_HEADER)),
        )
    deaths = headers.get("x-death")
    for death in deaths if isinstance(deaths, list) else ():  # the latest first; a retry queue is no death
        queue = counts_as(str(death.get("queue"))) if isinstance(death, dict) else None
        if isinstance(death, dict) and queue:
            cause, reason = _BROKER_CAUSES.get(
                str(death.get("reason")), ("Unknown", str(death.get("reason")))
            )
            mark = f"{death.get('time')}/{death.get('count')}"
            deliveries = DELIVERY_LIMIT + 1 if death.get("reason") == "delivery_limit" else 1
            return Death(queue, cause, reason, mark, deliveries)
    return Death("", "Unknown", "published to the dead letters by another program", "", 1)


def kept(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers of a message that died: no secrets, but that there was a token, as it was for somebody else."""
    token = {TOKEN_HEADER: NOT_KEPT} if TOKEN_HEADER in headers else {}
    return {**without_secrets(headers), **token}


def count(header: object) -> int:
    """The count, within what an INTEGER of PostgreSQL holds, whatever a sender wrote."""
    return max(0, min(header, 2**31 - 1)) if isinstance(header, int) else 0
