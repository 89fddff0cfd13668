"""Configuration by environment, checked when a process starts; a part without its URL is embedded."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    AnyUrl,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from cml_contracts.broker import Nodes
from cml_contracts.commands import COMMANDS
from cml_contracts.texts import AmiId, Form, InstanceType, Region, Tags, Text
from cml_workers.bus.users import NAME
from cml_workers.domain.ownership import Ownership
from cml_workers.domain.policy import EVERY_COMMAND, VISIBILITY_GRACE, Access, Limit, Policy
from cml_workers.domain.profiles import (
    DEFAULT,
    Image,
    ImageOwner,
    KeyName,
    Profile,
    SecurityGroupId,
    SubnetId,
    default_profile,
)
from cml_workers.foundation.failures import ConfigurationError, did_you_mean
from cml_workers.runtime.profiles import read_profiles


class SettingsError(ConfigurationError):
    """The environment does not make a valid configuration; one line for each thing to fix."""


PREFIX = "CML_"
OF_OTHERS = re.compile(
    r"CML_\w+_PASSWORD|CML_ACTOR_TOKEN_KEY|CML_\w+_REDRIVE_KEY|CML_PROFILES_FOLDER|CML_(WORKERS|SIMULATOR)_IMAGE"
    r"|CML_\w+_SERVICE_(HOST|PORT(_\w+)?)|CML_\w+_PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?"
)
"""Variables that are no settings: what the files in ``deploy/`` replace, and what Kubernetes sets for services
(https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables)."""

_HEADERS = re.compile(r"(\s*[\w.!#$%&'*+^`|~-]+\s*=[^,;\s]*\s*(,|$))*", re.ASCII)
_PLAIN_URL = re.compile(r"[a-z+]+://(?:[^@/?#\[\]\s:]*(?::[^@/?#\[\]\s:]*)?@)?[^@/?#\s]*(?:[/?#][^@]*)?")
"""A URL in which it is clear where the password ends."""

OF_THE_DEFAULT_PROFILE = (
    "worker_ami_ids",
    "worker_ami_names",
    "worker_security_group_ids",
    "worker_subnet_id",
    "worker_key_name",
    "default_instance_type",
)
"""Settings that make the profile of a create that names none."""

_JSON_EXAMPLES: Mapping[Any, str] = {
    dict: '{"name": "value"}',
    tuple: '["one", "another"]',
    frozenset: '["one", "another"]',
}

_JSON_EXAMPLES_OF: Mapping[str, str] = {
    "command_users": '{"portal": ["*"]}',
    "teams": '{"ccna": ["ann", "ben"]}',
}
SenderName = Annotated[
    str, Form(NAME.pattern, "a name of at most 63 letters, digits, - and _, beginning with neither")
]


class Settings(BaseSettings):
    """Read from the environment; field ``x`` is ``CML_X`` unless it says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        enable_decoding=False,  # whose errors name no variable; see _json
        frozen=True,
        extra="ignore",
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    rabbitmq_url: Annotated[SecretStr | None, Field(validation_alias="RABBITMQ_URL")] = None
    """amqp:// or amqps:// URL, the hosts of a cluster separated by commas; unset: the embedded broker."""
    rabbitmq_management_url: Annotated[
        SecretStr | None, Field(validation_alias="RABBITMQ_MANAGEMENT_URL")
    ] = None
    """http:// or https:// URL of RabbitMQ's management API, with a user that has the tag monitoring: readiness and the doctor then say
    which queues have fewer replicas than the cluster has nodes, or some that do not work. Unset: they do not know."""
    kurrentdb_uri: Annotated[SecretStr | None, Field(validation_alias="KURRENTDB_URI")] = None
    """kurrentdb:// or esdb:// URI; unset: an SQLite file in the data folder."""
    database_url: Annotated[SecretStr | None, Field(validation_alias="DATABASE_URL")] = None
    """postgresql:// URL; unset: an SQLite file in the data folder."""
    database_call_seconds: Annotated[float, Field(ge=1, le=300)] = 5
    """How long a call to PostgreSQL may take until it counts as not answered; work on whole tables, as a rebuild does, 60 times as long."""
    database_connections: Annotated[int, Field(ge=1, le=200)] = 15
    """How many connections to PostgreSQL queries may use at once; the projector opens up to nine more, which queries cannot take."""
    database_transaction_pooling: bool = False
    """DATABASE_URL leads to a pooler in transaction mode, as PgBouncer's is: no statement stays prepared."""
    aws_endpoint_url: Annotated[AnyUrl | None, Field(validation_alias="AWS_ENDPOINT_URL")] = None
    """URL of an EC2 API other than AWS's own."""
    aws: bool = False
    """Use AWS itself, with the credentials of its usual environment; otherwise the EC2 simulator."""

    data_dir: Path = Path(".cml-workers")
    """Folder of the embedded parts and of ``endpoints.json``, where the command line finds a running system."""
    amqp_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of the embedded broker; 0: a free one."""
    ec2_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of the EC2 simulator; 0: a free one."""
    ec2_transition_seconds: Annotated[float, Field(ge=0, le=600)] = 1.0
    """How long the simulator's instances take to change their state."""

    deployment: Annotated[
        str,
        Form("[a-z0-9][a-z0-9-]{0,62}", "a name of at most 63 characters: a-z, 0-9 and -, and not - first"),
    ] = "default"
    """Name of this fleet, of which an AWS account may have only one; its instances carry it as tag cml:deployment."""
    profiles_file: Path | None = None
    """TOML file of launch profiles, see profiles.md; lifecycle reads it. The other settings of launches are its profile "default"."""
    worker_ami_ids: dict[Region, AmiId] = {}
    """JSON object: region to AMI id."""
    worker_ami_names: dict[Region, Text] = {}
    """JSON object: region to AMI name, for regions without an id."""
    image_owners: tuple[ImageOwner, ...] = ("self",)
    """JSON array: whose images are found by name: account ids, "self" for our own. Anybody can share an image under any name."""
    newest_image: bool = False
    """Of several images of one name take the newest one; otherwise that is an error."""
    worker_security_group_ids: tuple[SecurityGroupId, ...] = ()
    """JSON array: security groups of new instances; empty: the default one of their network."""
    worker_subnet_id: SubnetId | None = None
    """Subnet of new instances; unset: EC2 chooses."""
    worker_key_name: KeyName | None = None
    """Key pair of new instances; unset: none."""
    default_instance_type: InstanceType = "c5.2xlarge"
    """Instance type of a create that names none."""
    default_tags: Tags = {}
    """JSON object: tags of every new instance, beside those of its create."""
    import_tags: dict[str, str] | None = None
    """JSON object: tags that an instance must have to be imported as a worker, beside the tag cml:import with the name of this deployment,
    by which its owner consents; {}: no others. Unset: none is imported if commands need authorization, otherwise as {}."""
    allowed_regions: frozenset[Region] = frozenset()
    """JSON array; empty: every region."""
    allowed_instance_types: frozenset[InstanceType] = frozenset()
    """JSON array; empty: every type."""
    visibility_grace_seconds: Annotated[float, Field(ge=0, le=3600)] = VISIBILITY_GRACE.total_seconds()
    """How long a new instance may be invisible in EC2 before it counts as gone."""
    ec2_call_seconds: Annotated[float, Field(ge=1, le=300)] | None = None
    """How long a call to EC2 may take until it counts as not answered; refused if longer than what depends on it allows. Unset: 30, or
    what a short grace or heartbeat allows."""
    observation_age_seconds: Annotated[float, Field(ge=0, le=3600)] = 0
    """How long ago EC2 may have shown an instance for a command to be answered, without asking EC2, that there is nothing to do; for
    deployments that send status updates more often than that. 0: EC2 is always asked."""
    authentication_grace_seconds: Annotated[float, Field(ge=0, le=3600)] = 60
    """How long a call that AWS does not authorize is tried again before its operation fails."""

    reminder_seconds: Annotated[float, Field(ge=1, le=3600)] = 30
    """How often the projector looks for operations that have been pending for longer than this, and sends reminders of them."""
    operation_deadline_seconds: Annotated[float, Field(ge=1, le=86400)] = 900
    """How long an operation may go without an outcome before the event operation_overdue reports it."""

    dead_letter_days: Annotated[int, Field(ge=1, le=36500)] = 90
    """Days that a dead letter which was redriven, edited or discarded stays in the archive after that."""
    dead_letters_dealt_with: Annotated[int, Field(ge=1)] = 100_000
    """How many of those stay at most; the oldest go first."""
    dead_letters_waiting: Annotated[int, Field(ge=100)] = 10_000
    """How many commands, queries and requests of one user may wait in the archive for an operator. If there are more, the oldest are
    discarded, and their history says why. What the roles send each other is never discarded."""

    relay_begin: Literal["beginning", "end"] | None = None
    """Where the relay begins if it is lost which events were published: end, with what comes from now on; beginning, with all of
    them again. Unset: it publishes nothing, and says so. Of no effect while it is known."""

    declare_topology: bool = True
    """Declare exchanges and queues at start; false: only check that they exist, which needs no rights."""
    authorize: bool | None = None
    """Deny commands of users that may not send them. Unset: true with RABBITMQ_URL, false with the embedded broker."""
    command_users: dict[str, frozenset[str]] = {}
    """JSON object: user of the broker to the command types it may send, e.g. {"portal": ["*"]}; * allows all but imports, which have to be
    named."""
    senders: frozenset[SenderName] = frozenset()
    """JSON array: users that have exchanges and queues of their own, cml.commands.<user> and cml.queries.<user>, which lifecycle and projector
    read beside those of all. The command line uses them where it is one of these users."""
    delegate_users: frozenset[str] = frozenset()
    """JSON array: users that may send commands on behalf of others, with a signed token."""
    worker_commands_at_once: Annotated[int, Field(ge=1)] | None = None
    """How many commands for one worker a process handles at once; the next ones are rejected as Throttled, and may be sent again. Unset:
    four fifths of CML_PREFETCH, so that one worker never keeps others waiting."""
    worker_commands_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Likewise within a minute. Unset: as many as come."""
    user_commands_at_once: Annotated[int, Field(ge=1)] | None = None
    """Likewise of one user of the broker, for all workers. Unset: as many as come, as one service may send everybody's."""
    user_commands_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Likewise within a minute. Unset: as many as come."""
    ownership: bool = False
    """Workers belong to somebody: whoever may send a command may send it for its own workers alone, and sees no others. Their owner is who
    created them, or whom the create names."""
    fleet_actors: frozenset[str] = frozenset()
    """JSON array: who may command and see every worker all the same; a user of the broker, or whom a signed token names."""
    teams: dict[str, frozenset[str]] = {}
    """JSON object: team to those in it, e.g. {"ccna": ["ann", "ben"]}; they share the workers that have it as tag CML_TEAM_TAG."""
    team_tag: Annotated[str, Field(min_length=1, max_length=128)] = "team"
    """The tag that names a worker's team. Whoever may tag the instance in AWS may change it."""
    operator_users: frozenset[str] = frozenset()
    """JSON array: users that may see, redrive, edit and discard dead letters."""
    role_users: dict[str, str] | frozenset[str] = {}
    """JSON object: role to its user at the broker, by whom the others know which role a message comes from. A JSON array: each role may
    be any of these users. Empty: ``cml-`` and the name of each role. A user of a role is nobody else's."""
    redrive_keys: dict[str, SecretStr] = {}
    """JSON object: role to the key, of at least 32 characters, with which the projector signs what it redrives into the role's queues. The
    projector needs those of lifecycle, ec2-adapter and projector; the first two of these each their own and no other. Without a role's key
    nothing is redriven into its queues if commands need authorization and it has another user than the projector."""
    actor_token_keys: tuple[SecretStr, ...] = ()
    """JSON array: keys of at least 32 characters that sign such tokens; several while they are changed."""

    health_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Serve /livez, /readyz and /metrics on this port; 0: a free one; unset: not at all."""
    health_host: str = "127.0.0.1"
    """Address the probes listen on; 0.0.0.0 in a container."""

    otlp_endpoint: Annotated[AnyUrl | None, Field(validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")] = None
    """Base URL of a collector of traces, e.g. http://collector:4318, which gets them by OTLP over HTTP. Unset, as the next one: nothing is
    traced. The other standard variables of OpenTelemetry, see traces.md, apply as well."""
    otlp_traces_endpoint: Annotated[
        AnyUrl | None, Field(validation_alias="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    ] = None
    """Likewise the whole URL, e.g. http://collector:4318/v1/traces."""
    otlp_headers: Annotated[SecretStr | None, Field(validation_alias="OTEL_EXPORTER_OTLP_HEADERS")] = None
    """Headers for the collector: name=value, separated by commas."""
    otlp_traces_headers: Annotated[
        SecretStr | None, Field(validation_alias="OTEL_EXPORTER_OTLP_TRACES_HEADERS")
    ] = None
    """Likewise, instead of those."""
    otlp_protocol: Annotated[
        Literal["http/protobuf"], Field(validation_alias="OTEL_EXPORTER_OTLP_PROTOCOL")
    ] = "http/protobuf"
    """How the collector is spoken to; no other is known here: gRPC's port, 4317, is not the one."""
    otlp_traces_protocol: Annotated[
        Literal["http/protobuf"], Field(validation_alias="OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
    ] = "http/protobuf"
    """Likewise, instead of that."""
    traces_exporter: Annotated[Literal["otlp", "none"], Field(validation_alias="OTEL_TRACES_EXPORTER")] = (
        "otlp"
    )
    """none: nothing is traced, whatever else is set."""
    otel_disabled: Annotated[bool, Field(validation_alias="OTEL_SDK_DISABLED")] = False
    """Likewise, if true."""

    prefetch: Annotated[int, Field(ge=1, le=1000)] = 50
    """Messages of one queue that a role handles at once; the EC2 adapter that many of one region, and as many of all others. Of queries,
    16 at most."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level that is logged, on stderr."""
    library_log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """The same for what libraries log; those that would show messages, requests and rows at debug give no more than at info."""
    log_format: Literal["auto", "console", "json"] = "auto"
    """auto: console on a terminal, JSON elsewhere."""

    @field_validator("*", mode="before")
    @classmethod
    def _json(cls, value: Any, info: ValidationInfo) -> Any:
        """What has several values is JSON in the environment."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        kinds = {get_origin(each) for each in (annotation, *get_args(annotation))}
        kind = next((each for each in _JSON_EXAMPLES if each in kinds), None)
        if not isinstance(value, str) or kind is None:
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            example = _JSON_EXAMPLES_OF.get(info.field_name or "", _JSON_EXAMPLES[kind])
            raise ValueError(f"must be JSON, e.g. {example}") from None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, value, schemes in (
            ("RABBITMQ_MANAGEMENT_URL", self.rabbitmq_management_url, ("http://", "https://")),
            ("KURRENTDB_URI", self.kurrentdb_uri, ("kurrentdb", "esdb")),
            ("DATABASE_URL", self.database_url, ("postgres", "sqlite://")),
        ):
            if value is not None and not value.get_secret_value().startswith(schemes):
                raise ValueError(f"{name} must begin with {' or '.join(schemes)}")
            if (
                name != "DATABASE_URL"
                and value is not None
                and not _PLAIN_URL.fullmatch(value.get_secret_value())
            ):
                # Said here, as libraries say which part they do not like, and that may be one of the password.
                raise ValueError(f"{name} is no URL: user and password have none of @ / ? # [ ] and no space")
        for name, headers in (
            ("OTEL_EXPORTER_OTLP_HEADERS", self.otlp_headers),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", self.otlp_traces_headers),
        ):
            if headers is not None and not _HEADERS.fullmatch(headers.get_secret_value()):
                # Said here, as the library says the whole of it.
                raise ValueError(f"{name} must be name=value, separated by commas; other characters as %20")
        if self.rabbitmq_url is not None:
            Nodes(self.rabbitmq_url.get_secret_value(), "RABBITMQ_URL")
        types = {EVERY_COMMAND, *COMMANDS}
        unknown = sorted(frozenset().union(*self.command_users.values()) - types)
        if unknown:
            raise ValueError(
                f"CML_COMMAND_USERS: {unknown[0]!r} is no command{did_you_mean(unknown[0], types)}"
            )
        if self.allowed_instance_types and self.default_instance_type not in self.allowed_instance_types:
            raise ValueError(
                f"CML_DEFAULT_INSTANCE_TYPE: {self.default_instance_type} is not among CML_ALLOWED_INSTANCE_TYPES"
            )
        for role, key in self.redrive_keys.items():
            if len(key.get_secret_value()) < 32:
                raise ValueError(
                    f"CML_REDRIVE_KEYS: the key of {role[:80]!r} must have at least 32 characters"
                )
        if any(len(key.get_secret_value()) < 32 for key in self.actor_token_keys):
            raise ValueError("CML_ACTOR_TOKEN_KEYS must have at least 32 characters each")
        return self

    def check_roles(self) -> None:
        """What whoever runs roles must have settled, and a client need not know. Raises SettingsError."""
        if self.access.enforced and not self.command_users:
            raise SettingsError(
                "CML_COMMAND_USERS must say who may send commands, e.g. "
                '{"portal": ["*"]}; CML_AUTHORIZE=false lets everybody do everything'
            )
        if self.ownership and not self.access.enforced:
            raise SettingsError(
                "CML_OWNERSHIP needs authorization: without it nobody knows who sends a command; set CML_AUTHORIZE=true"
            )
        if self.aws and self.rabbitmq_url is None and self.authorize is None:
            raise SettingsError(
                "CML_AWS=true needs RABBITMQ_URL, whose broker says who sends a command: these launch real instances. With the embedded "
                "broker everybody who can read the data folder may send every one; CML_AUTHORIZE=false says that this is wanted"
            )
        if self.delegate_users and not self.actor_token_keys:
            raise SettingsError("CML_DELEGATE_USERS needs CML_ACTOR_TOKEN_KEYS")

    def check_profiles(self) -> None:
        """What whoever launches must have settled. Raises ProfilesError, SettingsError."""
        if self.policy.profiles[DEFAULT] == self._default_profile:
            return
        for name in OF_THE_DEFAULT_PROFILE:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise SettingsError(
                    f"{variable(name)} has no effect: {self.profiles_file} has a profile {DEFAULT!r} of its own"
                )

    def secrets(self, *, urls: bool) -> list[str]:
        """What nobody may read as a whole; ``urls``: those of which it is only the password."""
        values = [getattr(self, name) for name in type(self).model_fields if is_url(name) is urls]
        several = [value.values() if isinstance(value, dict) else value for value in values]
        each = [inner for value in several for inner in (value if isinstance(value, Iterable) else (value,))]
        return [value.get_secret_value() for value in each if isinstance(value, SecretStr)]

    @property
    def traces(self) -> bool:
        """Whether there is somebody to send spans to."""
        wanted = self.traces_exporter == "otlp" and not self.otel_disabled
        return wanted and (self.otlp_endpoint or self.otlp_traces_endpoint) is not None

    @property
    def access(self) -> Access:
        """Who may command."""
        enforced = self.rabbitmq_url is not None if self.authorize is None else self.authorize
        return Access(
            enforced=enforced,
            users=self.command_users,
            delegates=self.delegate_users,
            operators=self.operator_users,
            keys=tuple(key.get_secret_value().encode() for key in self.actor_token_keys),
            of_worker=Limit(
                self.worker_commands_at_once or self.prefetch * 4 // 5 or 1, self.worker_commands_per_minute
            ),
            of_user=Limit(self.user_commands_at_once, self.user_commands_per_minute),
            ownership=Ownership(
                enforced=self.ownership, fleet=self.fleet_actors, teams=self.teams, team_tag=self.team_tag
            ),
        )

    @property
    def policy(self) -> Policy:
        """What the rules need to know. Raises ProfilesError."""
        policy = Policy(
            deployment=self.deployment,
            profiles={DEFAULT: self._default_profile},
            default_tags=self.default_tags,
            import_tags=self.import_tags if self.import_tags is not None or self.access.enforced else {},
            allowed_regions=self.allowed_regions,
            allowed_instance_types=self.allowed_instance_types,
            visibility_grace=timedelta(seconds=self.visibility_grace_seconds),
            observation_age=timedelta(seconds=self.observation_age_seconds),
        )
        if self.profiles_file is None:
            return policy
        return replace(policy, profiles={**policy.profiles, **read_profiles(self.profiles_file, policy)})

    @property
    def _default_profile(self) -> Profile:
        images = {
            **{region: Image(name=name) for region, name in self.worker_ami_names.items()},
            **{region: Image(id=id_) for region, id_ in self.worker_ami_ids.items()},
        }
        return default_profile(
            images=images,
            instance_type=self.default_instance_type,
            subnet=self.worker_subnet_id,
            security_groups=self.worker_security_group_ids,
            key=self.worker_key_name,
        )


def is_url(name: str) -> bool:
    """Whether the field is a URL, which is shown but for its password."""
    return name.endswith(("_url", "_uri"))


def variable(name: str) -> str:
    """The environment variable of a setting."""
    alias = Settings.model_fields[name].validation_alias
    return alias if isinstance(alias, str) else f"{PREFIX}{name.upper()}"


def load_settings() -> Settings:
    """The settings of this process's environment; an empty variable counts as unset.

    Raises:
        SettingsError: a value is wrong, or a variable begins like ours and is none of them: misspelt, it would do nothing.
    """
    lines = _misspelt()
    try:
        settings = Settings()
    except ValidationError as error:
        lines += [
            f"{_where(problem['loc'])}{problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise SettingsError("\n".join(lines)) from error
    if lines:
        raise SettingsError("\n".join(lines))
    return settings


def _misspelt() -> list[str]:
    """What is wrong with variables that begin like ours; in any case, as settings are read."""
    known = {variable(name) for name in Settings.model_fields}
    found = []
    for name in sorted(os.environ):
        if (
            name.upper().startswith(PREFIX)
            and name.upper() not in known
            and not OF_OTHERS.fullmatch(name.upper())
        ):
            hint = did_you_mean(name.upper(), known) or "; see docs/configuration.md"
            found.append(f"{name}: there is no such setting{hint}")
    return found


def _where(location: tuple[int | str, ...]) -> str:
    """What an error begins with; one that is of several settings names them itself."""
    if not location:
        return ""
    name = str(location[0])
    within = "".join(f"[{part}]" for part in location[1:] if part != "[key]")
    return f"{name if name.isupper() else f'{PREFIX}{name.upper()}'}{within}: "
