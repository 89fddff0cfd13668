"""Whether the checkpoints of the followers are those of the event store that is configured."""

from cml_workers.doctor.lines import Line, Status
from cml_workers.eventstore.anchor import Anchor, elsewhere, mismatch, or_else
from cml_workers.eventstore.opening import open_event_store
from cml_workers.eventstore.port import EventStore
from cml_workers.eventstore.relay_stream import load_saved
from cml_workers.foundation.failures import ConfigurationError
from cml_workers.readmodels.generations import Generations
from cml_workers.readmodels.registry import READ_MODELS
from cml_workers.readmodels.runner import remedy
from cml_workers.relay.checkpoint import REMEDY
from cml_workers.runtime.endpoints import database_options, existing_event_store_uri
from cml_workers.runtime.settings import Settings, SettingsError
from cml_workers.sql.adapters import connect

SUBJECT = "checkpoint"


async def checkpoint_lines(settings: Settings) -> list[Line]:
    """What is not as it has to be; of no region. Read models are looked at where ``DATABASE_URL`` is set."""
    try:
        uri = existing_event_store_uri(settings)
    except SettingsError:  # nothing has been stored yet
        return []
    try:
        store = open_event_store(uri)
    except ConfigurationError as error:
        return [_unknown(error, "KURRENTDB_URI")]
    try:
        lines = await _relays_line(store)
        if settings.database_url is not None:
            lines += await _read_models_lines(settings, store)
        elif settings.kurrentdb_uri is not None:
            problem = "whether the read models are of this event store is not known"
            lines.append(Line("", Status.NOTE, SUBJECT, problem, "set DATABASE_URL"))
    finally:
        await store.close()
    return lines


async def _relays_line(store: EventStore) -> list[Line]:
    try:
        saved = await load_saved(store)
        anchor, position = (saved.anchor, saved.position) if saved else (None, None)
        return await _line(store, "the relay", anchor, position, REMEDY)
    except (ConnectionError, ConfigurationError) as error:
        return [_unknown(error, "KURRENTDB_URI")]


async def _read_models_lines(settings: Settings, store: EventStore) -> list[Line]:
    lines: list[Line] = []
    database = connect(database_options(settings))
    try:
        for model in READ_MODELS:
            active = await Generations(model, database).active()
            anchor = active.anchor if active else None
            position = active.position if active and active.events else None
            lines += await _line(store, f"read model {model.name}", anchor, position, remedy(model.name))
    except (ConnectionError, ConfigurationError) as error:
        lines.append(_unknown(error, "DATABASE_URL"))
    finally:
        await database.close()
    return lines


async def _line(
    store: EventStore, whose: str, anchor: Anchor | None, position: str | None, fix: str
) -> list[Line]:
    found = await mismatch(store, anchor, position)
    return [Line("", Status.MISSING, SUBJECT, elsewhere(whose, found), or_else(fix))] if found else []


def _unknown(error: Exception, setting: str) -> Line:
    problem = f"whether the checkpoints are those of this event store could not be asked: {error}"
    return Line(
        "",
        Status.UNKNOWN,
        SUBJECT,
        problem,
        f"see that this host reaches {setting}, with the rights of the roles",
    )
