"""The EC2 instance behind a worker, as it was observed, and as callers see it."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Self
from uuid import UUID

from cml_contracts.model import Tolerant

RESERVED_TAG_PREFIX = "cml:"
"""Tags by which the system knows its own instances; callers can neither set nor change them."""
NAME_TAG = "Name"
"""The tag that AWS shows as an instance's name (EC2 user guide, *Tag your EC2 resources*); it is the worker's name."""
WORKER_TAG = "cml:worker-id"
DEPLOYMENT_TAG = "cml:deployment"
CONSENT_TAG = "cml:import"
"""By which an instance's owner consents, in AWS, to its import: its value is the name of the deployment that may."""


class InstanceState(StrEnum):
    """EC2's own instance states (DescribeInstances, ``instance-state-name``)."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SHUTTING_DOWN = "shutting-down"
    TERMINATED = "terminated"


class WorkerStatus(StrEnum):
    """A worker's place in its life cycle: what was decided, else what EC2 shows."""

    PENDING = "PENDING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    TERMINATED = "TERMINATED"
    FAILED = "FAILED"


_ASKED_FOR = ("Client.UserInitiated", "Client.InstanceInitiated", "Client.InstanceTerminated")
"""State reasons of what somebody asked for, from within the instance or without (EC2 API reference, StateReason)."""


class StateReason(Tolerant):
    """Why an instance is in its state, as EC2 says (``StateReason`` of DescribeInstances, EC2 API reference).

    ``code``: e.g. ``Client.UserInitiatedShutdown``, ``Client.InvalidKMSKey.InvalidState``, ``Client.VolumeLimitExceeded``,
    ``Server.InternalError``; ``message`` mostly begins with a code, too.
    """

    code: str = ""
    message: str = ""

    @property
    def is_of_ec2(self) -> bool:
        """Whether EC2 itself ended or stopped the instance, as it could not run; not somebody who asked for it."""
        return bool(self.code) and not self.code.startswith(_ASKED_FOR)

    def __str__(self) -> str:
        if not self.message or self.message.startswith(("Client.", "Server.")):
            return self.message or self.code
        return f"{self.code}: {self.message}" if self.code else self.message


class Ec2Instance(Tolerant):
    """One instance as EC2 described it at one moment.

    ``instance_status_check`` and ``ec2_system_status_check`` hold EC2's values (``ok``, ``impaired``,
    ``initializing``, ``insufficient-data``, ``not-applicable``); None when they were not asked for.
    ``state_transition_reason``: who caused the state, and when, e.g. ``User initiated (2026-01-02 03:04:05 GMT)``.
    """

    instance_id: str
    aws_region: str
    state: InstanceState
    instance_type: str
    ami_id: str
    security_group_ids: tuple[str, ...] = ()
    subnet_id: str | None = None
    key_pair_name: str | None = None
    public_ip: str | None = None
    private_ip: str | None = None
    tags: Mapping[str, str] = {}
    instance_status_check: str | None = None
    ec2_system_status_check: str | None = None
    state_reason: StateReason | None = None
    state_transition_reason: str | None = None

    @property
    def reason(self) -> str | None:
        """Why it is in its state, in EC2's words; None where EC2 does not say."""
        return (str(self.state_reason) if self.state_reason else None) or self.state_transition_reason


class CMLWorkerInstanceDto(Tolerant):
    """The reply to a create or an import, and the read model's picture of a worker's instance."""

    id: UUID
    aws_instance_id: str
    aws_region: str
    instance_name: str
    ami_id: str
    ami_name: str | None = None
    instance_type: str
    security_group_ids: tuple[str, ...] = ()
    subnet_id: str | None = None
    instance_state: InstanceState | None = None
    public_ip: str | None = None
    private_ip: str | None = None
    key_pair_name: str | None = None
    tags: Mapping[str, str] = {}
    instance_status_check: str | None = None
    ec2_system_status_check: str | None = None
    state_reason: StateReason | None = None
    state_transition_reason: str | None = None

    @classmethod
    def of(cls, worker_id: UUID, name: str, ami_name: str | None, instance: Ec2Instance) -> Self:
        """The worker's DTO from its instance as last observed."""
        observed = instance.model_dump(exclude={"instance_id", "state"})
        return cls(
            id=worker_id,
            aws_instance_id=instance.instance_id,
            instance_name=name,
            ami_name=ami_name,
            instance_state=instance.state,
            **observed,
        )


class RootVolume(Tolerant):
    """How the root volume is to be; None: as in the image, and encrypted by the region's default key."""

    size_gib: int | None = None
    volume_type: str | None = None
    kms_key_id: str | None = None


class LaunchParameters(Tolerant):
    """Everything RunInstances gets, fixed before AWS is called.

    EC2 refuses a retry in which any of it has changed (IdempotentParameterMismatch), so it is stored with the
    intent and never looked up again.

    ``client_token``: at most 64 ASCII characters (EC2 API reference, *Ensuring idempotency*). ``instance_profile``: a name or
    an ARN. ``metadata_tags``: whether instance metadata shows the tags; None: as the account prescribes.
    """

    aws_region: str
    ami_id: str
    ami_name: str | None = None
    instance_type: str
    security_group_ids: tuple[str, ...] = ()
    subnet_id: str | None = None
    key_name: str | None = None
    tags: Mapping[str, str]
    generation: int
    client_token: str
    root_volume: RootVolume | None = None
    instance_profile: str | None = None
    user_data: str | None = None
    nested_virtualization: bool = False
    metadata_tags: bool | None = None


class LaunchPlace(Tolerant):
    """Where a launch may take place, and as what: a subnet is in one zone, which may have no room for a type."""

    instance_type: str
    subnet_id: str | None = None
    nested_virtualization: bool = False
