"""What could be said to the system: valid by the contracts, nearly valid, and anything at all (Hypothesis)."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from cml_contracts.commands import (
    CreateCMLWorker,
    ImportCMLWorker,
    StartCMLWorker,
    StopCMLWorker,
    TerminateCMLWorker,
    UpdateCMLWorkerStatus,
    UpdateCMLWorkerTags,
    WorkerCommand,
)
from cml_contracts.instance import Ec2Instance, InstanceState
from cml_contracts.queries import GetCMLWorker, GetOperation, ListCMLWorkers, Query
from cml_contracts.results import Problem, ProblemCode
from cml_workers.domain.messages import LookupResult
from support.given import NOW, WORKER

STEADY = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
"""The same examples in every run, however slow the machine."""

REGIONS = ("us-east-1", "eu-west-1", "us-gov-west-1", "xx-nowhere-9")
IMAGES = ("ami-11111111", "ami-0123456789abcdef0")
TYPES = ("m5.large", "c5.2xlarge", "u-6tb1.metal", "a.b")
ODD = (
    *("", " ", "\x00", "a\x00b", "\n", "\x1b[2J", "\x7f", "\u0085", "\u2028", "\ufeff", "\ufffe"),
    *("\U0010ffff", "\u202eevil", "a\u0301", "\u200d", "\u017f", "\u0131", "\u0130", "\xdf", "\u212b"),
    *("%00", "\\u0000", "aws:x", "AWS:x", "cml:worker-id", "CML:x", "a=b", "../../x", "<a>&amp;]]>"),
    *("'; DROP TABLE workers; --", "x" * 128, "x" * 129, "x" * 256, "x" * 257, "x" * 5_000),
    *("\U0001f600" * 64, "\U0001f600" * 128, "\xe9" * 256),
)
"""Texts that have broken something somewhere."""


def texts(longest: int, *, shortest: int = 1) -> SearchStrategy[str]:
    """Texts that the contracts take: printable, and among them the odd ones."""
    plain = st.text(
        st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=shortest, max_size=longest
    )
    odd = st.sampled_from([text for text in ODD if shortest <= len(text) <= longest])
    return st.one_of(odd, plain).filter(str.isprintable)


def tags(*, fewest: int = 0) -> SearchStrategy[dict[str, str]]:
    keys = texts(128).filter(lambda key: not key.lower().startswith(("aws:", "cml:")))
    values = texts(256, shortest=0)
    many = st.integers(40, 50).map(lambda count: {f"k{number}": "" for number in range(count)})
    return st.one_of(st.dictionaries(keys, values, min_size=fewest, max_size=4), many)


def commands() -> SearchStrategy[WorkerCommand]:
    """Valid commands to one worker."""
    reason = st.none() | texts(500)
    actor = st.none() | texts(128)
    worker_id = st.just(WORKER)
    return st.one_of(
        st.builds(
            CreateCMLWorker,
            name=texts(128),
            aws_region=st.sampled_from(REGIONS),
            instance_type=st.none() | st.sampled_from(TYPES),
            ami_id=st.none() | st.sampled_from(IMAGES),
            ami_name=st.none() | texts(128),
            cml_version=st.none() | texts(128),
            tags=tags(),
            created_by=texts(128),
            worker_id=worker_id,
            reason=reason,
        ),
        st.builds(StartCMLWorker, worker_id=worker_id, started_by=actor, reason=reason),
        st.builds(StopCMLWorker, worker_id=worker_id, stopped_by=actor, reason=reason),
        st.builds(TerminateCMLWorker, worker_id=worker_id, terminated_by=actor, reason=reason),
        st.builds(
            UpdateCMLWorkerTags, worker_id=worker_id, tags=tags(fewest=1), updated_by=actor, reason=reason
        ),
        st.builds(UpdateCMLWorkerStatus, worker_id=worker_id, reason=reason),
        st.builds(
            ImportCMLWorker,
            aws_region=st.sampled_from(REGIONS),
            instance_id=st.just("i-0123456789abcdef0"),
            created_by=texts(128),
            reason=reason,
        ),
    )


def _can_be_an_id(text: str) -> bool:
    return " " not in text and len(text.encode()) <= 255


def queries() -> SearchStrategy[Query]:
    """Valid queries."""
    return st.one_of(
        st.builds(GetCMLWorker, worker_id=st.uuids()),
        st.builds(GetOperation, command_id=texts(200).filter(_can_be_an_id)),
        st.builds(
            ListCMLWorkers,
            aws_region=st.none() | st.sampled_from(REGIONS),
            owner=st.none() | texts(128),
            tag=st.none() | texts(400),
            name_part=st.none() | texts(128),
            sort=st.sampled_from(("created_at", "name", "status", "aws_region")),
            descending=st.booleans(),
            limit=st.integers(1, 500),
            cursor=st.none() | st.text(max_size=1024),
        ),
    )


def instances() -> SearchStrategy[Ec2Instance]:
    """What EC2 may show of an instance."""
    return st.builds(
        Ec2Instance,
        instance_id=st.just("i-0123456789abcdef0"),
        aws_region=st.sampled_from(REGIONS),
        state=st.sampled_from((*InstanceState, *[InstanceState.RUNNING, InstanceState.STOPPED] * 4)),
        instance_type=st.sampled_from(TYPES),
        ami_id=st.sampled_from(IMAGES),
        public_ip=st.none() | st.just("203.0.113.7"),
        tags=st.dictionaries(texts(128), texts(256, shortest=0), max_size=3)
        | st.just({"cml:worker-id": str(WORKER)}),
        instance_status_check=st.none() | st.sampled_from(("ok", "impaired")),
    )


def problems() -> SearchStrategy[Problem]:
    return st.builds(Problem.of, st.sampled_from(ProblemCode), st.text(min_size=1, max_size=40))


def lookup_results() -> SearchStrategy[LookupResult]:
    """What the EC2 adapter may answer; most of it does not fit the lookup."""
    return st.builds(
        LookupResult,
        image_id=st.none() | st.sampled_from(IMAGES),
        instance=st.none() | instances(),
        problem=st.none() | problems(),
    )


def moments() -> SearchStrategy[Any]:
    """Some time after the first event."""
    return st.integers(0, 3600).map(lambda seconds: NOW + timedelta(seconds=seconds))


def anything() -> SearchStrategy[Any]:
    """Any JSON value, some of which is none."""
    scalars = st.one_of(
        st.none(),
        st.booleans(),
        st.integers() | st.sampled_from((2**63, -(2**64), 10**400)),
        st.floats(),
        st.text() | st.sampled_from(ODD),
    )
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
    )


@st.composite
def nearly(draw: st.DrawFn, valid: SearchStrategy[Mapping[str, Any]]) -> dict[str, Any]:
    """A valid object with one field too few, too many, or of another kind."""
    fields = dict(draw(valid))
    name = draw(st.sampled_from(sorted(fields)) if fields else st.text())
    match draw(st.sampled_from(("missing", "other", "extra"))):
        case "missing":
            fields.pop(name, None)
        case "other":
            fields[name] = draw(anything())
        case _:
            fields[draw(st.text())] = draw(anything())
    return fields
