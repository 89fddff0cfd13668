"""EC2 as the executor sees it: what is asked, what may be raised, and what a caller may repeat."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple, Protocol

from cml_contracts.instance import Ec2Instance, InstanceState, LaunchParameters

MOST_DESCRIBED = 200
"""Instances that one DescribeInstances call is asked for: the values that a filter takes (EC2 API reference)."""
MOST_CHECKED = 100
"""Instances that one DescribeInstanceStatus call is asked for (EC2 API reference)."""


AT_ONCE = 50
"""Calls under way in a region at most. A call that waits has not been made: it does not count as unanswered."""

LONGEST_CALL = timedelta(seconds=30)
"""How long a call may take where nothing that depends on it is shorter: EC2 is slow at times, and what is slow is to be done."""


class StateChange(NamedTuple):
    """What EC2 answers to a start, a stop or a termination."""

    previous: InstanceState
    current: InstanceState


class StatusChecks(NamedTuple):
    """EC2's words: ``ok``, ``impaired``, ``initializing``, ``insufficient-data``, ``not-applicable``."""

    instance: str
    system: str


class Ec2(Protocol):
    """The calls on EC2 that the system makes, each of them one request where nothing else is said.

    Every method raises the exceptions of ``errors.py`` and nothing else. ``OutcomeUnknownError`` (time-out,
    5xx, connection reset) says that the call may have taken effect; every call here may be repeated with
    the same arguments, one caller at a time per instance, and then has the effect of one.
    """

    async def launch(self, parameters: LaunchParameters) -> Ec2Instance:
        """RunInstances of exactly one instance under ``parameters.client_token``.

        The same parameters and token return the same instance. IMDSv2 required with hop limit 1, encrypted
        root volume deleted on termination, shutdown from within stops; tags on instance and volumes.
        """
        ...

    async def switch(self, api: str, region: str, instance_id: str) -> StateChange:
        """A call of ``power.POWERS``, by EC2's name. An instance that is where it leads, or on its way, is left as it is."""
        ...

    async def terminate(self, region: str, instance_id: str) -> StateChange:
        """TerminateInstances. May be repeated while the instance is visible."""
        ...

    async def add_tags(self, region: str, instance_id: str, tags: Mapping[str, str]) -> None:
        """CreateTags: adds or overwrites, never removes."""
        ...

    async def describe_many(self, region: str, instance_ids: Sequence[str]) -> Mapping[str, Ec2Instance]:
        """DescribeInstances: those of the instances that are visible, by their ids; without status checks.

        At most ``MOST_DESCRIBED`` ids. A new instance may stay invisible for some minutes (eventual consistency);
        a terminated one is visible for about an hour.
        """
        ...

    async def status_checks(self, region: str, instance_ids: Sequence[str]) -> Mapping[str, StatusChecks]:
        """DescribeInstanceStatus of those of the instances that are visible. At most ``MOST_CHECKED`` ids.

        One id that EC2 does not know fails the whole request; then it takes several to find the others.
        """
        ...

    async def list_instances(
        self, region: str, filters: Mapping[str, Sequence[str]]
    ) -> Sequence[Ec2Instance]:
        """DescribeInstances by filters, all pages: instances that have one of the values of each filter.

        The names are EC2's: ``client-token``, ``instance-state-name``, ``tag:<key>``. Terminated instances are listed,
        too; eventually consistent.
        """
        ...

    async def find_image(self, region: str, name: str, owner: str | None = None) -> str | None:
        """The id of the available image of exactly that name; None if there is none.

        ``owner``: an account id or ``self``; None: the owners that were configured. Raises EC2InvalidParameterException: there are several.
        """
        ...

    async def refresh(self, region: str) -> None:
        """Read the credentials for this region from their source again, after they were refused there.

        Calls under way are not disturbed.
        """
        ...
