"""Composition of the projector role: owns the read models and the archive of dead letters.

It follows the store, rebuilds, answers queries, sends reminders, archives dead letters and carries out operator actions on them.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

import structlog

from cml_workers.bus.port import Message, UnroutableError, Verdict
from cml_workers.bus.topology import (
    DEAD_LETTER_QUEUE,
    INTERNAL_EXCHANGE,
    PROJECTOR_OPERATOR,
    PROJECTOR_QUERIES,
)
from cml_workers.bus.usage import Usage
from cml_workers.deadletters.archive import Archive, Limits
from cml_workers.deadletters.handler import DeadLetters
from cml_workers.deadletters.quarantined import Quarantined
from cml_workers.domain.messages import OperationOutstanding, Reminder
from cml_workers.eventstore.quarantine import RELAY, of_read_model
from cml_workers.foundation.failures import ConfigurationError
from cml_workers.foundation.outages import Outages
from cml_workers.projector.queries import Queries
from cml_workers.readmodels.model import ReadModel
from cml_workers.readmodels.registry import READ_MODELS
from cml_workers.readmodels.runner import Runner
from cml_workers.readmodels.workers import WORKERS_VIEW
from cml_workers.readmodels.workers.counting import Survey
from cml_workers.reminders.reminders import Reminders
from cml_workers.runtime.endpoints import database_options
from cml_workers.runtime.role import (
    Infrastructure,
    Part,
    Replicas,
    Role,
    Running,
    background,
    not_following,
    utc_now,
)
from cml_workers.runtime.settings import Settings
from cml_workers.sql.adapters import connect
from cml_workers.sql.database import migrate

log = structlog.get_logger(__name__)

TIDY_EVERY = 60.0
"""Seconds between two looks at how much the archive has."""
COUNT_EVERY, COUNT_SHARE = 10.0, 0.02
"""Seconds between two counts of the read model's rows; and of the time, how much they may take."""
QUERIES_AT_ONCE, QUERIES_OF_A_SENDER = 16, 4
"""At most, of the queue of all and of each sender's own: each may have a page in memory, and a query as large as the broker lets one be."""


