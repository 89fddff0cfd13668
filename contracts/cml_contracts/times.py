"""Times that callers may give."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except OverflowError:
        raise ValueError("must be a time in the years 1 to 9999, in UTC too") from None


Moment = Annotated[datetime, AfterValidator(_in_utc)]
"""A time, kept in UTC; one without an offset is taken for UTC. Near the ends of the calendar an offset can lead out of it."""
