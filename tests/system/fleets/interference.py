"""A stranger with the console, who changes whatever instance there is, and launches some that are nobody's, of which each fleet may import its share."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import boto3  # type: ignore[import-untyped]  # stubs are installed for the asynchronous one only
from botocore.exceptions import ClientError

from cml_contracts.instance import CONSENT_TAG, DEPLOYMENT_TAG
from cml_embedded.ec2_simulator import DEMO_IMAGES
from system.fleets.commands import KEYS, REGIONS, TYPES
from system.fleets.parts import FLEETS, Account

STRANGER = "stranger"
"""The access key."""
ELSEWHERE = "elsewhere"
"""A deployment that is neither fleet's, and not here."""
WEIGHTS: Mapping[str, int] = {
    "stop": 22,
    "start": 22,
    "tag": 16,
    "untag": 8,
    "resize": 14,
    "terminate": 3,
    "launch for nobody": 5,
    "launch for a third fleet": 1,
}
MOST_OF_NOBODY = 6


class Interference:
    """Counted only where EC2 did what was asked."""

    def __init__(self, account: Account, seed: int, pause: float) -> None:
        self.counts: Counter[str] = Counter()
        self._admin = account.admin
        self._random = random.Random(seed)
        self._pause = pause
        self._clients: Mapping[str, Any] = {
            region: boto3.client(
                "ec2",
                region_name=region,
                endpoint_url=account.url,
                aws_access_key_id=STRANGER,
                aws_secret_access_key=STRANGER,
            )
            for region in REGIONS
        }

    async def run(self, until: Callable[[], bool]) -> None:
        """Until it is enough."""
        while not until():
            await asyncio.to_thread(self._once)
            await asyncio.sleep(self._random.uniform(0, 2 * self._pause))

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def described(self) -> dict[str, Mapping[str, Any]]:
        """Every instance as EC2 shows it to anybody, by its id."""
        return {
            instance["InstanceId"]: instance
            for client in self._clients.values()
            for page in client.get_paginator("describe_instances").paginate()
            for reservation in page["Reservations"]
            for instance in reservation["Instances"]
        }

    def _once(self) -> None:
        kind = self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        there = [each for each in self._admin.instances() if each["state"] != "terminated"]
        try:
            done = self._launch(kind, there) if kind.startswith("launch") else self._change(kind, there)
        except ClientError as refused:
            if refused.response["Error"]["Code"] != "IncorrectInstanceState":
                raise
            return  # somebody was faster
        if done:
            self.counts[kind] += 1

    def _launch(self, kind: str, there: Sequence[Mapping[str, Any]]) -> bool:
        if sum(DEPLOYMENT_TAG not in each["tags"] for each in there) >= MOST_OF_NOBODY:
            return False
        region = self._random.choice(REGIONS)
        tags = {"Name": "by hand", CONSENT_TAG: self._random.choice(FLEETS)}
        if kind == "launch for a third fleet":
            tags[DEPLOYMENT_TAG] = ELSEWHERE
        self._clients[region].run_instances(
            ImageId=DEMO_IMAGES[region],
            InstanceType=self._random.choice(TYPES),
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[
                {"ResourceType": "instance", "Tags": [{"Key": k, "Value": v} for k, v in tags.items()]}
            ],
        )
        return True

    def _change(self, kind: str, there: Sequence[Mapping[str, Any]]) -> bool:
        wanted = {"stop": "running", "start": "stopped", "resize": "stopped"}.get(kind)
        fitting = [each for each in there if wanted in (None, each["state"])]
        if not fitting:
            return False
        chosen = self._random.choice(fitting)
        instance_id, ec2 = chosen["instance_id"], self._clients[chosen["region"]]
        match kind:
            case "stop":
                ec2.stop_instances(InstanceIds=[instance_id])
            case "start":
                ec2.start_instances(InstanceIds=[instance_id])
            case "terminate":
                ec2.terminate_instances(InstanceIds=[instance_id])
            case "resize":
                now = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]
                other = self._random.choice([each for each in TYPES if each != now["InstanceType"]])
                ec2.modify_instance_attribute(InstanceId=instance_id, InstanceType={"Value": other})
            case "tag":
                key = self._random.choice((*KEYS, "Name"))
                value = f"by hand {self._random.randrange(10)}"
                ec2.create_tags(Resources=[instance_id], Tags=[{"Key": key, "Value": value}])
            case _:
                ec2.delete_tags(Resources=[instance_id], Tags=[{"Key": self._random.choice(KEYS)}])
        return True
