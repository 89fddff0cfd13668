"""Whether RabbitMQ has the queues on every node of its cluster, so that one that is lost stops nothing."""

from cml_workers.bus.rabbit.management import ManagementError
from cml_workers.bus.topology import PROBES
from cml_workers.bus.usage import EVERYTHING
from cml_workers.doctor.lines import Line, Status
from cml_workers.runtime.replicas import REMEDY, described, seen_cluster
from cml_workers.runtime.settings import Settings

SUBJECT = "queue"


async def queue_lines(settings: Settings) -> list[Line]:
    """What is not as it has to be; of no region."""
    if settings.rabbitmq_url is None:
        return []
    try:
        seen = await seen_cluster(settings)
    except ManagementError as error:
        fix = "see that this host reaches it, as a user with the tag monitoring and some right in the virtual host"
        return [Line("", Status.UNKNOWN, SUBJECT, str(error), fix)]
    if seen is None:
        problem = "whether the queues have replicas on all nodes of RabbitMQ is not known"
        return [Line("", Status.NOTE, SUBJECT, problem, "set RABBITMQ_MANAGEMENT_URL")]
    wrong = described(seen, (*EVERYTHING.with_own(settings.senders).queues, PROBES.name))
    return [Line("", Status.MISSING, SUBJECT, wrong, REMEDY)] if wrong else []
