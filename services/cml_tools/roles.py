"""The table of the roles for those who deploy them, generated from the registry."""

from cml_tools.generated import write_or_check
from cml_workers.process.registry import ROLES
from cml_workers.runtime.role import Part, Role

_HEADER = """# Roles

Generated from the registry of roles (`services/cml_workers/process/registry.py`); do not edit. The secret of a role holds
its keys and is named as its user at RabbitMQ, whose rights are in `deploy/rabbitmq/definitions.json`.

| role | does | processes | user and secret | keys of the secret | consumes | publishes to |
|---|---|---|---|---|---|---|
"""
_FOOTER = """
Whoever consumes also replies to callers and puts messages into its retry queues, through the default exchange.
"""


def secrets(role: Role) -> tuple[str, ...]:
    """The settings that its secret holds: where its parts are, with its user and password; AWS has its own way."""
    return (*(part for part in role.needs if part is not Part.EC2), *role.secrets)


def reference() -> str:
    """The page, in Markdown."""
    return _HEADER + "".join(_row(role) for role in ROLES.values()) + _FOOTER


def _row(role: Role) -> str:
    keys = ", ".join(f"`{name}`" + (" (optional)" if name in role.secrets else "") for name in secrets(role))
    consumes = ", ".join(f"`{queue.name}`" for queue in role.uses.consumes) or "nothing"
    publishes = ", ".join(f"`{exchange.name}`" for exchange in role.uses.exchanges)
    return f"| `{role.name}` | {role.does} | {role.replicas} | `{role.user}` | {keys} | {consumes} | {publishes} |\n"


def main() -> None:
    """Write the document, or (``--check``) fail if the written one is not this one."""
    write_or_check(reference, what="the table of the roles", source="the registry of roles")


if __name__ == "__main__":
    main()
