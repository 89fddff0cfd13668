"""A private PostgreSQL for the tests: an address that was given, an installed server in a folder, or a container."""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import asyncpg  # type: ignore[import-untyped]
import sqlalchemy as sa

from cml_workers.sql.database import migrate, open_database
from support.children import tied
from support.containers import container, docker_answers
from support.ports import free_port

GIVEN = "DATABASE_URL"
"""The address of a server that others may use, too: its user must be able to make databases."""
IMAGE = os.environ.get("POSTGRESQL_IMAGE", "postgres:17")
Result = TypeVar("Result")
READY = 30.0
"""Seconds a server may take to answer."""


class NoPostgreSQLError(Exception):
    """None can be had; says how to get one."""


def installed() -> Path | None:
    """The folder of the newest server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    elsewhere = shutil.which("initdb")
    return Path(elsewhere).parent if elsewhere else None


class SpawnedPostgreSQL:
    """A server process of our own; ``stop``, ``kill`` and ``start`` it again as you like.

    ``primary``: one that this follows as a standby.
    """

    def __init__(
        self,
        programs: Path,
        folder: Path,
        *,
        password: str | None = None,
        tls: tuple[str, ...] | None = None,
        primary: "SpawnedPostgreSQL | None" = None,
    ) -> None:
        self._programs = programs
        self.folder = folder
        self.port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        # The server refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        folder.mkdir(parents=True, exist_ok=True)
        if self._user:
            shutil.chown(folder, self._user)
        self._secured: tuple[str, ...] = ()
        if primary is not None:
            self.follow(primary)
            return
        authentication = ["--auth=trust"]
        if password:
            self._place("password", password)
            authentication = ["--auth=scram-sha-256", "--pwfile=password"]
        self._run("initdb", *authentication, "--username=cml", "--no-sync", "--encoding=UTF8", "-D", "data")
        if tls:
            self._place("data/server.key", tls[0])
            self._place("data/server.crt", tls[1])
            self._secured = ("-c", "ssl=on")
        if tls and tls[2:]:
            self._place("data/clients.crt", tls[2])
            self._secured += ("-c", "ssl_ca_file=clients.crt")

    @property
    def url(self) -> str:
        return f"postgresql://cml@127.0.0.1:{self.port}/postgres"

    @property
    def is_running(self) -> bool:
        return self._server is not None and self._server.poll() is None

    def start(self, *settings: str, standby: bool = False) -> None:
        """Start and wait until it answers, if only that it lets nobody in; as a ``standby`` it is read-only until promoted."""
        if standby:
            self._place("data/standby.signal", "")
        with (self.folder / "output.log").open("ab") as output:
            self._server = subprocess.Popen(
                tied(
                    self._programs / "postgres",
                    *("-D", "data", "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder)),
                    *("-c", "fsync=off"),
                    *self._secured,
                    *(part for setting in settings for part in ("-c", setting)),
                    user=self._user,
                ),
                cwd=self.folder,
                user=None if tied() else self._user,
                stdout=output,
                stderr=output,
            )
        end = time.monotonic() + READY
        while time.monotonic() < end and self._server.poll() is None:
            ready = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
            answer = subprocess.run(ready, check=False).returncode
            if answer == 0 or (answer == 1 and "hot_standby=off" in settings):
                return
            time.sleep(0.1)
        raise NoPostgreSQLError(f"PostgreSQL did not start; see {self.folder / 'output.log'}")

    def crash(self) -> None:
        """End all its processes at once, also those that are frozen."""
        children = self.children()  # while they are its children
        self.stop(signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def stop(self, number: int = signal.SIGINT) -> None:
        """End the server at once; SIGKILL for a crash."""
        if self._server is not None and self.is_running:
            self._server.send_signal(number)
            self._server.wait(timeout=30)

    def signal(self, number: int) -> None:
        """To all its processes, e.g. SIGSTOP: each connection has one, in a group of its own."""
        if self._server is not None:
            os.kill(self._server.pid, number)  # first: it starts no more of them
            for child in self.children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, number)

    def restart(self) -> None:
        """Stop and start on the same data and port."""
        self.stop()
        self.start()

    def follow(self, primary: "SpawnedPostgreSQL") -> None:
        """Become a standby of this one, without anything of one's own, with the next start."""
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        options = ("-D", "data", "--write-recovery-conf", "--checkpoint=fast", "--no-sync")
        self._run("pg_basebackup", *primary._as_client(), *options)

    def said(self, statement: str) -> str:
        """What this server answers, whatever it is."""
        return self._run("psql", *self._as_client(), "-d", "postgres", "-wXAtqc", statement)

    def children(self, named: str = "") -> list[int]:
        """Its processes besides the first one, e.g. one for each connection."""
        if self._server is None:
            return []
        found = subprocess.run(
            ["pgrep", "-P", str(self._server.pid), "-f", named or "."],
            capture_output=True,
            text=True,
            check=False,
        )
        return [int(child) for child in found.stdout.split()]

    def dump(self, name: str) -> None:
        """A backup, into a file of its folder."""
        self._run("pg_dump", *self._as_client(), "-Fc", "-f", name, "postgres")

    def restore(self, name: str, database: str) -> str:
        """Restore that into a new database; its URL."""
        self._run("createdb", *self._as_client(), "-E", "UTF8", "-T", "template0", database)
        self._run("pg_restore", *self._as_client(), "--exit-on-error", "-d", database, name)
        return self.url.replace("/postgres", f"/{database}")

    def _as_client(self) -> tuple[str, ...]:
        return ("-h", "127.0.0.1", "-p", str(self.port), "-U", "cml")

    def _place(self, name: str, content: str) -> None:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(content)
        if self._user:
            shutil.chown(path, self._user)

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self.folder,
            user=self._user,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NoPostgreSQLError(f"{program} failed: {done.stderr}")
        return done.stdout.strip()


