"""The rules of a worker's beginning: a launch, or the adoption of an instance that is there."""

import hashlib
from collections.abc import Mapping
from uuid import UUID

from cml_contracts.commands import CreateCMLWorker, ImportCMLWorker
from cml_contracts.events import (
    LaunchRequested,
    TagsUpdateRequested,
    TerminationRequested,
    WorkerCreated,
    WorkerEvent,
    WorkerImported,
    WorkerRecreated,
)
from cml_contracts.instance import (
    DEPLOYMENT_TAG,
    NAME_TAG,
    WORKER_TAG,
    InstanceState,
    LaunchParameters,
    WorkerStatus,
)
from cml_contracts.results import Problem, ProblemCode
from cml_contracts.texts import MAX_TAGS
from cml_workers.domain.decisions import answer_to, failed, rejected
from cml_workers.domain.messages import (
    ImageLookup,
    InstanceLookup,
    LookupResult,
)
from cml_workers.domain.operations import adoption_of, is_adoption
from cml_workers.domain.policy import Policy
from cml_workers.domain.profiles import check_metadata_keys, choose, no_image, places
from cml_workers.domain.situation import Situation
from cml_workers.domain.worker import Operation, Worker


def launch_token(deployment: str, worker_id: UUID, generation: int) -> str:
    """The ClientToken of a worker's launch: EC2 launches at most one instance under it (64 characters).

    It is the deployment's own: worker ids follow from command ids, and two deployments in one account may get the
    same command.
    """
    return hashlib.sha256(f"{deployment}/{worker_id}/launch/{generation}".encode()).hexdigest()


def create_worker(
    command: CreateCMLWorker, command_id: str, worker: Worker, policy: Policy, looked_up: LookupResult | None
) -> list[WorkerEvent]:
    """A worker is created and its launch requested, once its AMI is known; again, if its launch failed.

    Raises as ``answer_to`` does.
    """
    generation = _next_generation(worker, command)
    check_region(command.aws_region, policy)
    profile, chosen = choose(policy.profiles, command.profile, command.aws_region)
    first, *alternatives = places(profile, chosen, command.instance_type)
    if policy.allowed_instance_types and first.instance_type not in policy.allowed_instance_types:
        allowed = ", ".join(sorted(policy.allowed_instance_types))
        raise rejected(
            ProblemCode.VALIDATION_FAILED,
            f"instance type {first.instance_type} is not allowed; allowed: {allowed}",
        )
    tags = {
        NAME_TAG: command.name,
        **policy.default_tags,
        **chosen.tags,
        **command.tags,
        WORKER_TAG: str(worker.id),
        DEPLOYMENT_TAG: policy.deployment,
    }
    check_tag_count(tags)
    check_metadata_keys(chosen, tags)

    ami_id, ami_name, owner = command.ami_id, command.ami_name, None
    if ami_id is None and ami_name is None:
        if chosen.image is None:
            raise no_image(profile, command.aws_region)
        ami_id, ami_name, owner = chosen.image.id, chosen.image.name, chosen.image.owner
    if ami_id is None:
        assert ami_name is not None  # noqa: S101 - an image has one of both
        lookup = ImageLookup(aws_region=command.aws_region, ami_name=ami_name, owner=owner)
        ami_id = answer_to(lookup, looked_up).image_id
        if ami_id is None:
            raise failed(
                ProblemCode.EC2_INVALID_PARAMETER,
                f"no available AMI named {ami_name!r} in region {command.aws_region}",
            )

    created = WorkerCreated(
        name=command.name,
        aws_region=command.aws_region,
        instance_type=first.instance_type,
        ami_id=ami_id,
        ami_name=ami_name,
        cml_version=command.cml_version,
        tags=command.tags,
        created_by=command.created_by,
        profile=profile.name,
        owner=command.owner,
    )
    return [
        WorkerRecreated(**dict(created), generation=generation) if worker.exists else created,
        LaunchRequested(
            operation_id=command_id,
            launch=LaunchParameters(
                aws_region=command.aws_region,
                ami_id=ami_id,
                ami_name=ami_name,
                instance_type=first.instance_type,
                security_group_ids=chosen.security_groups,
                subnet_id=first.subnet_id,
                key_name=chosen.key,
                tags=tags,
                generation=generation,
                client_token=launch_token(policy.deployment, worker.id, generation),
                root_volume=chosen.root_volume.root_volume,
                instance_profile=chosen.instance_profile,
                user_data=chosen.user_data,
                nested_virtualization=first.nested_virtualization,
                metadata_tags=chosen.metadata_tags,
            ),
            alternatives=tuple(alternatives),
        ),
    ]


def next_place(operation: Operation, problem: Problem) -> LaunchRequested | None:
    """The launch in the next place, where EC2 has definitely no room in this one; None: there is none, or it is another problem.

    It is another generation: its token is not the one that EC2 has refused, and whoever looks knows which of them was launched.
    """
    intent = operation.intent
    if not isinstance(intent, LaunchRequested) or problem.code is not ProblemCode.EC2_CAPACITY:
        return None
    if not intent.alternatives:
        return None
    place, *others = intent.alternatives
    tags, generation = intent.launch.tags, intent.launch.generation + 1
    token = launch_token(tags[DEPLOYMENT_TAG], UUID(tags[WORKER_TAG]), generation)
    launch = intent.launch.model_copy(
        update={**place.model_dump(), "generation": generation, "client_token": token}
    )
    return LaunchRequested(operation_id=intent.operation_id, launch=launch, alternatives=tuple(others))


