"""Who changed which instance, by the simulator's journal: no fleet may touch what is not its own."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cml_contracts.instance import DEPLOYMENT_TAG
from support.ec2 import SimulatorAdmin
from system.fleets.parts import FLEETS

CHANGES = (
    "StartInstances",
    "StopInstances",
    "TerminateInstances",
    "CreateTags",
    "DeleteTags",
    "ModifyInstanceAttribute",
)


class Journal:
    """All calls, as the simulator keeps only the latest."""

    def __init__(self, admin: SimulatorAdmin) -> None:
        self.calls: list[dict[str, Any]] = []
        self.gaps = 0
        self._admin = admin
        self._last = 0
        self._reading = asyncio.Lock()

    async def follow(self) -> None:
        """Without end."""
        while True:
            await self.read()
            await asyncio.sleep(2)

    async def read(self) -> None:
        """What has come since."""
        async with self._reading:
            for call in await asyncio.to_thread(self._admin.calls_after, self._last):
                self.gaps += call["number"] != self._last + 1
                self._last = call["number"]
                if call["operation"] in (*CHANGES, "RunInstances"):
                    self.calls.append(call)

    def changes(self) -> Counter[str]:
        """How many changes each caller asked for."""
        return Counter(call["access_key"] for call in self.calls)


def trespasses(
    calls: Sequence[Mapping[str, Any]], instances: Sequence[Mapping[str, Any]], fleets: Sequence[str] = FLEETS
) -> Iterator[str]:
    """Calls of a fleet on an instance that was not its own then, and launches for another's account.

    An instance belongs to the deployment that it was launched for, or to the first one that has tagged it so.
    """
    owners = {
        each["instance_id"]: owner for each in instances if (owner := launched_for(each["form"])) is not None
    }
    for call in calls:
        caller, parameters = call["access_key"], call["parameters"]
        if caller not in fleets or parameters.get("DryRun") == "true":
            continue
        if call["operation"] == "RunInstances":
            if launched_for(parameters) != caller:
                yield f"{caller} launched for {launched_for(parameters)}: {parameters}"
            continue
        touched = [
            value for name, value in parameters.items() if name.startswith(("InstanceId", "ResourceId"))
        ]
        for instance_id in touched:
            tagging = call["operation"] == "CreateTags" and _tags(parameters, "").get(DEPLOYMENT_TAG)
            if tagging == caller and call["status"] == 200:
                owners.setdefault(instance_id, caller)
            if (owner := owners.get(instance_id)) != caller:
                yield f"{caller} called {call['operation']} on {instance_id}, which is {owner or 'nobody'}'s"


def launched_for(form: Mapping[str, str]) -> str | None:
    """The deployment that a launch gave its instance to."""
    return _tags(form, "TagSpecification.1.").get(DEPLOYMENT_TAG)


def _tags(form: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {
        value: form.get(name.removesuffix("Key") + "Value", "")
        for name, value in form.items()
        if name.startswith(f"{prefix}Tag.") and name.endswith(".Key")
    }
