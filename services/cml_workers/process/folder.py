"""The data folder: of one process at a time, which writes its endpoints into it."""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cml_workers.foundation.failures import AlreadyRunningError
from cml_workers.runtime.endpoints import LOCK
from cml_workers.runtime.settings import SettingsError


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"CML_DATA_DIR: {folder.absolute()} cannot be a folder: {error.strerror}"
        ) from error


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Two systems on one folder would share nothing but their files."""
    try:
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
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps(endpoints, indent=2) + "\n")
    fresh.replace(path)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
