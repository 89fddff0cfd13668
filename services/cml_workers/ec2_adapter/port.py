"""EC2 as the executor sees it: what is asked, what may be raised, and what a caller may repeat."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from cml_contracts.instance import Ec2Instance, InstanceState, LaunchParameters


class Ec2(Protocol):
    """The calls on EC2 that the system makes.

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

    async def start(self, region: str, instance_id: str) -> InstanceState:
        """StartInstances; the state EC2 answered with. A running or pending instance is left as it is."""
        ...

    async def stop(self, region: str, instance_id: str) -> InstanceState:
        """StopInstances; the state EC2 answered with. A stopping or stopped instance is left as it is."""
        ...

    async def terminate(self, region: str, instance_id: str) -> InstanceState:
        """TerminateInstances; the state EC2 answered with. May be repeated while the instance is visible."""
        ...

    async def add_tags(self, region: str, instance_id: str, tags: Mapping[str, str]) -> None:
        """CreateTags: adds or overwrites, never removes."""
        ...

    async def tags(self, region: str, instance_id: str) -> dict[str, str]:
        """DescribeTags: all tags of the instance."""
        ...

    async def describe(self, region: str, instance_id: str) -> Ec2Instance | None:
        """The instance as EC2 shows it now, with both status checks; None when it is not visible.

        A new instance may stay invisible for some minutes (eventual consistency); a terminated one is
        visible for about an hour.
        """
        ...

    async def find_launched(self, region: str, client_token: str) -> Sequence[Ec2Instance]:
        """The instances that were launched under the token, terminated ones too; eventually consistent."""
        ...

    async def refresh(self) -> None:
        """Take the credentials from their source anew, after they were refused."""
        ...

    async def find_image(self, region: str, name: str) -> str | None:
        """The id of the newest available image of that name that we own or that is shared with us."""
        ...
