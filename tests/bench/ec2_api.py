"""EC2 in memory at the API of AWS's own client: what the adapter asks is counted as AWS would count it.

It stands in for ``aioboto3.Session``, so nothing of the service has to know it, and a change of the adapter's
calls needs no change here as long as EC2 has the operation.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from botocore.exceptions import ClientError

SETTLED = {"pending": "running", "stopping": "stopped", "shutting-down": "terminated"}
CODES = {
    "pending": 0,
    "running": 16,
    "shutting-down": 32,
    "terminated": 48,
    "stopping": 64,
    "stopped": 80,
}


@dataclass
class Instance:
    """``due``: when its transition comes to its end."""

    instance_id: str
    image: str
    type: str
    token: str
    tags: dict[str, str]
    state: str = "pending"
    due: float = 0.0

    def described(self) -> dict[str, Any]:
        """As DescribeInstances shows it."""
        return {
            "InstanceId": self.instance_id,
            "ImageId": self.image,
            "InstanceType": self.type,
            "ClientToken": self.token,
            "State": {"Name": self.state, "Code": CODES[self.state]},
            "Tags": [{"Key": key, "Value": value} for key, value in self.tags.items()],
            "SecurityGroups": [],
            "BlockDeviceMappings": [],
        }


@dataclass
class Ec2Api:
    """Every region's instances; a transition takes ``transition`` seconds of ``clock``."""

    transition: float = 0.2
    clock: Callable[[], float] = time.monotonic
    calls: Counter[str] = field(default_factory=Counter)
    instances: dict[str, Instance] = field(default_factory=dict)
    _numbers: Any = field(default_factory=lambda: count(1))

    def session(self, *_arguments: Any, **_settings: Any) -> "Ec2Api":
        """What ``aioboto3.Session()`` returns."""
        return self

    @asynccontextmanager
    async def client(self, _service: str, **_settings: Any) -> "AsyncIterator[Client]":
        """What ``session.client("ec2", ...)`` returns."""
        yield Client(self)

    def request(self, operation: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """One request to the API."""
        self.calls[operation] += 1
        now = self.clock()
        for instance in self.instances.values():
            if instance.state in SETTLED and now >= instance.due:
                instance.state = SETTLED[instance.state]
        answer: dict[str, Any] = getattr(self, f"_{operation}")(wanted)
        return answer

    def _run_instances(self, wanted: dict[str, Any]) -> dict[str, Any]:
        token = wanted["ClientToken"]
        instance = next((each for each in self.instances.values() if each.token == token), None)
        if instance is None:
            specifications = wanted.get("TagSpecifications", [])
            tags: list[dict[str, str]] = next(
                (each["Tags"] for each in specifications if each["ResourceType"] == "instance"), []
            )
            instance = Instance(
                instance_id=f"i-{next(self._numbers):017x}",
                image=wanted["ImageId"],
                type=wanted["InstanceType"],
                token=token,
                tags={tag["Key"]: tag["Value"] for tag in tags},
                due=self.clock() + self.transition,
            )
            self.instances[instance.instance_id] = instance
        return {"Instances": [instance.described()]}

    def _start_instances(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return self._move(wanted, "StartingInstances", ("stopped",), "pending", ("pending", "running"))

    def _stop_instances(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return self._move(wanted, "StoppingInstances", ("running",), "stopping", ("stopping", "stopped"))

    def _terminate_instances(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return self._move(wanted, "TerminatingInstances", tuple(CODES), "shutting-down", ("terminated",))

    def _move(
        self,
        wanted: dict[str, Any],
        answer: str,
        before: tuple[str, ...],
        after: str,
        done: tuple[str, ...],
    ) -> dict[str, Any]:
        moved = []
        for instance in self._known(wanted["InstanceIds"]):
            was = instance.state
            if was in before and was not in done:
                instance.state, instance.due = after, self.clock() + self.transition
            elif was not in done:
                raise _error("IncorrectInstanceState", f"{instance.instance_id} is {was}")
            moved.append(
                {
                    "InstanceId": instance.instance_id,
                    "CurrentState": {"Name": instance.state, "Code": CODES[instance.state]},
                    "PreviousState": {"Name": was, "Code": CODES[was]},
                }
            )
        return {answer: moved}

    def _create_tags(self, wanted: dict[str, Any]) -> dict[str, Any]:
        for instance in self._known(wanted["Resources"]):
            instance.tags |= {tag["Key"]: tag["Value"] for tag in wanted["Tags"]}
        return {}

    def _describe_instances(self, wanted: dict[str, Any]) -> dict[str, Any]:
        found = [each.described() for each in self._matching(wanted)]
        return {"Reservations": [{"Instances": found}] if found else []}

    def _describe_instance_status(self, wanted: dict[str, Any]) -> dict[str, Any]:
        everything = wanted.get("IncludeAllInstances", False)
        return {
            "InstanceStatuses": [
                {
                    "InstanceId": each.instance_id,
                    "InstanceState": {"Name": each.state},
                    "InstanceStatus": {"Status": "ok" if each.state == "running" else "not-applicable"},
                    "SystemStatus": {"Status": "ok" if each.state == "running" else "not-applicable"},
                }
                for each in self._matching(wanted)
                if everything or each.state == "running"
            ]
        }

    def _describe_images(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return {
            "Images": [
                {"ImageId": image, "RootDeviceName": "/dev/xvda"} for image in wanted.get("ImageIds", [])
            ]
        }

    def _known(self, ids: Iterable[str]) -> list[Instance]:
        missing = [each for each in ids if each not in self.instances]
        if missing:
            raise _error("InvalidInstanceID.NotFound", f"{missing} do not exist")
        return [self.instances[each] for each in ids]

    def _matching(self, wanted: dict[str, Any]) -> list[Instance]:
        if wanted.get("InstanceIds"):
            return self._known(wanted["InstanceIds"])
        filters = _filters(wanted)
        return [each for each in self.instances.values() if _matches(each, filters)]


class Client:
    """The client's methods are the API's operations; what it does not have fails with its name."""

    def __init__(self, api: Ec2Api) -> None:
        self._api = api

    def __getattr__(self, operation: str) -> Any:
        if not re.fullmatch(r"[a-z]+(_[a-z]+)+", operation):
            raise AttributeError(operation)

        async def request(**wanted: Any) -> dict[str, Any]:
            await asyncio.sleep(0)
            return self._api.request(operation, wanted)

        return request

    def get_paginator(self, operation: str) -> "Paginator":
        return Paginator(self._api, operation)


@dataclass
class Paginator:
    api: Ec2Api
    operation: str

    async def paginate(self, **wanted: Any) -> AsyncIterator[dict[str, Any]]:
        """One page, as there are few."""
        await asyncio.sleep(0)
        yield self.api.request(self.operation, wanted)


def _filters(wanted: dict[str, Any]) -> dict[str, set[str]]:
    return {each["Name"]: set(each["Values"]) for each in wanted.get("Filters", [])}


def _matches(instance: Instance, filters: dict[str, set[str]]) -> bool:
    fields = {
        "instance-id": instance.instance_id,
        "client-token": instance.token,
        "instance-state-name": instance.state,
        **{f"tag:{key}": value for key, value in instance.tags.items()},
    }
    return all(fields.get(name) in values for name, values in filters.items())


def _error(code: str, message: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": 400}},  # type: ignore[typeddict-item]
        "Request",
    )
