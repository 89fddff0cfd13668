"""Must show 3: the failures of ``system/test_misconfigured.py`` and more, with secrets that are canaries, at debug level.

Every part of each password is a canary, so that a URL that is cut at an unescaped character shows one, too.
"""

import asyncio
import base64
import json
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from cml_tools.definitions import definitions
from support.certificates import Certificates
from support.kurrentdb_standin import KurrentDbStandIn
from support.postgresql import private_postgresql
from support.rabbitmq import SpawnedRabbitMQ, private_rabbitmq
from support.running import COMMAND, unconfigured
from support.secret_parts import everything_to
from system.test_misconfigured import WRONG, Change, Parts

SPECIAL = "Cnry1/Cnry2?Cnry3#Cnry4@Cnry5:Cnry6%Cnry7&Cnry8+Cnry9[Cnry0]=Cnry$Cnry!Cnry~"
PLAIN = "CnryStore-one_two"  # KurrentDB's client decodes nothing
USER = "cml-client"
ENOUGH = 6
"""Characters of a secret in base64 by which it counts as seen."""
SECONDS = 25
"""A role that waits for what may come is ended then, counted from the first thing that it says."""


@dataclass
class CanaryParts(Parts):
    @property
    def bus(self) -> str:
        return (
            f"amqps://{USER}:{quote(SPECIAL, safe='')}@127.0.0.1:{self.rabbitmq.tls_port}/"
            f"?cafile={self.certificates.authority}"
        )

    def settings(self, **changes: str) -> dict[str, str]:
        secret = {
            "AWS_ACCESS_KEY_ID": "CnryAccessKeyId",
            "AWS_SECRET_ACCESS_KEY": SPECIAL,
            "AWS_SESSION_TOKEN": SPECIAL,
            "CML_ACTOR_TOKEN_KEYS": json.dumps([SPECIAL]),
            "CML_LOG_LEVEL": "debug",
        }
        return {**super().settings(), **secret, **changes}


@pytest.fixture(scope="module")
def servers(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[tuple[SpawnedRabbitMQ, str]]:
    """RabbitMQ, and the address of PostgreSQL."""
    users = everything_to(USER, json.dumps(definitions({USER: SPECIAL})))
    key, certificate = certificates.key, certificates.certificate
    with (
        private_rabbitmq(tmp_path_factory.mktemp("rabbitmq"), users, tls=(key, certificate)) as rabbitmq,
        private_postgresql(password=SPECIAL, tls=(key.read_text(), certificate.read_text())) as postgresql,
    ):
        server = f"cml:{quote(SPECIAL, safe='')}@127.0.0.1:{postgresql.port}"
        options = f"sslmode=verify-full&sslrootcert={certificates.authority}"
        yield rabbitmq, f"postgresql://{server}/postgres?{options}"


@pytest.fixture
async def parts(
    servers: tuple[SpawnedRabbitMQ, str], certificates: Certificates, tmp_path: Path
) -> AsyncIterator[CanaryParts]:
    tls = certificates.key.read_bytes(), certificates.certificate.read_bytes()
    node = KurrentDbStandIn(users={"me": PLAIN}, tls=tls)
    await node.start()
    store = f"esdb://me:{PLAIN}@127.0.0.1:{node.port}?TlsCaFile={certificates.authority}"
    yield CanaryParts(servers[0], store, servers[1], certificates, tmp_path / "data")
    await node.stop()


UNESCAPED: list[tuple[str, Change, str]] = [
    (name, lambda _, url=url: url, "unescaped")  # type: ignore[misc]
    for name, scheme in (
        ("RABBITMQ_URL", "amqps"),
        ("RABBITMQ_MANAGEMENT_URL", "https"),
        ("KURRENTDB_URI", "esdb"),
        ("DATABASE_URL", "postgresql"),
    )
    for url in (
        f"{scheme}://me:{SPECIAL}@127.0.0.1:1/",
        f"{scheme}://me:Cnry1:Cnry2/Cnry3@127.0.0.1:1/",
        f"{scheme}://me:Cnry1[Cnry2@127.0.0.1:Cnry3/",
        f"{scheme}:/me:{SPECIAL}@127.0.0.1:1/",
    )
]
WRONG_PASSWORDS: list[tuple[str, Change, str]] = [
    ("RABBITMQ_URL", lambda parts: parts.bus.replace(f"{USER}:", f"{USER}:CnryWrong"), "password"),
    ("KURRENTDB_URI", lambda parts: parts.store.replace("me:", "me:CnryWrong"), "password"),
    ("DATABASE_URL", lambda parts: parts.database.replace("cml:", "cml:CnryWrong"), "password"),
    (
        "DATABASE_URL",
        lambda parts: f"{parts.database}&sslpassword={quote(SPECIAL)}&password=CnryOther",
        "two",
    ),
    ("CML_ACTOR_TOKEN_KEYS", lambda _: f'["CnryShort", "{SPECIAL}"]', "key"),
    ("CML_ACTOR_TOKEN_KEYS", lambda _: SPECIAL, "key"),
]
CASES = [*WRONG, *WRONG_PASSWORDS, *UNESCAPED]


def seen(text: str) -> list[str]:
    """What of a secret is in it: as it is, percent-encoded or, enough of it, in base64."""
    found = ["as it is"] if "Cnry" in text else []
    for secret in (SPECIAL, PLAIN, f"{USER}:{SPECIAL}", f"me:{PLAIN}", f"cml:{SPECIAL}"):
        for skipped in range(3):
            encoded = base64.b64encode(secret[skipped:].encode()).decode().rstrip("=")[1:-1]
            windows = {encoded[at : at + ENOUGH] for at in range(len(encoded) - ENOUGH + 1)}
            found += [f"{each} of {secret}" for each in windows if each in text]
    return found


def test_what_is_to_be_found_would_be_found():
    for said in (SPECIAL, quote(SPECIAL), base64.b64encode(f"x{SPECIAL}".encode()).decode(), "port 'Cnry6'"):
        assert seen(said)
    assert not seen("no RabbitMQ at amqps://me:***@one:5671/: refused")


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("name", "change"),
    [case[:2] for case in CASES],
    ids=[f"{number}-{case[0]}-{case[2]}" for number, case in enumerate(CASES)],
)
async def test_no_secret_is_seen_whatever_is_wrong(parts: CanaryParts, name: str, change: Change):
    settings = parts.settings(**{name: await asyncio.to_thread(change, parts)})
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        *("role", "projector"),
        env={**unconfigured(), **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    shown = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
    assert process.stdout is not None
    output = await process.stdout.readline()  # on a busy machine it takes long to begin
    said = asyncio.create_task(process.stdout.read())
    try:
        async with asyncio.timeout(SECONDS):
            await asyncio.shield(said)
    except TimeoutError:
        process.terminate()
    output += await said
    await process.wait()
    files = [path for path in parts.folder.rglob("*") if path.is_file()] if parts.folder.exists() else []
    assert not [path for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert output
    for text in (shown, output.decode(), *(path.read_bytes().decode(errors="replace") for path in files)):
        assert seen(text) == [], text
