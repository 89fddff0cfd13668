"""DATABASE_URL as people paste it: it means what it means to libpq, or an error names it and shows nothing of a password."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from cml_workers.sql.database import open_database, shown, transaction
from cml_workers.sql.errors import DatabaseConfigurationError, DatabaseUnavailableError
from support.certificates import Certificates
from support.ports import free_port
from support.postgresql import SpawnedPostgreSQL

Spawn = Callable[..., SpawnedPostgreSQL]
PASSWORD = "p@55/w0rd?x=1&y#100%:z"
ESCAPED = quote(PASSWORD, safe="")


@pytest.fixture(scope="module")
def server(spawn: Spawn, certificates: Certificates) -> SpawnedPostgreSQL:
    pems = [path.read_text() for path in (certificates.key, certificates.certificate, certificates.authority)]
    return spawn(password=PASSWORD, tls=(*pems,))


@pytest.fixture(scope="module")
def standby(spawn: Spawn) -> SpawnedPostgreSQL:
    server = spawn(password=PASSWORD)
    server.stop()
    server.start(standby=True)
    return server


@pytest.fixture
def hung() -> Iterator[int]:
    """The port of a host that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


async def asked(url: str, statement: str) -> Any:
    engine = open_database(url)
    try:
        async with transaction(engine) as connection:
            return (await connection.exec_driver_sql(statement)).scalar()
    finally:
        await engine.dispose()


@pytest.mark.parametrize(
    "form",
    [
        "postgresql://cml:{escaped}@127.0.0.1:{port}/postgres",
        "postgres://cml:{escaped}@localhost:{port}/postgres?channel_binding=prefer&gssencmode=disable&connect_timeout=10",
        "postgresql://cml@127.0.0.1/postgres?password={escaped}&port={port}",
        "postgresql:///?host=127.0.0.1&port={port}&user=cml&password={escaped}&dbname=postgres",
        "postgresql://cml:{escaped}@{socket}:{port}/postgres",
        "postgresql://cml:{escaped}@/postgres?host={folder}&port={port}",
        "postgresql://cml:{escaped}@127.0.0.1:{nothing},127.0.0.1:{port}/postgres",
        "postgresql://cml:{escaped}@127.0.0.1:{hung},127.0.0.1:{port}/postgres?connect_timeout=1",
        "postgresql://cml:{escaped}@127.0.0.1:{standby},127.0.0.1:{port}/postgres?target_session_attrs=read-write",
        "postgresql://cml:{escaped}@/postgres?host=127.0.0.1,{folder}&port={nothing},{port}",
    ],
    ids=lambda form: form.partition("//")[2],
)
async def test_every_way_to_say_where_it_is_leads_there(
    server: SpawnedPostgreSQL, standby: SpawnedPostgreSQL, hung: int, form: str
):
    url = form.format(
        escaped=ESCAPED,
        port=server.port,
        socket=quote(str(server.folder), safe=""),
        folder=server.folder,
        nothing=free_port(),
        standby=standby.port,
        hung=hung,
    )
    assert await asked(url, "SHOW port") == str(server.port)
    assert await asked(url, "SHOW transaction_read_only") == "off"
    assert PASSWORD not in shown(url)
    assert ESCAPED not in shown(url)


@pytest.fixture
def url(server: SpawnedPostgreSQL) -> str:
    return f"postgresql://cml:{ESCAPED}@127.0.0.1:{server.port}/postgres"


