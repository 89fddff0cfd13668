"""What a process says when one of its safety nets had to work; where no fault was injected it says nothing.

The list is the logging itself: whatever a process retries, retries later, follows again or gives up, it logs as a warning
or worse. So there is no list to forget something in: a test names what it expects, and anything else is too much.
"""

import json

UNPROTECTED = "CML_AUTHORIZE=false: EVERYBODY who reaches RabbitMQ may send every command in any name"
"""The one warning that is about a setting."""


def warnings(log: str, *expected: str) -> list[str]:
    """The lines of a log that report trouble: at level warning or above, of a library, or of a traceback."""
    found = []
    for line in log.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            said = {"level": "error", "event": line}
        if said["level"] not in ("debug", "info") and said["event"] not in (UNPROTECTED, *expected):
            found.append(line)
    return found
