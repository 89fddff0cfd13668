"""A private PgBouncer before a PostgreSQL of ours, with so few connections to it that its clients share them."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from support.children import tied
from support.ports import free_port
from support.postgresql import SpawnedPostgreSQL

Mode = Literal["session", "transaction", "statement"]


class NoPgBouncerError(Exception):
    """None can be had; says how to get one."""


def program() -> str:
    """Where it is. Raises NoPgBouncerError."""
    found = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        raise NoPgBouncerError(
            "no PgBouncer: install the package pgbouncer (on Debian as root, `make test` does that itself)"
        )
    return found


@contextmanager
def private_pgbouncer(server: SpawnedPostgreSQL, mode: Mode, *, connections: int = 2) -> Iterator[str]:
    """Its URL of the same database. Raises NoPgBouncerError."""
    port = free_port()
    # Not below pytest's folder, which its own user may not enter; as root it refuses to run.
    folder = Path(tempfile.mkdtemp(prefix="cml-pgbouncer-"))
    user = "postgres" if os.geteuid() == 0 else None
    (folder / "pgbouncer.ini").write_text(
        f"""[databases]
postgres = host=127.0.0.1 port={server.port} user=cml
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {connections}
"""
    )
    if user:
        for path in (folder, folder / "pgbouncer.ini"):
            shutil.chown(path, user)
    try:
        with (folder / "output.log").open("wb") as output:
            process = subprocess.Popen(
                tied(program(), "-q", folder / "pgbouncer.ini", user=user),
                stdout=output,
                stderr=output,
                user=None if tied() else user,
            )
        try:
            end = time.monotonic() + 10
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > end:
                    raise NoPgBouncerError(f"PgBouncer did not start: {(folder / 'output.log').read_text()}")
                time.sleep(0.05)
            yield f"postgresql://cml@127.0.0.1:{port}/postgres"
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
