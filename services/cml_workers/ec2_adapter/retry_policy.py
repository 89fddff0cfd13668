"""How refusals of EC2 are dealt with, and how long is waited before the next attempt: tables of values."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from cml_workers.ec2_adapter.errors import Remedy

AT_ONCE = timedelta()
NEVER = timedelta.max


@dataclass(frozen=True, slots=True)
class Rule:
    """``final_after``: the age of an operation from which on the refusal is final; before that it is attempted again.

    ``uncertain``: the refusal itself says that an earlier attempt may have got through.
    """

    final_after: timedelta
    refresh_credentials: bool = False
    uncertain: bool = False


def rules(authentication_grace: timedelta) -> Mapping[Remedy, Rule]:
    """The rule for each remedy."""
    return {
        Remedy.FAIL: Rule(AT_ONCE),
        Remedy.LOOK_UP_LAUNCH: Rule(AT_ONCE, uncertain=True),
        Remedy.RETRY: Rule(NEVER),
        # Parameters that were created a moment ago may be unknown to EC2.
        Remedy.RETRY_BRIEFLY: Rule(timedelta(minutes=2)),
        # An instance may refuse an operation for its state, as EC2 does not always agree with itself.
        Remedy.DESCRIBE: Rule(timedelta(minutes=10)),
        Remedy.REFRESH: Rule(authentication_grace, refresh_credentials=True),
    }


PAUSES = ((5, 1.0), (10, 5.0))
"""So many times so many seconds between two attempts or two looks; ``LAST_PAUSE`` after that."""
LAST_PAUSE = 15.0
SPREAD, SPREAD_OF_LOOKS = 0.9, 0.2
"""By which part a pause is longer or shorter, so that many that were refused together do not come back together; looks at
instances, which many share, may."""


def pause(tried: int, random: float) -> float:
    """Seconds before the next attempt, after so many; ``random``: from 0 to 1."""
    for times, seconds in PAUSES:
        if tried < times:
            return _spread(seconds, random, SPREAD)
        tried -= times
    return _spread(LAST_PAUSE, random, SPREAD)


def look_again_in(watched: float, random: float) -> float:
    """Seconds before the next look at what has been watched for so many: as after as many attempts, one after another."""
    for times, seconds in PAUSES:
        if watched < times * seconds:
            return _spread(seconds, random, SPREAD_OF_LOOKS)
        watched -= times * seconds
    return _spread(LAST_PAUSE, random, SPREAD_OF_LOOKS)


def _spread(seconds: float, random: float, spread: float) -> float:
    return seconds * (1 + spread * (2 * random - 1))


LOOKUP_ATTEMPTS = 8
"""How often a lookup is repeated before EC2's refusal is its result."""
HANDED_ON = 30
"""Seconds after which the message of an operation that waits in memory comes back, in case this process has died."""
