"""The roles there are; what each is, its own ``main.py`` says."""

from collections.abc import Mapping

from cml_workers.ec2_adapter.main import EC2_ADAPTER
from cml_workers.lifecycle.main import LIFECYCLE
from cml_workers.projector.main import PROJECTOR
from cml_workers.relay.main import RELAY
from cml_workers.runtime.role import Role

ROLES: Mapping[str, Role] = {role.name: role for role in (LIFECYCLE, RELAY, EC2_ADAPTER, PROJECTOR)}
USERS = frozenset(role.user for role in ROLES.values())
"""The roles' own users at the broker."""
