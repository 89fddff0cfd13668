"""Ports for the servers that tests start."""

import fcntl
import os
import socket
import tempfile
from contextlib import closing
from pathlib import Path

FIRST, LAST = 20_000, 32_000
"""Below those that systems give to outgoing connections: one of these may take a port before the server that it was chosen for listens on it."""


def free_port() -> int:
    """A port that nobody listens on; no process of this user gets the same one soon after. Raises OSError."""
    path = Path(tempfile.gettempdir()) / f"cml-workers-ports-{os.getuid()}"
    with path.open("a+") as last_one:
        fcntl.flock(last_one, fcntl.LOCK_EX)
        last_one.seek(0)
        last = int(last_one.read() or FIRST)
        for step in range(1, LAST - FIRST):
            port = FIRST + (last - FIRST + step) % (LAST - FIRST)
            if _is_free(port):
                last_one.truncate(0)
                last_one.write(str(port))
                return port
    raise OSError(f"no port between {FIRST} and {LAST} is free")


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
