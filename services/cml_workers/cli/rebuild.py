"""``cml-workers rebuild``: fill read models again from the event store, while the system runs."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from cml_workers.cli.show import print_json
from cml_workers.cli.terminal import NOT_DONE, USAGE, AsJson, configured, err, fail, out, run_to_end
from cml_workers.runtime.endpoints import database_options, existing_event_store_uri
from cml_workers.runtime.settings import Settings

if TYPE_CHECKING:  # slow to load, of no use to a client
    from cml_workers.readmodels.model import ReadModel
    from cml_workers.readmodels.rebuild import Progress, Rebuilt


def rebuild(
    name: Annotated[str | None, typer.Argument(help="Which read model; default: all of them.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only compare: list the differences, and switch nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Rebuild read models from the event store, beside the ones in use, while the system runs.

    The new tables are compared with the ones in use, and take their place in one step; differences are listed. If this
    program's read model has another version than the one in use, the new tables are only prepared: the projector of this
    version goes on with them when it starts. An interrupted rebuild is resumed.
    """
    from cml_workers.readmodels.rebuild import SupersededError  # noqa: PLC0415 - see above
    from cml_workers.readmodels.registry import READ_MODELS  # noqa: PLC0415

    models = [model for model in READ_MODELS if name in (None, model.name)]
    if not models:
        fail(
            f"there is no read model {name!r}; there are: {', '.join(each.name for each in READ_MODELS)}",
            USAGE,
        )
    settings = configured()
    try:
        done = [run_to_end(_rebuilt(settings, model, verify=verify)) for model in models]
    except SupersededError as error:
        fail(str(error), NOT_DONE)
    if as_json:
        print_json([_as_json(each) for each in done])
    else:
        for each in done:
            _show(each)
    if verify and any(each.differences is None or each.differences for each in done):
        raise typer.Exit(NOT_DONE)


async def _rebuilt(settings: Settings, model: "ReadModel", *, verify: bool) -> "Rebuilt":
    from cml_workers.eventstore.opening import open_event_store  # noqa: PLC0415 - see above
    from cml_workers.readmodels.generations import Generations  # noqa: PLC0415
    from cml_workers.readmodels.rebuild import Rebuild  # noqa: PLC0415
    from cml_workers.sql.adapters import connect  # noqa: PLC0415
    from cml_workers.sql.database import migrate, open_database  # noqa: PLC0415

    uri = existing_event_store_uri(settings)
    engine = open_database(database_options(settings))
    await migrate(engine)
    await engine.dispose()
    store = open_event_store(uri)
    database = connect(database_options(settings))
    try:
        generations = Generations(model, database)
        active = await generations.active()
        same = active is None or active.version == model.version
        with Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.completed:.0f} events, {task.fields[rate]:.0f}/s"),
            TextColumn("position {task.fields[position]}"),
            console=err,
        ) as bars:
            bar = bars.add_task(model.name, total=None, rate=0.0, position="")
            return await Rebuild(
                store,
                generations,
                switch=same and not verify,
                keep=not verify,
                on_progress=lambda progress: _move(bars, bar, progress),
            ).run()
    finally:
        await database.close()
        await store.close()


def _move(bars: Bars, bar: TaskID, progress: "Progress") -> None:
    total = progress.total and max(progress.total, progress.events)
    bars.update(bar, completed=progress.events, total=total, rate=progress.rate, position=progress.position)


def _show(rebuilt: "Rebuilt") -> None:
    out.print(
        f"{rebuilt.model}: {rebuilt.events} events in {rebuilt.seconds:.1f} s ({rebuilt.rate:.0f}/s), "
        f"{'in use now' if rebuilt.switched else 'not in use'}"
    )
    if rebuilt.differences is None:
        out.print(
            "not compared: nothing in use has the same tables, or the event store does not have what it shows"
        )
    elif not rebuilt.differences:
        out.print("equal to the one in use before")
    else:
        table = Table(
            "table", "missing", "added", "examples", title="differences", title_justify="left", box=None
        )
        for each in rebuilt.differences:
            table.add_row(each.table, str(each.missing), str(each.added), Text(", ".join(each.examples)))
        out.print(table)


def _as_json(rebuilt: "Rebuilt") -> dict[str, object]:
    differences = rebuilt.differences
    return {
        "read_model": rebuilt.model,
        "version": rebuilt.generation.version,
        "events": rebuilt.events,
        "seconds": round(rebuilt.seconds, 3),
        "switched": rebuilt.switched,
        "differences": None
        if differences is None
        else [
            {
                "table": each.table,
                "missing": each.missing,
                "added": each.added,
                "examples": list(each.examples),
            }
            for each in differences
        ],
    }
