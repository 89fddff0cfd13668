"""Files for their owner alone."""

import contextlib
import os
from pathlib import Path


def make_private(path: Path) -> None:
    """Make it, if it is not there; SQLite's files beside it take over its mode. Raises OSError."""
    # Never open a file that exists: closing it would drop the locks SQLite holds in this process.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
