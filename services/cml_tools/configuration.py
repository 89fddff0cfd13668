"""The configuration reference, generated from the settings and what their docstrings say."""

import json
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from cml_tools.generated import write_or_check
from cml_workers.runtime.settings import Settings, variable

_HEADER = """# Configuration

By environment, checked when a process starts. Generated from `services/cml_workers/runtime/settings.py`; do not edit.
A part whose setting is unset is embedded. Lists and objects are JSON.

| variable | type | default | meaning |
|---|---|---|---|
"""
_FOOTER = """
The EC2 adapter takes its AWS credentials as the AWS SDKs do (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, a service account's
role, ...): <https://boto3.amazonaws.com/v1/documentation/api/latest/guide/credentials.html>.

`DATABASE_URL` means what it means to libpq, also several hosts and Unix sockets: [deployment.md](deployment.md#postgresql);
`RABBITMQ_URL` (amqps) takes `cafile`,
`certfile` and `keyfile`, several hosts separated by commas (`amqps://user:password@one:5671,two:5671/vhost`), and `heartbeat` in
seconds, 10 if it is not given; `KURRENTDB_URI` takes `TlsCaFile` and the other options of KurrentDB's connection strings.
"""


def reference() -> str:
    """The page, in Markdown."""
    schemas = Settings.model_json_schema(by_alias=False)["properties"]
    rows = [
        f"| `{variable(name)}` | {_kind(schemas[name])} | {_default(field)} | {_meaning(field)} |"
        for name, field in Settings.model_fields.items()
    ]
    return _HEADER + "\n".join(rows) + "\n" + _FOOTER


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return _kind(next(each for each in schema["anyOf"] if each.get("type") != "null"))
    limits = [
        f"{sign} {schema[key]:g}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in schema
    ]
    kind = {"array": "list", "object": "object", "boolean": "true, false"}.get(schema["type"], schema["type"])
    if schema.get("format") in ("password", "uri", "path"):
        kind = {"password": "text, secret", "uri": "URL", "path": "path"}[schema["format"]]
    return " ".join([kind, *limits])


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is None:
        return "unset"
    if isinstance(default, str | Path):
        return f"`{default}`"
    listed = sorted(default) if isinstance(default, frozenset | tuple) else default
    return f"`{json.dumps(listed)}`"


def _meaning(field: FieldInfo) -> str:
    assert field.description, "every setting has a docstring"  # noqa: S101 - a test of the build
    return " ".join(field.description.split()).replace("``", "`").replace("|", r"\|")


def main() -> None:
    """Write the document, or (``--check``) fail if the written one is not this one."""
    write_or_check(reference, what="the configuration reference", source="the settings")


if __name__ == "__main__":
    main()
