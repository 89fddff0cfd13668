"""Keeps one read model up to date for as long as a process lives, and rebuilds it when its code has another version."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from cml_workers.eventstore.anchor import Recognition
from cml_workers.eventstore.following import Following, backoff, follow_from
from cml_workers.eventstore.names import WORKER_STREAMS
from cml_workers.eventstore.port import EventStore, Item
from cml_workers.eventstore.quarantine import LOOK_EVERY, warning_of
from cml_workers.foundation.outages import NO_OUTAGES, Outages
from cml_workers.foundation.tasks import ended
from cml_workers.readmodels.generation import Generation
from cml_workers.readmodels.generations import Generations
from cml_workers.readmodels.model import ReadModel
from cml_workers.readmodels.rebuild import Progress, Rebuild, Rebuilt, SupersededError
from cml_workers.readmodels.writing import Writer
from cml_workers.sql.port import Database

log = structlog.get_logger(__name__)

FEW, GATHERS = 100, 0.02
"""After few items, how many seconds to gather more: a transaction costs more than an event, and what commands need is first."""
REPORT_EVERY = 5.0
"""Seconds between two lines about a rebuild's progress."""


class Runner:
    """Follows the store into the active generation of a read model.

    If that one was made by another version of the code, a new one is built beside it, which queries see once it is
    complete. Meanwhile the old one is followed and answers, if the model says that it can be used; if not,
    ``problem`` says what queries are waiting for.
    """

    def __init__(
        self,
        *,
        model: ReadModel,
        store: EventStore,
        database: Database,
        outages: Outages = NO_OUTAGES,
        backoff: Callable[[int], float] = backoff,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.model = model
        self.following = Following()
        self._store = store
        self._generations = Generations(model, database)
        self._writer = Writer(store, self._generations, self._active)
        self._outages = outages
        self._backoff = backoff
        self._sleep = sleep
        self._progress: Progress | None = None
        self._recognition = Recognition(f"read model {model.name}", remedy(model.name), sleep)
        self._usable: bool | None = None
        self._current = False
        self._reported_at = float("-inf")

    def problem(self) -> str | None:
        """Why queries cannot be answered; None if they can."""
        if self._usable:
            return None
        percent = self._progress.percent if self._progress else None
        done = f" ({percent:.0f} %)" if percent is not None else ""
        return f"read model {self.model.name} is being rebuilt{done}"

    def warning(self) -> str | None:
        """Which workers wait for somebody to decide."""
        return warning_of(self._writer.held.quarantine.undecided)

    def counts(self) -> Mapping[str, int]:
        """Events of streams that are not ours, since the start; and workers that wait in quarantine."""
        return {"events_not_ours": self._writer.not_ours, "workers_held": len(self._writer.held.waiting)}

    def elsewhere(self) -> str | None:
        """That the rows are of another event store, and are not brought up to date; what to do. None if they are of this one."""
        return self._recognition.problem

    async def prepare(self) -> None:
        """Find out what there is to follow; then ``problem`` can be asked.

        Raises:
            NewerReadModelError: update this program.
            DatabaseUnavailableError: try again.
        """
        await self._generations.drop()  # what a process that died after a rebuild has left
        active = await self._generations.active()
        if active is not None and active.version > self.model.version:
            raise self._generations.newer(active)
        self._usable = active is not None and self._generations.usable(active)
        self._current = active is not None and active.version == self.model.version
        if self._usable:
            await self._generations.adopt()

    async def run(self) -> None:
        """Follow, and rebuild if that is due; return when the store is closed.

        Raises:
            ConfigurationError: trying again is of no use.
        """
        await self._prepared()
        while not self._usable:  # nothing answers until it is done
            await self._rebuild()
            await self._prepared()
        if self._current:
            await self._follow()
        else:
            await asyncio.gather(self._follow(), self._rebuild())

    async def _prepared(self) -> None:
        failures = 0
        while self._usable is None:
            try:
                await self.prepare()
            except ConnectionError as error:
                if await self._outages.waited_out(error):
                    continue
                failures += 1
                log.warning("read model is looked for again", read_model=self.model.name, cause=str(error))
                await self._sleep(self._backoff(failures))

    async def _follow(self) -> None:
        looking = asyncio.create_task(self._look(), name=f"looks at the quarantine of {self.model.name}")
        try:
            await follow_from(
                self._store,
                self._resumed,
                self._handle,
                prefix=WORKER_STREAMS,
                following=self.following,
                outages=self._outages,
                backoff=self._backoff,
                sleep=self._sleep,
            )
        finally:
            await ended(looking)

    async def _look(self) -> None:
        while True:
            await self._writer.held.somebody_waits.wait()
            try:
                await self._writer.look(decides=True)
            except Exception as error:  # noqa: BLE001 - nobody else may be kept from following
                log.warning(
                    "the quarantine is looked at again", read_model=self.model.name, cause=repr(error)
                )
            await self._sleep(LOOK_EVERY)

    async def _resumed(self) -> str | None:
        """See ``Writer.resumed``. Does not return while the checkpoint is another store's."""
        while True:
            position = await self._writer.resumed()
            at = self._writer.at
            # Without an event, nothing of the store is here, whichever it was.
            known = at is not None and bool(at.anchor or at.events)
            if at is not None and await self._recognition.passes(
                at.anchor, self._store, position if known else None
            ):
                return position if known else None
            self._writer.begin_again()

    async def _handle(self, items: Sequence[Item]) -> None:
        await self._writer.handle(items)
        if len(items) < FEW:
            await self._sleep(GATHERS)

    async def _active(self) -> Generation:
        active = await self._generations.active()
        if active is None or not self._generations.usable(active):
            raise (
                self._generations.newer(active)
                if active
                else ConnectionError(f"no {self.model.name} is active")
            )
        return active

    async def _rebuild(self) -> None:
        log.info("rebuild begins", read_model=self.model.name, version=self.model.version)
        rebuild = Rebuild(
            self._store,
            self._generations,
            on_progress=self._report,
            outages=self._outages,
            backoff=self._backoff,
            sleep=self._sleep,
        )
        try:
            reported(await rebuild.run())
        except SupersededError as error:
            log.warning("rebuild ends", read_model=self.model.name, cause=str(error))
        if not self._usable:
            self._usable = None  # look again: what answers now may be another's

    def _report(self, progress: Progress) -> None:
        self._progress = progress
        now = asyncio.get_running_loop().time()
        if now - self._reported_at >= REPORT_EVERY:
            self._reported_at = now
            log.info(
                "rebuild in progress",
                read_model=progress.model,
                position=progress.position,
                events=progress.events,
                per_second=round(progress.rate),
                percent=progress.percent and round(progress.percent, 1),
            )


def remedy(name: str) -> str:
    """What to do where a read model's checkpoint is another store's, and this is the right one."""
    return f"run `cml-workers rebuild {name}`"


def reported(rebuilt: Rebuilt) -> Rebuilt:
    """A log line for a rebuild that is done, and one for each table whose rows came out otherwise than before."""
    log.info(
        "rebuild is done",
        read_model=rebuilt.model,
        generation=rebuilt.generation.number,
        events=rebuilt.events,
        seconds=round(rebuilt.seconds, 1),
        compared=rebuilt.differences is not None,
        switched=rebuilt.switched,
    )
    for each in rebuilt.differences or ():
        log.warning(
            "rebuilt rows differ",
            read_model=rebuilt.model,
            table=each.table,
            missing=each.missing,
            added=each.added,
            examples=each.examples,
        )
    return rebuilt
