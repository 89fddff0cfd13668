"""What is embedded where nothing else is configured: the message broker and the EC2 simulator."""

import asyncio
import errno
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from secrets import token_urlsafe

from cml_workers.foundation.private_file import make_private
from cml_workers.foundation.tasks import ended
from cml_workers.runtime.role import Running
from cml_workers.runtime.settings import Settings, SettingsError

PASSWORD = "amqp-password"  # noqa: S105 - the file's name
"""Of the embedded broker, in the data folder."""


@contextmanager
def _opened(port_setting: str, port: int, folder: Path) -> Iterator[None]:
    """Raises SettingsError instead of the system's errors, with the setting that would help."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL) and error.filename is None:
            raise SettingsError(
                f"{port_setting}: port {port} is in use or not allowed; 0 takes a free one"
            ) from error
        raise SettingsError(
            f"CML_DATA_DIR: {error.filename or folder.absolute()} cannot be used: {error.strerror}"
        ) from error


async def embed_broker(settings: Settings, stack: AsyncExitStack) -> tuple[str, Running]:
    """Its address; it fails when its journal cannot be written: nothing would be confirmed any more.

    Whoever may read the data folder may connect, as nobody else on this machine is to command: the password is the folder's.
    """
    from cml_embedded.amqp_broker import AmqpBroker  # noqa: PLC0415 - an optional extra

    folder = settings.data_dir / "amqp"
    with _opened("CML_AMQP_PORT", settings.amqp_port, folder):
        password = _password(settings.data_dir / PASSWORD)
        broker = AmqpBroker(port=settings.amqp_port, data_dir=folder, password=password)
        await stack.enter_async_context(broker)
    failing = asyncio.create_task(broker.failed(), name="the embedded broker")
    stack.push_async_callback(ended, failing)
    return broker.url, Running("embedded-broker", checks=(), tasks=(failing,))


def _password(file: Path) -> str:
    """The same at each start, so that clients reconnect. Raises OSError."""
    make_private(file)
    if not (password := file.read_text()):
        password = token_urlsafe(24)
        file.write_text(password)
    return password


async def embed_ec2(settings: Settings, stack: AsyncExitStack) -> tuple[Settings, str]:
    """The simulator; and the settings for it, see ``for_simulator``."""
    from cml_embedded.ec2_simulator import Ec2Simulator  # noqa: PLC0415 - an optional extra

    folder = settings.data_dir / "ec2"
    simulator = Ec2Simulator(
        port=settings.ec2_port,
        data_dir=folder,
        transition_seconds=settings.ec2_transition_seconds,
    )
    with _opened("CML_EC2_PORT", settings.ec2_port, folder):
        await asyncio.to_thread(simulator.start)
    stack.push_async_callback(asyncio.to_thread, simulator.stop)
    return for_simulator(settings), simulator.url


def for_simulator(settings: Settings) -> Settings:
    """Its well-known images as defaults, and credentials that open nothing else."""
    from cml_embedded.ec2_simulator import DEMO_IMAGE_NAME  # noqa: PLC0415 - an optional extra

    os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "simulator"  # noqa: S105
    regions = ("us-east-1", "us-west-2", "eu-west-1")
    names = {**dict.fromkeys(regions, DEMO_IMAGE_NAME), **settings.worker_ami_names}
    return settings.model_copy(update={"worker_ami_names": names})
