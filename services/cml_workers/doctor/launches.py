"""What would be launched in a region: by the rules of a create, so that what is examined is what will be asked for."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from uuid import UUID

from cml_contracts.commands import CreateCMLWorker
from cml_contracts.events import LaunchRequested
from cml_contracts.instance import LaunchParameters
from cml_workers.domain.creation import create_worker
from cml_workers.domain.decisions import LookupNeededError
from cml_workers.domain.messages import ImageLookup, LookupResult
from cml_workers.domain.policy import Policy
from cml_workers.domain.profiles import DEFAULT, Profile
from cml_workers.domain.worker import Worker

NOBODY = UUID(int=0)
"""The worker of a dry run."""


def profiles_by_region(policy: Policy, only: Sequence[str]) -> Mapping[str, Sequence[Profile]]:
    """Which profiles launch in which region. ``only``: these regions, whether a profile names them or not; empty: all."""
    profiles = policy.profiles.values()
    named = {region for profile in profiles for region in profile.regions}
    if policy.allowed_regions:
        named = {*policy.allowed_regions}
    return {
        region: [each for each in profiles if region in each.regions] or [policy.profiles[DEFAULT]]
        for region in sorted(only or named)
    }


async def launches_in(
    region: str, profile: Profile, policy: Policy, find: Callable[[ImageLookup], Awaitable[str | None]]
) -> list[LaunchParameters]:
    """What a create with this profile launches: each instance type, and the first one in each subnet. Empty: the image is not there.

    Raises RejectedError: a rule says no to every such create.
    """
    chosen = profile.of(region)
    types = chosen.instance_types if chosen else (None,)
    subnets = chosen.subnets[1:] if chosen else ()
    looked_up: LookupResult | None = None
    launches = []
    for instance_type in types:
        command = CreateCMLWorker(
            name="doctor",
            aws_region=region,
            created_by="doctor",
            profile=profile.name,
            instance_type=instance_type,
        )
        if looked_up is None:
            try:
                create_worker(command, "doctor", Worker(id=NOBODY), policy, None)
            except LookupNeededError as needed:
                lookup = needed.decision.lookup
                if not isinstance(lookup, ImageLookup):
                    raise
                image_id = await find(lookup)
                if image_id is None:
                    return []
                looked_up = LookupResult(image_id=image_id)
        events = create_worker(command, "doctor", Worker(id=NOBODY), policy, looked_up)
        launches += [each.launch for each in events if isinstance(each, LaunchRequested)]
    elsewhere = [launches[0].model_copy(update={"subnet_id": subnet}) for subnet in subnets]
    return [*launches, *elsewhere]
