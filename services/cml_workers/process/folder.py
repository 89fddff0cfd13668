"""The data folder: of one process at a time, which writes its endpoints into it."""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cml_workers.foundation.failures import AlreadyRunningError
from cml_workers.foundation.private_file import make_private, make_private_folder
from cml_workers.runtime.endpoints import ENDPOINTS, LOCK
from cml_workers.runtime.settings import SettingsError

_OWN = ("amqp", "ec2", "events.sqlite3", "read-model.sqlite3", ENDPOINTS.partition(".")[0], LOCK)
"""How the names begin of what is in it."""


def make_folder(folder: Path) -> None:
    """For its owner alone. Raises SettingsError."""
    try:
        make_private_folder(folder, _OWN)
    except OSError as error:
        raise SettingsError(
            f"CML_DATA_DIR: {folder.absolute()} cannot be a folder: {error.strerror}"
        ) from error


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Two systems on one folder would share nothing but their files."""
    try:
        make_private(folder / LOCK)
        lock = (folder / LOCK).open("a")
    except OSError as error:
        raise SettingsError(f"CML_DATA_DIR: cannot write to {folder.absolute()}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AlreadyRunningError(
                f"another `cml-workers run` uses {folder.absolute()}; stop it, or set CML_DATA_DIR"
            ) from None
        yield


@contextmanager
def published(path: Path, endpoints: Mapping[str, str]) -> Iterator[None]:
    """The endpoints, readable by the owner alone, for as long as they are open."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    make_private(fresh)
    fresh.write_text(json.dumps(endpoints, indent=2) + "\n")
    fresh.replace(path)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
