"""Where the parts of the system are: as configured, or as a running system wrote into its data folder."""

import fcntl
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from cml_workers.runtime.settings import Settings, SettingsError
from cml_workers.sql.port import DatabaseOptions

ENDPOINTS = "endpoints.json"
LOCK = "lock"
"""Held by the process that the data folder belongs to."""

_ENDPOINTS = TypeAdapter(dict[str, str])


def event_store_uri(settings: Settings) -> str:
    """The configured event store, or the file in the data folder."""
    if settings.kurrentdb_uri:
        return settings.kurrentdb_uri.get_secret_value()
    return f"sqlite:///{_event_file(settings)}"


def existing_event_store_uri(settings: Settings) -> str:
    """The same for whoever reads what is there already. Raises SettingsError where there is no such file, as a store would make an empty one."""
    file = _event_file(settings)
    if not settings.kurrentdb_uri and not file.exists():
        raise SettingsError(
            f"no event store: set KURRENTDB_URI, or use the folder of `cml-workers run` (there is no {file.name} in "
            f"{file.parent}; CML_DATA_DIR names another folder)"
        )
    return event_store_uri(settings)


def _event_file(settings: Settings) -> Path:
    return (settings.data_dir / "events.sqlite3").absolute()


def database_url(settings: Settings) -> str:
    """The configured database, or the file in the data folder."""
    if settings.database_url:
        return settings.database_url.get_secret_value()
    return f"sqlite:///{_database_file(settings)}"


def _database_file(settings: Settings) -> Path:
    return (settings.data_dir / "read-model.sqlite3").absolute()


def existing_database_options(settings: Settings) -> DatabaseOptions:
    """The database for whoever reads what is there already. Raises SettingsError where there is no such file."""
    file = _database_file(settings)
    if not settings.database_url and not file.exists():
        raise SettingsError(
            f"no database: set DATABASE_URL, or use the folder of `cml-workers run` (there is no {file.name} in "
            f"{file.parent}; CML_DATA_DIR names another folder)"
        )
    return database_options(settings)


def database_options(settings: Settings) -> DatabaseOptions:
    """The configured database, or the file in the data folder, and how it is used."""
    return DatabaseOptions(
        database_url(settings),
        call_seconds=settings.database_call_seconds,
        connections=settings.database_connections,
        transaction_pooling=settings.database_transaction_pooling,
    )


def known_endpoints(settings: Settings) -> dict[str, str]:
    """What a running ``cml-workers run`` wrote into the data folder; empty if it does not run.

    Raises:
        SettingsError: the file cannot be read, or is not what was written.
    """
    path = (settings.data_dir / ENDPOINTS).absolute()
    try:
        return _ENDPOINTS.validate_json(path.read_bytes())
    except FileNotFoundError:
        if _is_used(settings.data_dir / LOCK):
            raise SettingsError(
                f"`cml-workers run` runs here, but {path} is gone: stop it and start it again"
            ) from None
        return {}
    except ValidationError:
        raise SettingsError(f"{path} is damaged: stop `cml-workers run` and start it again") from None
    except OSError as error:
        raise SettingsError(f"CML_DATA_DIR: cannot read {path}: {error.strerror}") from error


def _is_used(lock: Path) -> bool:
    """Whether a process holds the folder's lock."""
    try:
        with lock.open() as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def amqp_url(settings: Settings) -> str:
    """Where the bus is: as configured, or as the running system wrote. Raises SettingsError."""
    if settings.rabbitmq_url:
        return settings.rabbitmq_url.get_secret_value()
    url = known_endpoints(settings).get("amqp")
    if url is None:
        raise SettingsError(
            f"no RabbitMQ: set RABBITMQ_URL, or start `cml-workers run` here (there is no {ENDPOINTS} in "
            f"{settings.data_dir.absolute()}; CML_DATA_DIR names another folder)"
        )
    return url


def ec2_endpoint(settings: Settings) -> str | None:
    """The EC2 API: as configured, AWS's own (None), or the running simulator. Raises SettingsError."""
    if settings.aws_endpoint_url:
        return str(settings.aws_endpoint_url)
    if settings.aws:
        return None
    url = known_endpoints(settings).get("ec2")
    if url is None:
        raise SettingsError(
            "no EC2: set CML_AWS=true to use AWS with the credentials of its usual environment, or "
            "AWS_ENDPOINT_URL, or start `cml-workers run` here for the simulator"
        )
    return url
