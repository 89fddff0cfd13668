"""The examination of one region: rights, and what the launches of each profile need, without launching anything."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cml_contracts.instance import DEPLOYMENT_TAG, LaunchParameters
from cml_workers.doctor.account import Account
from cml_workers.doctor.lines import Line, Status
from cml_workers.doctor.prerequisites import Prerequisites
from cml_workers.domain.policy import Policy
from cml_workers.domain.profiles import Profile
from cml_workers.ec2_adapter.errors import EC2Error
from cml_workers.ec2_adapter.power import POWERS

POLICY_FILE = "deploy/aws/iam-policy.json"
NO_INSTANCE = "i-00000000000000000"

Call = Callable[[], Awaitable[Any]]


class Examination:
    """``lines``: what is not as it has to be."""

    def __init__(
        self, account: Account, policy: Policy, profiles: Sequence[Profile], image_owners: Sequence[str]
    ) -> None:
        self._account = account
        self._region = account.region
        self._policy = policy
        self._profiles = profiles
        self._image_owners = image_owners
        self._of_adapter: set[str] = set()
        self.lines: list[Line] = []

    async def run(self) -> None:
        """Whatever ends it, ``lines`` has what was seen until then."""
        try:
            await self._look()
            await self._change()
            for profile in self._profiles:
                needed = Prerequisites(self._account, profile, self._image_owners)
                try:
                    launches = await needed.examine(self._policy)
                finally:
                    self._take(needed.lines)
                await self._dry_launches(profile, launches, needed.lines)
        except EC2Error as error:
            fix = "see that this host reaches AWS with valid credentials, and try again"
            self._add(Status.UNKNOWN, "EC2", error.problem.detail, fix)
        finally:
            self._rights()

    async def _look(self) -> None:
        """Whether the adapter may make each call that only looks."""
        ec2, region = self._account.clients.ec2, self._region
        calls: dict[str, Call] = {
            "ec2:DescribeInstances": lambda: ec2.describe_many(region, [NO_INSTANCE]),
            "ec2:DescribeInstanceStatus": lambda: ec2.status_checks(region, [NO_INSTANCE]),
            "ec2:DescribeImages": lambda: ec2.find_image(region, "doctor"),
        }
        await self._allowed(calls)

    async def _change(self) -> None:
        """Whether it may make those that change an instance, on one of this deployment: the policy names their tag."""
        account, ec2, region = self._account, self._account.clients.ec2, self._region
        filters = {
            f"tag:{DEPLOYMENT_TAG}": [self._policy.deployment],
            "instance-state-name": ["pending", "running", "stopping", "stopped"],
        }
        ours = await account.ask("ec2:DescribeInstances", lambda: ec2.list_instances(region, filters))
        instance_id = ours[0].instance_id if ours else NO_INSTANCE
        calls: dict[str, Call] = {
            f"ec2:{power.api}": partial(ec2.switch, power.api, region, instance_id)
            for power in POWERS.values()
        }
        calls["ec2:TerminateInstances"] = lambda: ec2.terminate(region, instance_id)
        calls["ec2:CreateTags"] = lambda: ec2.add_tags(region, instance_id, {"doctor": "dry run"})
        before = set(account.denied)
        await self._allowed(calls)
        refused = sorted(account.denied.keys() - before)
        if refused and not ours:
            for action in refused:
                del account.denied[action]
            self._add(
                Status.NOTE,
                "right",
                f"{', '.join(refused)}: EC2 allows this on instances of this deployment at most, and there is none yet",
                "run doctor again after the first launch",
            )

    async def _allowed(self, calls: Mapping[str, Call]) -> None:
        for action, call in calls.items():
            self._of_adapter.add(action)
            await self._account.allowed(action, call)

    async def _dry_launches(
        self, profile: Profile, launches: Sequence[LaunchParameters], lines: Sequence[Line]
    ) -> None:
        """Whether EC2 would launch it; a reason is worth a line where nothing else has said what is wrong."""
        self._of_adapter |= {"ec2:RunInstances", "iam:PassRole"}
        for launch in launches:
            error = await self._account.allowed_launch(launch)
            if error and not any(line.status is Status.MISSING for line in lines):
                fix = f"change what profile {profile.name} launches"
                self._take([Line(self._region, Status.MISSING, "launch", error.problem.detail, fix)])

    def _rights(self) -> None:
        for action, resource in sorted(self._account.denied.items()):
            on = f" on {resource}" if resource else ""
            if action in self._of_adapter:
                fix = f"attach {POLICY_FILE}, filled in, to the role of the EC2 adapter"
                self._add(Status.MISSING, "right", f"{action}{on} is not allowed", fix)
            else:
                problem = f"{action}{on} is not allowed, so doctor cannot see what it shows"
                self._add(Status.UNKNOWN, "right", problem, f"allow it: statement Doctor of {POLICY_FILE}")

    def _take(self, lines: Sequence[Line]) -> None:
        """What two profiles have in common is said once."""
        known = {line.problem for line in self.lines}
        self.lines += [line for line in lines if line.problem not in known]

    def _add(self, status: Status, subject: str, problem: str, fix: str) -> None:
        self.lines.append(Line(self._region, status, subject, problem, fix))
