"""The users of the KurrentDB stand-in, and what the access lists let them do.

As at the server: the list of a stream is the ``$acl`` of its metadata, and what that does not say is said by the default lists of
``$settings``, of which there is one for all streams whose names begin with ``$``, ``$all`` among them. Whoever follows or reads
``$all`` sees the events of all streams. Stricter than the server: nobody is anonymous.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from support.kurrentdb_log import Log

ALL = "$all"
ADMINS = "$admins"
READ, WRITE, DELETE, READ_METADATA, WRITE_METADATA = "$r", "$w", "$d", "$mr", "$mw"
NOTHING_SET: Mapping[str, Mapping[str, Any]] = {
    "$userStreamAcl": dict.fromkeys((READ, WRITE, DELETE, READ_METADATA, WRITE_METADATA), ALL),
    "$systemStreamAcl": dict.fromkeys((READ, WRITE, DELETE, READ_METADATA, WRITE_METADATA), ADMINS),
}
"""The default lists of a new server; in a list, ``$all`` is everybody."""


@dataclass(slots=True)
class User:
    """One of the server's users."""

    password: str
    groups: tuple[str, ...] = ()


@dataclass(slots=True)
class Rights:
    """Of all users, by their names, in what is stored in this log."""

    log: Log
    users: dict[str, User] = field(default_factory=lambda: {"admin": User("changeit", (ADMINS,))})

    def user(self, authorization: str | bytes | None) -> str | None:
        """Who sends this header; None: nobody that is known."""
        given = authorization.decode() if isinstance(authorization, bytes) else authorization
        for name, user in self.users.items():
            if given == "Basic " + base64.b64encode(f"{name}:{user.password}".encode()).decode():
                return name
        return None

    def may(self, name: str, right: str, stream: str) -> bool:
        """Whether the user may do this with the stream."""
        if stream.startswith("$$"):
            if right not in {READ, WRITE}:
                return False
            right, stream = (READ_METADATA if right == READ else WRITE_METADATA), stream[2:]
        if stream == ALL and right not in {READ, READ_METADATA}:
            return False
        groups = self.users[name].groups
        allowed = self._allowed(right, stream)
        return ADMINS in groups or not allowed.isdisjoint({ALL, name, *groups})

    def _allowed(self, right: str, stream: str) -> frozenset[str]:
        default = "$systemStreamAcl" if stream.startswith("$") else "$userStreamAcl"
        lists = (
            self._last(f"$${stream}").get("$acl", {}),
            self._last("$settings").get(default, {}),
            NOTHING_SET[default],
        )
        said = next(each[right] for each in lists if right in each)
        return frozenset([said] if isinstance(said, str) else said)

    def _last(self, stream: str) -> dict[str, Any]:
        records = self.log.streams.get(stream)
        return dict(json.loads(records[-1].data)) if records else {}
