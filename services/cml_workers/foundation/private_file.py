"""Files and folders for their owner alone: they hold secrets, and what others sent."""

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path


def make_private(path: Path) -> None:
    """Make it, if it is not there; SQLite's files beside it take over its mode.

    One that an earlier version left wider is narrowed, those beside it too. Raises OSError.
    """
    # Never open a file that exists: closing it would drop the locks SQLite holds in this process.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    for each in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # somebody else's is his to narrow
            each.chmod(0o600)


def make_private_folder(folder: Path, own: Iterable[str]) -> None:
    """Make it, if it is not there.

    One that is there is narrowed only if it is ours and nothing is in it but these, by how their names begin: it may be a home, or
    serve others, too. Raises OSError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = folder.stat()
    if known.st_uid == os.getuid() and not known.st_mode & stat.S_ISVTX:
        with contextlib.suppress(PermissionError):
            if all(each.name.startswith(tuple(own)) for each in folder.iterdir()):
                folder.chmod(0o700)
