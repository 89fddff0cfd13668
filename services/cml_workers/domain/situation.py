"""A worker as a command meets it: what EC2 shows of its instance is recorded first, then the rules judge the worker as it is then.

What is remembered of an instance may be long past: somebody may have stopped, started, tagged or terminated it in EC2. A rule that
would answer "it is so already", or "it cannot be done now", for what it remembers has that confirmed first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from cml_contracts.commands import CreateCMLWorker
from cml_contracts.events import WorkerEvent
from cml_contracts.results import ProblemCode
from cml_workers.domain.decisions import answer_to, failed
from cml_workers.domain.fold import advance
from cml_workers.domain.history import EventMetadata, Recorded
from cml_workers.domain.messages import CommandMessage, InstanceLookup, LookupResult
from cml_workers.domain.observations import observe
from cml_workers.domain.policy import Policy
from cml_workers.domain.worker import Worker


@dataclass(frozen=True, slots=True)
class Situation:
    """``worker``: with the ``news`` of its instance that ``looked_up`` brought; ``recorded``: without."""

    worker: Worker
    recorded: Worker
    news: Sequence[WorkerEvent]
    policy: Policy
    now: datetime
    looked_up: LookupResult | None

    def confirm(self) -> None:
        """Before an answer that rests on what is known of the instance.

        Raises as ``look`` does, unless EC2 has shown the instance within the policy's observation age.
        """
        age, shown_at = self.policy.observation_age, self.worker.observed_at
        if self.looked_up is None and age and shown_at and self.now - shown_at <= age:
            return
        self.look()

    def look(self) -> None:
        """EC2 has shown the instance after the command came in.

        Raises:
            LookupNeededError: not yet.
            RejectedError: EC2 would not show it, or does not show it yet.
        """
        instance = self.recorded.instance
        assert instance is not None  # noqa: S101 - a worker without one is no subject of a lookup
        lookup = InstanceLookup(
            aws_region=self.recorded.aws_region,
            instance_id=instance.instance_id,
            seen_revision=self.recorded.observed_revision,
        )
        if answer_to(lookup, self.looked_up).instance is None and not self.news:
            raise failed(
                ProblemCode.EC2_INSTANCE_NOT_FOUND,
                f"instance {instance.instance_id} of worker {self.recorded.id} is not visible in EC2 yet",
                retryable=True,
            )


def situation(
    message: CommandMessage, worker: Worker, policy: Policy, now: datetime, looked_up: LookupResult | None
) -> Situation:
    """The worker after what EC2 showed, where it was asked about its instance."""
    news: Sequence[WorkerEvent] = ()
    is_of_instance = not isinstance(message.command, CreateCMLWorker)  # and not of an image
    if looked_up is not None and looked_up.problem is None and is_of_instance and not worker.terminated:
        hidden = looked_up.instance is None and worker.is_new(now, policy.visibility_grace)
        news = () if hidden else tuple(observe(worker, looked_up.instance))
    return Situation(
        worker=advance(worker, _recorded(worker, news, now)) if news else worker,
        recorded=worker,
        news=news,
        policy=policy,
        now=now,
        looked_up=looked_up,
    )


def _recorded(worker: Worker, news: Sequence[WorkerEvent], now: datetime) -> list[Recorded]:
    """As they will be recorded; what surrounds them changes no rule."""
    return [
        Recorded(worker.revision + 1 + index, event, EventMetadata(event_id=UUID(int=0), time=now))
        for index, event in enumerate(news)
    ]
