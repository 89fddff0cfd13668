"""The roles there are; what each is, its own ``main.py`` says. And what they believe of each other's messages."""

from collections.abc import Collection, Mapping

from cml_workers.bus.trust import Trust
from cml_workers.ec2_adapter.main import EC2_ADAPTER
from cml_workers.foundation.failures import did_you_mean
from cml_workers.lifecycle.main import LIFECYCLE
from cml_workers.projector.main import PROJECTOR
from cml_workers.relay.main import RELAY
from cml_workers.runtime.role import Role
from cml_workers.runtime.settings import Settings, SettingsError

ROLES: Mapping[str, Role] = {role.name: role for role in (LIFECYCLE, RELAY, EC2_ADAPTER, PROJECTOR)}
USERS = frozenset(role.user for role in ROLES.values())
"""The roles' own users at the broker, if no setting says otherwise."""


def trust(settings: Settings, roles: Collection[Role], user: str) -> Trust:
    """What these roles believe, which connect as ``user``. Raises SettingsError."""
    for variable, names in (
        ("CML_ROLE_USERS", settings.role_users if isinstance(settings.role_users, dict) else ()),
        ("CML_REDRIVE_KEYS", settings.redrive_keys),
    ):
        for name in names:
            if name not in ROLES:
                raise SettingsError(f"{variable}: {name[:80]!r} is no role{did_you_mean(name, set(ROLES))}")
    users = {name: _users(settings, role) for name, role in ROLES.items()}
    enforced = settings.access.enforced
    if len(roles) == 1:
        [role] = roles
        if enforced and user not in users[role.name]:
            raise SettingsError(
                f"RABBITMQ_URL: {user!r} is not the user of {role.name}, which is {' or '.join(sorted(users[role.name]))}: the other roles "
                "would not believe its messages; CML_ROLE_USERS says who the roles are"
            )
    for role in roles:
        users[role.name] |= {user}
    return Trust(
        uses={name: role.uses for name, role in ROLES.items()},
        users=users,
        keys={name: key.get_secret_value().encode() for name, key in settings.redrive_keys.items()},
        enforced=enforced,
    )


def _users(settings: Settings, role: Role) -> frozenset[str]:
    named = settings.role_users
    if isinstance(named, dict):
        return frozenset({named.get(role.name, role.user)})
    return named or frozenset({role.user})
