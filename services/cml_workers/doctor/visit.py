"""All regions of a deployment, examined side by side."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from cml_workers.doctor.account import Account, Clients
from cml_workers.doctor.examination import Examination
from cml_workers.doctor.launches import profiles_by_region
from cml_workers.doctor.lines import Line, Status
from cml_workers.domain.policy import Policy
from cml_workers.ec2_adapter.errors import EC2Error

NOT_ENABLED = "not-opted-in"
"""EC2's word for a region that the account has to enable first (EC2 API reference, *Region*)."""


async def visit(
    regions: Sequence[str],
    policy: Policy,
    image_owners: Sequence[str],
    clients: Clients,
    on_examined: Callable[[str], None] = lambda _: None,
) -> list[Line]:
    """What is not as it has to be, region by region. ``regions`` empty: those of the profiles; ``on_examined``: progress."""
    profiles = profiles_by_region(policy, regions)
    accounts = {region: Account(region, clients) for region in profiles}
    if not accounts:
        fix = "set CML_WORKER_AMI_IDS, CML_WORKER_AMI_NAMES or CML_PROFILES_FILE, or name a region with --region"
        return [Line("", Status.MISSING, "settings", "no region has an image", fix)]
    known = await _known(list(accounts.values()))

    async def examined(account: Account) -> list[Line]:
        lines = list(_without(account.region, known))
        if not lines:
            examination = Examination(account, policy, profiles[account.region], image_owners)
            await examination.run()
            lines = examination.lines
        on_examined(account.region)
        return lines

    return [line for lines in await asyncio.gather(*map(examined, accounts.values())) for line in lines]


async def _known(accounts: Sequence[Account]) -> Mapping[str, str] | None:
    """All regions of AWS, from the first one that answers: one that is not enabled does not take our credentials."""
    for account in accounts:
        try:
            known = await account.regions()
        except EC2Error:
            continue  # its examination says so
        if known:
            return known
    return None


def _without(region: str, known: Mapping[str, str] | None) -> Sequence[Line]:
    """Why there is nothing to examine."""
    if known is None:
        return ()
    if region not in known:
        return (
            Line(
                region,
                Status.MISSING,
                "region",
                f"AWS has no region {region}",
                "correct its name in the settings",
            ),
        )
    if known[region] == NOT_ENABLED:
        return (
            Line(
                region,
                Status.MISSING,
                "region",
                f"region {region} is not enabled for this account",
                f"aws account enable-region --region-name {region}, or take it out of the settings",
            ),
        )
    return ()