def _next_generation(worker: Worker, command: CreateCMLWorker) -> int:
    """The number of the launch. Raises RejectedError unless the worker is new, or its launch has failed for certain.

    It stays in its region, which is where the adapter looks for what an earlier launch may have left behind.
    """
    if not worker.exists:
        return 1
    if worker.terminated:
        raise rejected(ProblemCode.WORKER_TERMINATED, f"worker {worker.id} is terminated; choose another id")
    if worker.status is not WorkerStatus.FAILED or worker.operations:
        raise rejected(ProblemCode.CONFLICT, f"worker {worker.id} exists already")
    if command.aws_region != worker.aws_region:
        raise rejected(
            ProblemCode.CONFLICT,
            f"worker {worker.id} exists already, in region {worker.aws_region}; choose another id for another region",
        )
    return worker.generation + 1


def import_instance(command: ImportCMLWorker, command_id: str, at: Situation) -> list[WorkerEvent]:
    """An instance becomes a worker and gets our tags; [] where it is one already. Raises as ``answer_to`` does."""
    worker, policy = at.worker, at.policy
    check_region(command.aws_region, policy)
    if worker.terminated:
        raise rejected(
            ProblemCode.WORKER_TERMINATED,
            f"instance {command.instance_id} was worker {worker.id}, which is terminated",
        )
    failed_before = worker.exists and worker.status is WorkerStatus.FAILED and not worker.generation
    if any(is_adoption(each) for each in worker.operations):
        ends = bool(worker.pending(TerminationRequested))
        raise rejected(ProblemCode.CONFLICT, f"worker {worker.id} is being imported", retryable=not ends)
    if worker.exists and not failed_before:
        if worker.instance is None or worker.instance.instance_id != command.instance_id:
            raise rejected(
                ProblemCode.CONFLICT, f"worker {worker.id} exists already, and is of another instance"
            )
        at.confirm()
        return []
    if policy.import_tags is None:
        raise rejected(
            ProblemCode.VALIDATION_FAILED,
            "imports are off: whoever may import could terminate any instance of the account; CML_IMPORT_TAGS names the "
            "tags that an instance must have to be imported",
        )
    lookup = InstanceLookup(
        aws_region=command.aws_region,
        instance_id=command.instance_id,
        seen_revision=worker.observed_revision,
    )
    instance = answer_to(lookup, at.looked_up).instance
    if instance is None:
        raise failed(
            ProblemCode.EC2_INSTANCE_NOT_FOUND,
            f"instance {command.instance_id} is not found in region {command.aws_region}",
        )
    if instance.state in (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED):
        raise failed(
            ProblemCode.EC2_INSTANCE_OPERATION, f"instance {command.instance_id} is {instance.state}"
        )
    owner = instance.tags.get(DEPLOYMENT_TAG, policy.deployment)
    if owner != policy.deployment:
        raise rejected(
            ProblemCode.CONFLICT, f"instance {command.instance_id} belongs to deployment {owner!r} already"
        )
    missing = [
        f"{key}={value}" for key, value in policy.import_tags.items() if instance.tags.get(key) != value
    ]
    if missing:
        raise rejected(
            ProblemCode.VALIDATION_FAILED,
            f"instance {command.instance_id} lacks the tag {missing[0]}, without which it is not imported",
        )
    if instance.tags.get(WORKER_TAG, str(worker.id)) != str(worker.id):
        raise rejected(
            ProblemCode.CONFLICT,
            f"instance {command.instance_id} belongs to worker {instance.tags[WORKER_TAG]} already",
        )
    ours = {WORKER_TAG: str(worker.id), DEPLOYMENT_TAG: policy.deployment}
    check_tag_count({**instance.tags, **ours})
    return [
        WorkerImported(
            operation_id=command_id,
            name=instance.tags.get(NAME_TAG) or command.instance_id,
            instance=instance,
            created_by=command.created_by,
            owner=command.owner,
        ),
        TagsUpdateRequested(operation_id=adoption_of(command_id), tags=ours),
    ]


def check_region(region: str, policy: Policy) -> None:
    """Raises RejectedError for a region that the deployment does not use."""
    if policy.allowed_regions and region not in policy.allowed_regions:
        allowed = ", ".join(sorted(policy.allowed_regions))
        raise rejected(ProblemCode.VALIDATION_FAILED, f"region {region} is not allowed; allowed: {allowed}")


def check_tag_count(tags: Mapping[str, str]) -> None:
    """Raises RejectedError for more tags than EC2 allows."""
    if are_too_many(tags):
        raise rejected(
            ProblemCode.VALIDATION_FAILED,
            f"{_counted(tags)} tags, the reserved and default ones included; EC2 allows {MAX_TAGS}",
        )


def are_too_many(tags: Mapping[str, str]) -> bool:
    """Whether these are more tags than EC2 allows."""
    return _counted(tags) > MAX_TAGS


def _counted(tags: Mapping[str, str]) -> int:
    """Those of AWS itself do not count (EC2 user guide, *Tag restrictions*)."""
    return sum(not key.startswith("aws:") for key in tags)
