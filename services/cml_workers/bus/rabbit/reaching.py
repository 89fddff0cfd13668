"""Whether RabbitMQ lets us in and has what we use, and what it means if not."""

import logging

from aiormq.exceptions import AuthenticationError, ChannelNotFoundEntity, ProbableAuthenticationError

from cml_contracts.amqp import outage
from cml_contracts.broker import Nodes, connect
from cml_workers.bus.port import BusConfigurationError, BusUnavailableError
from cml_workers.foundation.secrets import redacted


def quiet() -> None:
    """Keep the libraries from logging what they also raise, unless a level was set for them."""
    for library, level in (("aio_pika", logging.ERROR), ("aiormq", logging.CRITICAL)):
        if (logger := logging.getLogger(library)).level == logging.NOTSET:
            logger.setLevel(level)
    logging.getLogger("aio_pika.tools").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Each channel of a connection that is lost fails to close, which says nothing more."""
    return "RobustChannel._on_close" not in record.getMessage()


async def reach(url: str) -> None:
    """Return when a node lets us in. Raises BusUnavailableError, BusConfigurationError."""
    quiet()
    try:
        async with await connect(Nodes(url, "RABBITMQ_URL")):
            pass
    except BaseException as error:
        if (cause := outage(error)) is None:
            raise
        raise unreachable(error, cause, url) from error


def unreachable(error: BaseException, cause: str, url: str) -> Exception:
    """What it means that no connection can be made: an outage, or a configuration error."""
    url = redacted(url)
    if isinstance(error, AuthenticationError | ProbableAuthenticationError):
        return BusConfigurationError(f"{url} does not accept user and password; fix RABBITMQ_URL ({cause})")
    if isinstance(error, FileNotFoundError) or "CERTIFICATE_VERIFY_FAILED" in cause:
        return BusConfigurationError(
            f"no trusted connection to {url}: cafile in RABBITMQ_URL must name the certificate authority of its "
            f"server ({cause})"
        )
    return BusUnavailableError(f"no RabbitMQ at {url}: {cause}")


def missing(error: BaseException) -> bool:
    """Whether a queue or an exchange does not exist; NOT_FOUND says so too of one "whose home node is down", or "due to timeout"."""
    return isinstance(error, ChannelNotFoundEntity) and any(
        kind in str(error) for kind in ("no queue", "no exchange")
    )
