"""The brokers that tests run on: the embedded one and a real RabbitMQ."""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Certificates
from support.children import module
from support.containers import NoContainerError
from support.kurrentdb import any_kurrentdb
from support.malformed import MalformedRequests, malformed_requests
from support.missing import missing
from support.postgresql import NoPostgreSQLError, any_postgresql
from support.rabbitmq import NoRabbitMQError, any_rabbitmq
from support.used import USED

PARTS = re.compile(r"\[(sqlite|kurrentdb|server|postgresql|embedded|rabbitmq|real)\b")
"""What one suite runs on, one after the other, in the names of its tests."""
SERVERS = {"server", "postgresql", "rabbitmq", "real"}
"""Those of them that have to be started, as have what these fixtures give."""
OF_SERVERS = {"rabbitmq_url", "postgresql_url", "kurrentdb_uri", "spawn"}
SLOW = (
    *(
        "simulation",
        "system",
        "bench",
        "fuzz",
        "observability",
        "test_command_line.py",
        "test_migrate_command.py",
        "test_ending.py",
        "trust/test_a_day.py",
        "trust/test_operators.py",
    ),
    "doctor/test_doctor.py::test_a_right",
    "doctor/test_doctor.py::test_what_the_doctor_may_not_ask",
    "embedded/test_ec2_simulator_restarts.py::test_instances_survive_the_end_of_the_process",
    "trust/test_embedded.py::test_a_",
    "trust/test_misconfigured.py",
    "trust/test_roles.py",
    "trust/test_secured_broker.py",
    "trust/test_services.py",
)
"""Folders, files and tests that take their time: many runs, or many processes."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[USED] = {}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Before any is chosen by its marks."""
    if _is_slow(item):
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders with a test that may take long come first, so that no process works alone at the end."""
    long = {item.path.parent for item in items if item.get_closest_marker("timeout")}
    items.sort(key=lambda item: item.path.parent not in long)


def _is_slow(item: pytest.Item) -> bool:
    """Whether ``make quick`` leaves it out."""
    place = item.path.relative_to(Path(__file__).parent).as_posix()
    part = PARTS.search(item.nodeid)
    return (
        f"{place}::{item.name}".startswith(SLOW)
        or bool(part and part[1] in SERVERS)
        or not OF_SERVERS.isdisjoint(getattr(item, "fixturenames", ()))
    )


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Where tests run in several processes, the first one reports what each of them used."""
    node.config.stash[USED].update(getattr(node, "workeroutput", {}).get("used", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["used"] = session.config.stash[USED]
        if "coverage" in sys.modules and (measured := sys.modules["coverage"].Coverage.current()):
            measured.save()  # a process of pytest-xdist that is slow to end is killed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    suites = Counter(_suite(report.nodeid) for report in terminalreporter.stats.get("passed", ()))
    for suite, passed in sorted(suites.items()):
        terminalreporter.write_line(f"suite: {suite}, {passed} passed")
    for name, how in sorted(config.stash[USED].items()):
        terminalreporter.write_line(f"used: {name}, {how}")


def _suite(nodeid: str) -> str:
    """The folder of a test, or its file where one suite runs on several parts; and the part."""
    path, _, test = nodeid.partition("::")
    part = PARTS.search(test)
    place = path if "/conformance/" in path else str(Path(path).parent)
    return f"{place} on {part[1]}" if part else place


@pytest.fixture(scope="session", autouse=True)
def _all_malformed_requests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MalformedRequests]:
    """Also what a process has sent whose test was over."""
    with malformed_requests(tmp_path_factory.getbasetemp()) as requests:
        yield requests
    assert requests.taken() == []


@pytest.fixture(autouse=True)
def malformed(_all_malformed_requests: MalformedRequests) -> Iterator[MalformedRequests]:
    """The adapter sends no request that EC2 would refuse for what it is; a test that plants one takes it from here."""
    yield _all_malformed_requests
    assert _all_malformed_requests.taken() == []


@pytest.fixture(scope="session")
def rabbitmq_url(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[str]:
    """A real RabbitMQ; without one a failure in CI, else a skip."""
    try:
        with any_rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as (url, how):
            pytestconfig.stash[USED]["RabbitMQ"] = how
            yield url
    except (NoRabbitMQError, NoContainerError) as error:
        missing(error)


@pytest.fixture(scope="session")
def postgresql_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """A real PostgreSQL; without one a failure in CI, else a skip."""
    try:
        with any_postgresql() as (url, how):
            pytestconfig.stash[USED]["PostgreSQL"] = how
            yield url
    except (NoPostgreSQLError, NoContainerError) as error:
        missing(error)


@pytest.fixture(scope="session")
def kurrentdb_uri(pytestconfig: pytest.Config) -> Iterator[str]:
    """A real KurrentDB; where Docker cannot start one, a skip that says why."""
    try:
        with any_kurrentdb() as (uri, how):
            pytestconfig.stash[USED]["KurrentDB"] = how
            yield uri
    except NoContainerError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """For servers on loopback."""
    return Certificates.issue(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def embedded_amqp_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """The embedded broker, in a process of its own."""
    with module("cml_embedded.amqp_broker") as broker:
        assert broker.stdout is not None
        url = broker.stdout.readline().strip()
        pytestconfig.stash[USED]["embedded broker"] = f"on pamqp {version('pamqp')}"
        yield url


@pytest.fixture(params=["embedded", "rabbitmq"], scope="session")
def amqp_url(request: pytest.FixtureRequest) -> str:
    """One suite for both."""
    fixture = "embedded_amqp_url" if request.param == "embedded" else "rabbitmq_url"
    url: str = request.getfixturevalue(fixture)
    return url
