"""Restrict a KurrentDB to the roles: users with groups, the default access lists of default-acl.json, and those of single streams.

    KURRENTDB_URI=esdb://admin:...@host:2113?TlsCaFile=ca.pem \
    CML_WRITER_PASSWORD=... CML_READER_PASSWORD=... CML_RELAY_STORE_PASSWORD=... CML_PROJECTOR_STORE_PASSWORD=... \
        python deploy/kurrentdb/restrict.py

``cml-writer`` (group cml-writers) is for lifecycle, which alone appends to the streams of workers, and to that of denied commands, of
which KurrentDB keeps the last events (denials-stream.json). It reads what was decided about the events of workers that could not be
read (quarantine-streams.json). ``cml-relay`` (group cml-relays) is for the relay: it reads, and writes only its own stream, of which KurrentDB keeps the last events (relay-stream.json),
and its quarantine. ``cml-projector`` (group cml-projectors) is for the projector and `cml-workers rebuild`: it reads, and writes only the
quarantines (quarantine-streams.json), also the relay's, in which it records what operators decide. ``cml-reader`` (group cml-readers)
is for the EC2 adapter and the command line. The relay and the projector alone may follow $all, which is a system stream, and
holds everything: what the store knows of its users, too. The streams of these, where it keeps their passwords as hashes, nobody but $admins
reads by name. Nobody but $admins deletes or truncates: an audit must stay whole. KurrentDB's access lists are for each stream or for all; finer ones by prefix need its
stream policies (https://docs.kurrent.io/server/latest/security/user-authorization.html).
"""

import asyncio
import base64
import json
import os
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen
from uuid import uuid4

from kurrentdbclient import AsyncKurrentDBClient, NewEvent, StreamState

SETTINGS = "$settings"
"""The stream whose last event holds the default access lists."""
RELAY_STREAM = "cml_relay"
DENIALS_STREAM = "cml_denials"
HERE = Path(__file__).parent
USERS = {
    "cml-writer": ("cml-writers", "CML_WRITER_PASSWORD"),
    "cml-reader": ("cml-readers", "CML_READER_PASSWORD"),
    "cml-relay": ("cml-relays", "CML_RELAY_STORE_PASSWORD"),
    "cml-projector": ("cml-projectors", "CML_PROJECTOR_STORE_PASSWORD"),
}


def create_user(uri: str, name: str, group: str, password: str) -> None:
    """Create the user over the server's HTTP API; one that is there with another password gets this one."""
    user = {"loginName": name, "fullName": name, "groups": [group], "password": password}
    try:
        _post(uri, "/users/", user)
        print(f"user {name} is there")
    except HTTPError as error:
        if error.code != 409:
            sys.exit(f"user {name} could not be created: {error.code} {error.reason}")
        try:
            _post(uri, f"/users/{name}/command/reset-password", {"newPassword": password})
        except HTTPError as error:
            sys.exit(f"user {name} is there, and its password could not be set: {error.code} {error.reason}")
        print(f"user {name} is there; its password is a new one")


def _post(uri: str, path: str, content: Mapping[str, object]) -> None:
    """Raises HTTPError."""
    parsed = urlsplit(uri)
    options = {key.lower(): values[-1] for key, values in parse_qs(parsed.query).items()}
    secure = options.get("tls", "true") != "false"
    credentials = base64.b64encode(f"{parsed.username}:{parsed.password}".encode()).decode()
    request = Request(  # noqa: S310 - the scheme is ours
        f"http{'s' if secure else ''}://{parsed.hostname}:{parsed.port or 2113}{path}",
        json.dumps(content).encode(),
        {"Content-Type": "application/json", "Authorization": f"Basic {credentials}"},
    )
    context = ssl.create_default_context(cafile=options.get("tlscafile")) if secure else None
    with urlopen(request, timeout=10, context=context):  # noqa: S310 - likewise
        pass


async def set_default_acl(uri: str, acl: str) -> None:
    """Append the default access lists to $settings."""
    client = AsyncKurrentDBClient(uri)
    event = NewEvent(type="update-default-acl", data=acl.encode(), id=uuid4())
    await client.append_to_stream(SETTINGS, events=[event], current_version=StreamState.ANY)
    await client.close()
    print("default access lists set")


async def describe_streams(uri: str, described: Mapping[str, Any]) -> None:
    """Say who may write each of these streams, and how much of it is kept."""
    client = AsyncKurrentDBClient(uri)
    for stream, metadata in described.items():
        await client.set_stream_metadata(stream, metadata=metadata)
        print(f"access list of {stream} set")
    await client.close()


def users_streams() -> Mapping[str, Any]:
    """The store's own streams of its users, those that it begins with among them, are for administrators."""
    alone = {"$acl": dict.fromkeys(("$r", "$w", "$d", "$mr", "$mw"), "$admins")}
    return {"$users": alone, **{f"$user-{name}": alone for name in ("admin", "ops", *USERS)}}


def streams() -> Mapping[str, Any]:
    """The streams with access lists of their own, and what is said of each."""
    relay = json.loads((HERE / "relay-stream.json").read_text())
    denials = json.loads((HERE / "denials-stream.json").read_text())
    return {
        RELAY_STREAM: relay,
        DENIALS_STREAM: denials,
        **json.loads((HERE / "quarantine-streams.json").read_text()),
    }


def main() -> None:
    """Create the users, then restrict everybody else. Done again, it brings an earlier version's up to date, and sets other passwords."""
    missing = [
        name
        for name in ("KURRENTDB_URI", *(variable for _, variable in USERS.values()))
        if not os.environ.get(name)
    ]
    if missing:
        sys.exit(f"set {', '.join(missing)}; see the top of this file")
    uri = os.environ["KURRENTDB_URI"]
    for name, (group, variable) in USERS.items():
        create_user(uri, name, group, os.environ[variable])
    asyncio.run(set_default_acl(uri, (HERE / "default-acl.json").read_text()))
    asyncio.run(describe_streams(uri, {**streams(), **users_streams()}))


if __name__ == "__main__":
    main()
