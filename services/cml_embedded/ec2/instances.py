"""The instances and their states, which take their time as in EC2 and survive the end of the process."""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from cml_embedded.ec2.answers import Refusal, unknown
from cml_embedded.ec2.backend import Backend, tags_of, vcpus
from cml_embedded.ec2.journal import Instance, Journal

CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
ENDS = {"pending": "running", "stopping": "stopped", "shutting-down": "terminated"}
"""The states that pass, and what follows."""
PASSING = {end: state for state, end in ENDS.items()}
BY_USER = ("Client.UserInitiatedShutdown", "Client.UserInitiatedShutdown: User initiated shutdown")
"""Why an instance is down that somebody stopped or terminated (EC2 API reference, *StateReason*)."""


class Instances:
    """``transition_seconds``: how long a passing state lasts."""

    def __init__(self, backend: Backend, journal: Journal | None, transition_seconds: float) -> None:
        self._backend = backend
        self._journal = journal
        self._transition_seconds = transition_seconds
        self._known: dict[str, Instance] = {}

    def __iter__(self) -> Iterator[Instance]:
        return iter(list(self._known.values()))

    def __getitem__(self, instance_id: str) -> Instance:
        return self._known[instance_id]

    def __contains__(self, instance_id: object) -> bool:
        return instance_id in self._known

    def check(self, instance_id: str, region: str) -> None:
        """Raise the refusal of EC2 if there is no such instance, or it is not visible yet."""
        if not re.fullmatch(r"i-[0-9a-f]{8}([0-9a-f]{9})?", instance_id):
            raise Refusal("InvalidInstanceID.Malformed", f'Invalid id: "{instance_id}"')
        known = self._known.get(instance_id)
        if known is None or known.region != region or known.hidden_until > time.time():
            raise unknown(instance_id)

    def fitting(self, region: str, instance_type: str, limit: int | None, least: int, most: int) -> int:
        """How many more of this type the limit of vCPUs allows. Raise the refusal of EC2 if they are less than ``least``."""
        each = vcpus(instance_type)
        if limit is None or each is None:
            return most
        there = [known for known in self if known.region == region and known.state != "terminated"]
        allowed = (limit - sum(vcpus(known.instance_type) or 0 for known in there)) // each
        if allowed < least:
            raise Refusal(
                "VcpuLimitExceeded",
                f"You have requested more vCPU capacity than your current vCPU limit of {limit} allows.",
            )
        return min(allowed, most)

    def launched(
        self,
        instance_id: str,
        region: str,
        form: dict[str, str],
        response: str,
        *,
        hide_seconds: float,
        dies: tuple[str, str] | None,
    ) -> None:
        """Take over what moto has launched; ``dies``: instead of running, for this reason."""
        instance = self.moto(instance_id, region)
        instance.disable_api_termination = form.get("DisableApiTermination") == "true"
        now = time.time()
        known = self._known[instance_id] = Instance(
            instance_id=instance_id,
            region=region,
            form=form,
            state="pending",
            due=now + self._transition_seconds,
            launched_at=now,
            tags=tags_of(instance),
            response=response,
            private_ip=instance.private_ip,
            public_ip=instance.public_ip,
            hidden_until=now + hide_seconds,
            fate=("terminated", *dies) if dies else None,
        )
        self.to(known, "pending")

    def order(self, known: Instance, state: str) -> None:
        """Let moto do what is final there, then show the state that EC2 passes through; a user has caused it."""
        instance = self.moto(known.instance_id, known.region)
        {"pending": instance.start, "stopping": instance.stop, "shutting-down": instance.terminate}[state]()
        known.due = time.time() + self._transition_seconds
        starts = state == "pending"
        known.reason = None if starts else BY_USER
        known.transition = "" if starts else f"User initiated ({datetime.now(UTC):%Y-%m-%d %H:%M:%S} GMT)"
        self.to(known, state)

    def end(self, known: Instance, state: str, reason: tuple[str, str] | None = None) -> None:
        """The instance is there at once; ``reason``: EC2's code and message, None: a user has caused it."""
        self.order(known, PASSING[state])
        if reason:
            known.reason, known.transition = reason, reason[0]
        self.to(known, state)

    def settle(self) -> None:
        """End the passing states whose time is over."""
        now = time.time()
        for known in self:
            if known.state == "pending" and known.fate and known.due <= now:
                state, code, message = known.fate
                known.fate = None
                self.end(known, state, (code, message))
            elif known.state in ENDS and known.due <= now:
                self.to(known, ENDS[known.state])

    def to(self, known: Instance, state: str) -> None:
        """Show this state."""
        known.state = state
        moto = self.moto(known.instance_id, known.region)
        moto._state.name, moto._state.code = state, CODES[state]  # noqa: SLF001 - what moto lacks
        moto._reason = known.transition  # noqa: SLF001 - likewise
        # Of a new instance EC2 only says its state once more.
        code, message = known.reason or (("pending", "pending") if state == "pending" else ("", ""))
        moto.state_reason.code, moto.state_reason.message = code, message
        self._save(known)

    def tagged(self, instance_id: str) -> None:
        """Take over the tags from moto."""
        known = self._known[instance_id]
        known.tags = tags_of(self.moto(instance_id, known.region))
        self._save(known)

    def resize(self, instance_id: str, instance_type: str) -> None:
        """Give a stopped instance another type. Raises Refusal."""
        known = self._known[instance_id]
        if known.state != "stopped":
            raise Refusal(
                "IncorrectInstanceState", f"The instance '{instance_id}' is not in the 'stopped' state."
            )
        if vcpus(instance_type) is None:
            raise Refusal(
                "InvalidInstanceAttributeValue", f"The instance type '{instance_type}' is not known."
            )
        self.moto(instance_id, known.region).instance_type = known.resized_to = instance_type
        self._save(known)

    def restore(self, known: Instance) -> None:
        """Bring back what a former process left."""
        self._backend.prepare(known.region)
        instance = self._backend.launch_again(known.instance_id, known.region, known.form)
        instance.disable_api_termination = known.form.get("DisableApiTermination") == "true"
        instance.launch_time = datetime.fromtimestamp(known.launched_at, UTC).replace(tzinfo=None)
        instance.add_tags(known.tags)
        instance.instance_type = known.instance_type
        nic = instance.nics[0]
        nic.private_ip_address = known.private_ip
        nic.public_ip = known.public_ip
        if known.state in ("stopped", "stopping"):
            instance.stop()
        if known.state in ("terminated", "shutting-down"):
            instance.terminate()
        self._known[known.instance_id] = known
        self.to(known, known.state)

    def moto(self, instance_id: str, region: str) -> Any:
        """Moto's own object."""
        return self._backend.instance(instance_id, region)

    def _save(self, known: Instance) -> None:
        if self._journal:
            self._journal.save(known)
