"""The two kinds of failure that are not a bug: an outage, and wrong configuration.

An outage is a ``ConnectionError``: the store, the bus or the database does not answer, and the call is tried again.
Wrong configuration is a ``ConfigurationError``: an operator must fix it.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigurationError(Exception):
    """The configuration is wrong; the message says what to fix, in one sentence."""


class AlreadyRunningError(ConfigurationError):
    """Another process runs the embedded system on this data folder."""


class RoleFailedError(Exception):
    """A role ended by itself; the process ends, so that whoever supervises it starts it again."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that there is not; empty where none is like it."""
    nearest = get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
