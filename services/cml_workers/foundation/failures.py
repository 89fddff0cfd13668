"""The two kinds of failure that are not a bug: an outage, and wrong configuration.

An outage is a ``ConnectionError``: the store, the bus or the database does not answer, and the call is tried again.
Wrong configuration is a ``ConfigurationError``: an operator must fix it.
"""


class ConfigurationError(Exception):
    """The configuration is wrong; the message says what to fix, in one sentence."""


class AlreadyRunningError(ConfigurationError):
    """Another process runs the embedded system on this data folder."""


class RoleFailedError(Exception):
    """A role ended by itself; the process ends, so that whoever supervises it starts it again."""
