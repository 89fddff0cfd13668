"""The two kinds of failure that are not a bug: what somebody must mend, and what passes by itself.

What passes is a ``ConnectionError``: the store, the bus or the database does not answer, and whoever meets it
tries again. What somebody must mend is a ``ConfigurationError``.
"""


class ConfigurationError(Exception):
    """It will not work as it is set up; the message says what to mend, in one sentence."""


class AlreadyRunningError(ConfigurationError):
    """Another process runs the embedded system on this data folder."""


class RoleFailedError(Exception):
    """A role ended by itself; the process ends, so that whoever supervises it starts it anew."""