@asynccontextmanager
async def projector(given: Infrastructure) -> AsyncIterator[Running]:
    """Run the role until the context ends. Raises BusUnavailableError, TopologyError, DatabaseUnavailableError."""
    await migrate(given.database)
    bus = given.bus(PROJECTOR)
    database = connect(database_options(given.settings))
    of_database, of_both = given.outages(Part.DATABASE), given.outages(Part.STORE, Part.DATABASE)
    runners = {
        model.name: Runner(model=model, store=given.store, database=database, outages=of_both)
        for model in READ_MODELS
    }

    def unavailable(model: ReadModel) -> str | None:
        return runners[model.name].problem()

    queries = Queries(database=database, unavailable=unavailable, access=given.settings.access)

    archive = Archive(given.archive)
    followers = (RELAY, *(of_read_model(model.name) for model in READ_MODELS))
    quarantined = Quarantined(archive, given.store, followers, now=utc_now)
    dead_letters = DeadLetters(
        archive=archive,
        quarantined=quarantined,
        store=given.store,
        publish=bus.publish,
        own_user=bus.user,
        access=given.settings.access,
        now=utc_now,
        roles=given.trust.everybody if given.trust else (),
    )

    async def on_query(message: Message) -> Verdict:
        return await queries.on_query(message, bus.publish)

    def counts() -> Mapping[str, int]:
        figures = Counter(bus.counts())
        for runner in runners.values():
            figures.update(runner.counts())
            figures["checkpoints_unusable"] += runner.elsewhere() is not None
        figures.update(survey.counts())
        return figures

    async def follow() -> None:
        await asyncio.gather(*(runner.run() for runner in runners.values()))

    reminders = Reminders(
        database=database,
        publish=bus.publish,
        now=utc_now,
        after=timedelta(seconds=given.settings.reminder_seconds),
        deadline=timedelta(seconds=given.settings.operation_deadline_seconds),
    )

    survey = Survey(
        database,
        dead_letters=archive.waiting,
        now=utc_now,
        deadline=timedelta(seconds=given.settings.operation_deadline_seconds),
    )

    async def count() -> None:
        await survey.look(usable=unavailable(WORKERS_VIEW) is None)

    async def remind() -> None:
        while True:
            try:
                if unavailable(WORKERS_VIEW) is None and runners[WORKERS_VIEW.name].elsewhere() is None:
                    await reminders.round()
            except (ConnectionError, UnroutableError) as error:
                if await of_database.waited_out(error):
                    continue
                log.warning("reminders wait for the next round", cause=str(error))
            await asyncio.sleep(given.settings.reminder_seconds)

    at_once = min(given.settings.prefetch, QUERIES_AT_ONCE)
    bus.consume(
        PROJECTOR_QUERIES, on_query, prefetch=at_once, of_sender=QUERIES_OF_A_SENDER, outages=of_database
    )
    bus.consume(DEAD_LETTER_QUEUE, dead_letters.collect, prefetch=10, outages=of_database)
    bus.consume(PROJECTOR_OPERATOR, dead_letters.on_request, prefetch=10, outages=of_both)
    checks = [
        check
        for runner in runners.values()
        for check in (runner.problem, runner.elsewhere, partial(not_following, runner.following))
    ]
    try:
        for runner in runners.values():
            await runner.prepare()
        async with (
            bus,
            background(follow, "projector") as following,
            background(remind, "reminders") as reminding,
            background(partial(_keep_counting, count, of_database), "the survey") as counting,
            background(quarantined.keep_collecting, "the quarantines") as collecting,
            background(partial(_keep_tidy, archive, given.settings), "the archive") as tidying,
        ):
            yield Running(
                PROJECTOR.name,
                (bus.problem, *checks),
                (bus.consuming, following, reminding, counting, collecting, tidying),
                tuple(runner.following for runner in runners.values()),
                archive.waiting,
                counts,
                (bus.warning, *(runner.warning for runner in runners.values())),
            )
    finally:
        await database.close()


async def _keep_counting(count: Callable[[], Awaitable[None]], outages: Outages) -> None:
    """Does not end."""
    time = asyncio.get_running_loop().time
    while True:
        began = time()
        try:
            await count()
        except (ConnectionError, ConfigurationError) as error:
            if await outages.waited_out(error):
                continue
            log.warning("what there is is counted later", cause=str(error))
        except Exception:
            log.exception("what there is is counted later")
        await asyncio.sleep(max(COUNT_EVERY, (time() - began) / COUNT_SHARE))


async def _keep_tidy(archive: Archive, settings: Settings) -> None:
    """Does not end."""
    limits = Limits(
        dealt_with_for=timedelta(days=settings.dead_letter_days),
        dealt_with=settings.dead_letters_dealt_with,
        waiting=settings.dead_letters_waiting,
    )
    while True:
        try:
            done = await archive.tidy(limits, utc_now())
            if any(done.values()):
                log.warning("the archive of dead letters keeps to its limits", **done)
        except ConnectionError:
            pass  # the outage is logged already; what is too much now goes after it
        except ConfigurationError as error:
            log.warning("the archive of dead letters grows", cause=str(error))
        await asyncio.sleep(TIDY_EVERY)


PROJECTOR = Role(
    name="projector",
    does="Keeps the read model, answers queries, sends reminders, archives dead letters.",
    compose=projector,
    needs=(Part.BUS, Part.STORE, Part.DATABASE),
    uses=Usage(
        consumes=(PROJECTOR_QUERIES, PROJECTOR_OPERATOR, DEAD_LETTER_QUEUE),
        publishes=(INTERNAL_EXCHANGE,),
        internal=(OperationOutstanding.TYPE, Reminder.TYPE),
    ),
    replicas=Replicas.ONE,
    secrets=("CML_REDRIVE_KEYS",),
)