@pytest.mark.parametrize(
    ("options", "statement", "value"),
    [
        ("options=-csearch_path%3Dours", "SHOW search_path", "ours"),
        ("options=-csearch_path=ours%20-cwork_mem=7MB", "SHOW work_mem", "7MB"),
        ("application_name=cml%20projector", "SHOW application_name", "cml projector"),
        ("sslmode=disable", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", False),
        ("sslmode=require", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", True),
    ],
)
async def test_options_reach_the_server(url: str, options: str, statement: str, value: object):
    assert await asked(f"{url}?{options}", statement) == value


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_certificate_authority_counts_in_every_mode_that_needs_tls(
    url: str, certificates: Certificates, mode: str
):
    """To libpq, sslmode=require with sslrootcert is verify-ca."""
    assert await asked(f"{url}?sslmode={mode}&sslrootcert={certificates.authority}", "SELECT 1") == 1
    with pytest.raises(DatabaseConfigurationError, match="no trusted connection"):
        await asked(f"{url}?sslmode={mode}&sslrootcert={certificates.stranger}", "SELECT 1")


@pytest.mark.parametrize("mode", ["require", "verify-full"])
async def test_tls_that_the_server_lacks_is_not_waited_for(standby: SpawnedPostgreSQL, mode: str):
    with pytest.raises(DatabaseConfigurationError, match="has no TLS"):
        await asked(f"{standby.url}?sslmode={mode}", "SELECT 1")


@pytest.mark.parametrize("mode", ["sslmode=require&", "sslmode=verify-full&sslrootcert={authority}&", ""])
async def test_a_client_shows_its_certificate(url: str, certificates: Certificates, mode: str):
    files = f"sslcert={certificates.certificate}&sslkey={certificates.key}"
    options = mode.format(authority=certificates.authority) + files
    statement = "SELECT client_dn IS NOT NULL FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    assert await asked(f"{url}?{options}", statement)


async def test_an_encrypted_key_does_not_ask_for_its_password(
    url: str, certificates: Certificates, tmp_path: Path
):
    key = tmp_path / "encrypted.key"
    subprocess.run(
        ["openssl", "pkey", "-aes256", "-passout", "pass:hidden", "-in", certificates.key, "-out", key],
        check=True,
        capture_output=True,
    )
    files = f"{url}?sslmode=require&sslcert={certificates.certificate}&sslkey={key}"
    assert await asked(f"{files}&sslpassword=hidden", "SELECT 1") == 1
    with pytest.raises(DatabaseConfigurationError, match="sslkey that cannot be read"):
        open_database(files)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"postgresql://cml:{PASSWORD}@db/postgres", "escaped"),
        ("postgresql://cml:p@55w0rd@db/postgres", "escaped"),
        ("postgresql://cml:55/w0rd@db:5432/postgres", "escaped"),
        ("postgresql://cml:w0rd%zz@db/postgres", "escaped"),
        ("postgresql://db/postgres?user=cml&password=p55&w0rd", "option=value"),
        ("postgresql://db/postgres?user=cml&password=p55&w0rd=1", "not known; known are"),
        ("postgresql://db/postgres?user=cml&password=p@55", "escaped"),
        ("postgresql://cml:w0rd/postgres", "a host that is not like"),
        ("postgresql://cml:p55@db:w0rd/postgres", "a host that is not like"),
        ("postgresql://cml:p55@db:99999/postgres", "a port that is not"),
        ("postgresql://cml:p55@one,,two/postgres", "empty host"),
        ("postgresql://cml:p55@one,two/postgres?port=1,2,3", "one port"),
        (
            "postgresql://cml:p55@db/postgres?pgbouncer=true",
            "not known: pgbouncer; known are application_name",
        ),
        (
            "postgresql://cml:p55@db/postgres?channel_binding=require",
            "channel_binding that is not one of disable, prefer",
        ),
        ("postgresql://cml:p55@db/postgres?target_session_attrs=standby", "target_session_attrs"),
        ("postgresql://cml:p55@db/postgres?connect_timeout=soon", "connect_timeout"),
        ("postgresql://cml:p55@db/postgres?sslmode=always", "sslmode that is not one of disable"),
        ("postgresql://cml:p55@db/postgres?sslmode=prefer&sslrootcert=ca.pem", "say require or verify-full"),
        ("postgresql://cml:p55@db/postgres?sslmode=require&sslrootcert=system", "needs sslmode=verify-full"),
        ("postgresql://cml:p55@db/postgres?sslrootcert=/none.pem", "cannot be read"),
        ("jdbc:postgresql://cml:p55@db/postgres", "must begin with"),
        ("mysql://cml:p55@db/postgres", "must begin with"),
    ],
    ids=lambda text: text.partition("//")[2] or text,
)
def test_what_cannot_be_done_is_said_without_a_piece_of_the_password(url: str, said: str):
    with pytest.raises(DatabaseConfigurationError, match=f"^DATABASE_URL .*{said}") as caught:
        open_database(url)
    for piece in ("p55", "p@55", "55/", "w0rd", "#100"):
        assert piece not in str(caught.value)
    with pytest.raises(DatabaseConfigurationError):
        shown(url)


async def test_no_host_that_is_as_asked_for_is_tried_again(standby: SpawnedPostgreSQL):
    url = f"postgresql://cml:{ESCAPED}@127.0.0.1:{standby.port},127.0.0.1:{free_port()}/postgres?target_session_attrs=primary"
    with pytest.raises(DatabaseUnavailableError) as caught:
        await asked(url, "SELECT 1")
    assert ESCAPED not in str(caught.value)
