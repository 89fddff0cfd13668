"""Folders and files for their owner alone: they hold what others sent."""

import contextlib
import os
import stat
from pathlib import Path


def private_folder(folder: Path, own: str) -> None:
    """Make it. One that is there is narrowed if it is ours and has nothing in it but files whose names begin with ``own``.

    Raises OSError: it cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = folder.stat()
    if known.st_uid == os.getuid() and not known.st_mode & stat.S_ISVTX:
        with contextlib.suppress(PermissionError):
            if all(each.name.startswith(own) for each in folder.iterdir()):
                folder.chmod(0o700)


def private_sqlite(path: Path) -> None:
    """Make the file, or narrow one of an earlier version with those that SQLite keeps beside it, which later take over its mode."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    for each in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            each.chmod(0o600)