@contextmanager
def private_postgresql(
    *,
    password: str | None = None,
    tls: tuple[str, ...] | None = None,
    primary: SpawnedPostgreSQL | None = None,
) -> Iterator[SpawnedPostgreSQL]:
    """A server of our own that may be stopped. Raises NoPostgreSQLError.

    ``tls``: key and certificate, PEM, and perhaps the authority of certificates that clients may show; ``primary``: one that it
    follows as a standby.
    """
    programs = installed()
    if programs is None or (os.geteuid() == 0 and not _exists("postgres")):
        raise NoPostgreSQLError(
            f"no PostgreSQL: set {GIVEN} to the URL of a server, install the package postgresql "
            "(on Debian as root, `make test` does that itself), or start a Docker engine"
        )
    # Not below pytest's folder, which the server's own user may not enter.
    folder = Path(tempfile.mkdtemp(prefix="cml-postgresql-"))
    try:
        server = SpawnedPostgreSQL(programs, folder, password=password, tls=tls, primary=primary)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def any_postgresql() -> Iterator[tuple[str, str]]:
    """The URL of a database of our own, and how it was had. Raises NoPostgreSQLError, NoContainerError."""
    given = os.environ.get(GIVEN)
    if given:
        own = _finished(_new_database(given))
        try:
            yield own, f"given by {GIVEN}"
        finally:
            _finished(_drop_database(given, own))
    elif not installed() and docker_answers():
        with container(IMAGE, 5432, _answers, POSTGRES_USER="cml", POSTGRES_PASSWORD="cml") as (host, port):
            yield _url(host, port), f"in a container of {IMAGE}"
    else:
        with private_postgresql() as server:
            yield server.url, f"spawned privately from {installed()}"


def _finished(coroutine: Coroutine[object, object, Result]) -> Result:
    """Its result, also where a loop runs already: a test that is asynchronous may be the first to ask."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def _url(host: str, port: int) -> str:
    return f"postgresql://cml:cml@{host}:{port}/cml"


def _answers(host: str, port: int) -> bool:
    async def connect() -> bool:
        try:
            await (await asyncpg.connect(_url(host, port))).close()
        except (asyncpg.PostgresError, OSError):
            return False
        return True

    return _finished(connect())


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


@asynccontextmanager
async def database_of_its_own(url: str) -> AsyncIterator[str]:
    """An empty database on the same server, dropped at the end."""
    own = await _new_database(url)
    try:
        yield own
    finally:
        await _drop_database(url, own)


async def _new_database(url: str) -> str:
    own = sa.make_url(url).set(database=f"cml_test_{uuid4().hex}")
    await _execute(url, f"CREATE DATABASE {own.database}")
    return own.render_as_string(hide_password=False)


async def _drop_database(url: str, own: str) -> None:
    await _execute(url, f"DROP DATABASE {sa.make_url(own).database} WITH (FORCE)")


async def _execute(url: str, statement: str) -> None:
    engine = open_database(url)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(sa.text(statement))
    await engine.dispose()


async def emptied(url: str) -> str:
    """The same database without anything in it."""
    engine = open_database(url)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        await connection.exec_driver_sql("CREATE SCHEMA public")
    await engine.dispose()
    return url


async def make_schema(url: str) -> None:
    """As the first of our processes does."""
    engine = open_database(url)
    await migrate(engine)
    await engine.dispose()
