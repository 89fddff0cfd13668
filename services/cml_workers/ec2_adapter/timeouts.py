"""How long a call to EC2 may take, and what is longer because it depends on that."""

from datetime import timedelta

from cml_workers.ec2_adapter.instances import SETTLING
from cml_workers.ec2_adapter.port import LONGEST_CALL
from cml_workers.ec2_adapter.tenure import FRESH, TAKEOVER
from cml_workers.foundation.failures import ConfigurationError

LEAST_CALL = timedelta(seconds=10)
"""Less than this no grace asks for: one that would is shorter than any EC2 keeps to, as tests have it, and no reason to give up
calls that a busy machine answers late."""


def fresh_for(heartbeat: timedelta) -> timedelta:
    """How long what was read may be acted on, with a broker that gives up who is silent for two heartbeats."""
    return min(FRESH, heartbeat)


def longest_call(asked: float | None, *, heartbeat: timedelta, grace: timedelta) -> timedelta:
    """How long a call may take; ``asked``: in seconds, None: what is possible. ``grace``: see ``Policy.visibility_grace``.

    A leader may send one at the very end of what it may act on, and then be lost. Its successor concludes from what EC2 shows
    what that call has done; it must have ended by then, as whatever comes later undoes what is recorded.

    Raises ConfigurationError if that does not hold.
    """
    settling, fresh = min(SETTLING, grace), fresh_for(heartbeat)
    latest = settling - fresh - TAKEOVER
    if asked is None:
        return min(LONGEST_CALL, latest) if latest >= LEAST_CALL else LONGEST_CALL
    if timedelta(seconds=asked) > latest:
        raise ConfigurationError(
            f"CML_EC2_CALL_SECONDS is {asked:g}, and must be at most {latest.total_seconds():g}: what a call has done is "
            f"concluded after {settling.total_seconds():g} s (a minute, or a shorter CML_VISIBILITY_GRACE_SECONDS), a call may be "
            f"sent {fresh.total_seconds():g} s after the stream was read (20, or a shorter heartbeat of RABBITMQ_URL), and the "
            f"next leader acts {TAKEOVER.total_seconds():g} s after that"
        )
    return timedelta(seconds=asked)
