"""Messages that nobody reads, to see whether RabbitMQ takes messages at all."""

from cml_workers.bus.port import Outgoing
from cml_workers.bus.topology import PROBES
from cml_workers.bus.usage import Usage

_BINDING = PROBES.bindings[0]
PROBE = Outgoing(
    _BINDING.exchange, _BINDING.routing_key, b"{}", _BINDING.routing_key, "probe", mandatory=False
)
"""RabbitMQ works if it confirms this one, as its queue has a replica on each node: then what it does not confirm is the queue's fault
that the message goes to."""
_BY_NAME = Outgoing(None, PROBES.name, b"{}", PROBE.type, "probe", mandatory=False)


def probe_of(uses: Usage) -> Outgoing | None:
    """The probe of who has these rights; None for who has none to it.

    Whoever consumes publishes replies and retries through the default exchange.
    """
    if PROBE.exchange in uses.exchanges:
        return PROBE
    return _BY_NAME if uses.consumes else None
