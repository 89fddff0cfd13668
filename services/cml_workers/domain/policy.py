"""What a deployment prescribes to the rules."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from cml_workers.domain.ownership import Ownership
from cml_workers.domain.profiles import DEFAULT, Profiles, default_profile

VISIBILITY_GRACE = timedelta(minutes=5)
"""How long a new instance may be invisible before that means it is gone: EC2 is eventually consistent, and AWS advises this."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the deployment prescribes. Empty allow-lists allow everything."""

    deployment: str = "default"
    profiles: Profiles = field(default_factory=lambda: {DEFAULT: default_profile()})
    default_tags: Mapping[str, str] = field(default_factory=dict)
    allowed_regions: frozenset[str] = frozenset()
    allowed_instance_types: frozenset[str] = frozenset()
    import_tags: Mapping[str, str] | None = field(default_factory=dict)
    """What an instance must be tagged with to be imported; None: nothing is imported."""
    visibility_grace: timedelta = VISIBILITY_GRACE
    observation_age: timedelta = timedelta()
    """How old may be what a no-op rests on; zero: EC2 is always asked."""


EVERY_COMMAND = "*"


@dataclass(frozen=True, slots=True)
class Limit:
    """Commands of one user, or for one worker. None: as many as come."""

    at_once: int | None = None
    per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """``users``: which command types each user of the broker may send, ``*`` for all.

    ``delegates``: users that may name others as actors, by a token signed with one of the ``keys``;
    ``operators``: users that may deal with dead letters. ``of_worker``, ``of_user``: how many commands are taken. Not ``enforced``: everybody may do everything in any
    name.
    """

    enforced: bool = False
    users: Mapping[str, frozenset[str]] = field(default_factory=dict)
    delegates: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset()
    keys: tuple[bytes, ...] = ()
    ownership: Ownership = field(default_factory=Ownership)
    of_worker: Limit = Limit()
    of_user: Limit = Limit()
