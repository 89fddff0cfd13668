"""The one thread of a process that looks for what other processes have written to the file."""

import asyncio
import contextlib
import threading
from collections.abc import Callable

from cml_workers.eventstore.port import StoreConfigurationError, StoreUnavailableError
from cml_workers.eventstore.sqlite.file import EventFile
from cml_workers.eventstore.sqlite.statements import last_position

POLL_SECONDS = 0.05
"""How often it looks, at least."""
SOONEST, BUSY_SECONDS = 0.003, 1.0
"""How soon it looks again, for so long after a change: one seldom comes alone. The more events it has found, the later, as
who follows is faster with many at once."""


class Watcher:
    """Watches from ``start`` until it is closed; ``changed`` is called in the loop after each change."""

    def __init__(self, file: EventFile, changed: Callable[[], None]) -> None:
        self._file = file
        self._changed = changed
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch, if it does not yet."""
        if self._thread is None:
            loop = asyncio.get_running_loop()
            self._thread = threading.Thread(
                target=self._watch, args=(loop,), name="event-store-watcher", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """End soon."""
        self._closing.set()

    def join(self) -> None:
        """Return when the thread has ended."""
        if self._thread is not None:
            self._thread.join()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._closing.wait(POLL_SECONDS):
            # The followers meet an error here as well, and report it.
            with (
                contextlib.suppress(StoreUnavailableError, StoreConfigurationError),
                self._file.explained(),
                contextlib.closing(self._file.connect()) as connection,
            ):
                seen, last, looks = None, 0, 0
                pause = POLL_SECONDS
                while not self._closing.wait(pause):
                    looks -= 1
                    if looks <= 0:
                        pause = POLL_SECONDS
                    if (version := connection.execute("PRAGMA data_version").fetchone()) != seen:
                        before, last = last, last_position(connection)
                        pause = min(SOONEST * max(last - before, 1), POLL_SECONDS)
                        seen, looks = version, int(BUSY_SECONDS / pause)
                        try:
                            loop.call_soon_threadsafe(self._changed)
                        except RuntimeError:  # the loop is gone
                            return
