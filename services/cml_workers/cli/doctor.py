"""``cml-workers doctor``: what is missing at AWS, RabbitMQ and the event store, before anything is launched."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from cml_workers.cli.show import print_json
from cml_workers.cli.terminal import AsJson, configured, err, out, run_to_end
from cml_workers.runtime.endpoints import ec2_endpoint
from cml_workers.runtime.settings import Settings

if TYPE_CHECKING:  # slow to load, of no use to a client
    from cml_workers.doctor.lines import Line

_COLOURS = {"missing": "red", "unknown": "yellow", "note": "blue"}


def doctor(
    region: Annotated[
        list[str] | None,
        typer.Option("--region", help="Only this one; may be repeated. Default: all that are configured."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check what AWS, RabbitMQ and the event store have to have before anything is launched. Nothing is launched or changed.

    Run it with the settings and the AWS credentials of the EC2 adapter. For each configured region it makes the adapter's own
    calls as dry runs, and looks at what a launch needs: the region itself, rights, image, subnet and its free addresses,
    security groups, key pair, the instance type in the subnet's zone, the vCPU quota, the default key of EBS, tags in instance
    metadata. With RABBITMQ_MANAGEMENT_URL it looks whether the queues have replicas on all nodes. With KURRENTDB_URI, and with DATABASE_URL, it looks whether
    what was saved of the relay and of the read models is of that event store. One line for each thing that is not right says what it is and how to fix it.

    missing: a launch or a later operation will fail, or wait while a node is lost. unknown: it could not be asked. note: good to know.

    Exit codes: 0 nothing is missing; 1 something is; 2 nothing is known to be missing, but not everything could be asked.

    Its calls of its own are allowed by the statement Doctor of deploy/aws/iam-policy.json; docs/ec2-calls.md lists all.
    """
    from cml_workers.doctor.lines import exit_code  # noqa: PLC0415 - see above

    with err.status("asking AWS ...") as status:
        lines, regions = run_to_end(examined(configured(), region or [], status.update))
    if as_json:
        print_json({"regions": regions, "lines": [line._asdict() for line in lines]})
    else:
        _show(lines, regions)
    if code := exit_code(lines):
        raise typer.Exit(code)


async def examined(
    settings: Settings, regions: list[str], say: Callable[[str], None] = lambda _: None
) -> "tuple[list[Line], list[str]]":
    """What is not right, and the regions that were looked at; ``say``: to whom it says what it does."""
    from cml_workers.doctor.account import clients  # noqa: PLC0415 - see above
    from cml_workers.doctor.checkpoints import checkpoint_lines  # noqa: PLC0415
    from cml_workers.doctor.queues import queue_lines  # noqa: PLC0415
    from cml_workers.doctor.visit import visit  # noqa: PLC0415
    from cml_workers.process.embedded import for_simulator  # noqa: PLC0415

    settings.check_profiles()
    endpoint = ec2_endpoint(settings)
    if not settings.aws and not settings.aws_endpoint_url:
        settings = for_simulator(settings)
    done: list[str] = []

    def visited(region: str) -> None:
        done.append(region)
        say(f"asking AWS ... {', '.join(sorted(done))} done")

    async with clients(
        endpoint_url=endpoint, image_owners=settings.image_owners, newest_image=settings.newest_image
    ) as given:
        lines = await visit(regions, settings.policy, settings.image_owners, given, visited)
    say("asking RabbitMQ ...")
    lines += await queue_lines(settings)
    say("asking the event store ...")
    lines += await checkpoint_lines(settings)
    return lines, sorted(done)


def _show(lines: "list[Line]", regions: list[str]) -> None:
    for line in lines:
        where = f" {line.region}" if line.region else ""
        out.print(
            Text.assemble(
                (line.status, _COLOURS[line.status]), f"{where}: {line.problem}. To fix it: {line.fix}"
            ),
            soft_wrap=True,
            highlight=False,
        )
    wrong = Counter(line.region for line in lines if line.status != "note")
    fine = [region for region in regions if not wrong[region]]
    if fine:
        out.print(f"[green]fine[/green] {', '.join(fine)}", soft_wrap=True, highlight=False)
