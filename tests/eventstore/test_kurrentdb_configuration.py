"""What is wrong with the configuration of KurrentDB is an error that says what to fix."""

from contextlib import aclosing

import grpc  # type: ignore[import-untyped]
import pytest

from cml_workers.eventstore.kurrentdb import KurrentDbEventStore
from cml_workers.eventstore.port import (
    NO_STREAM,
    StoreConfigurationError,
    StoredEvent,
)
from support.kurrentdb_followers import events
from support.kurrentdb_standin import KurrentDbStandIn


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("esdb://host:2113", "Username and password are required"),
        ("esdb://me:secret@host:2113?TlsVerifiCert=false", "Unknown field"),
        ("esdb://me:secret@host:2113?tls=maybe", "not one of: true, false"),
        ("esdb://me:secret@host:2113?DefaultDeadline=soon", "invalid literal"),
        ("esdb://me:secret@host:2113?TlsCaFile=/nowhere/ca.pem", "No such file"),
        ("esdb://", "No targets"),
        ("esdb+discover://me:secret@a,b", "More than one target"),
        ("http://host", "Invalid URI scheme"),
    ],
)
def test_the_error_for_a_wrong_address_does_not_contain_the_password(uri, reason):
    with pytest.raises(StoreConfigurationError, match=reason) as raised:
        KurrentDbEventStore(uri)
    assert "secret" not in str(raised.value)


async def test_an_unknown_user_is_an_error_of_configuration(node, store):
    node.faults.unauthenticated = True
    for call in (
        store.append("a", events(), expected=NO_STREAM),
        store.read("a"),
        store.ping(),
        anext(store.follow(after=None)),
    ):
        with pytest.raises(StoreConfigurationError, match="user name and password"):
            await call


@pytest.fixture
async def secure_node(certificates):
    tls = certificates.key.read_bytes(), certificates.certificate.read_bytes()
    node = KurrentDbStandIn(users={"me": "secret"}, tls=tls)
    await node.start()
    yield node
    await node.stop()


@pytest.mark.parametrize(
    ("user", "authority", "reason"),
    [
        ("me:secret", "authority", None),
        ("me:wrong", "authority", "does not accept our user name and password"),
        ("me:secret", "stranger", "TlsCaFile must name"),
        ("me:secret", None, "TlsCaFile must name"),
    ],
)
async def test_a_secure_server(secure_node, certificates, user, authority, reason):
    file = f"?TlsCaFile={getattr(certificates, authority)}" if authority else ""
    store = KurrentDbEventStore(f"esdb://{user}@127.0.0.1:{secure_node.port}{file}")
    if reason is None:
        assert await store.append("a", events(), expected=NO_STREAM) == 0
        async with aclosing(store.follow(after=None)) as items:
            assert isinstance(await anext(items), StoredEvent)
    else:
        with pytest.raises(StoreConfigurationError, match=reason):
            await store.ping()
        with pytest.raises(StoreConfigurationError, match=reason):
            await anext(store.follow(after=None))
    await store.close()


async def test_a_certificate_is_verified_whatever_the_address_says(secure_node):
    store = KurrentDbEventStore(f"esdb://me:secret@127.0.0.1:{secure_node.port}?TlsVerifyCert=false")
    with pytest.raises(StoreConfigurationError, match="TlsCaFile must name"):
        await store.ping()
    await store.close()


async def test_a_password_is_taken_as_it_is_written(certificates):
    """The client library decodes nothing."""
    tls = certificates.key.read_bytes(), certificates.certificate.read_bytes()
    node = KurrentDbStandIn(users={"me": "a%2Fb"}, tls=tls)
    await node.start()
    store = KurrentDbEventStore(f"esdb://me:a%2Fb@127.0.0.1:{node.port}?TlsCaFile={certificates.authority}")
    await store.ping()
    await store.close()
    await node.stop()


async def test_a_secure_client_of_an_insecure_server_gets_an_error_that_says_so(node):
    store = KurrentDbEventStore(f"esdb://me:secret@127.0.0.1:{node.port}")
    with pytest.raises(StoreConfigurationError, match="tls=false"):
        await store.ping()
    await store.close()


async def test_a_position_that_the_server_does_not_know_is_an_error_of_configuration(
    node, store, monkeypatch
):
    async def abort(context):
        await context.abort(grpc.StatusCode.UNKNOWN, "Unexpected FilteredReadAllResult: InvalidPosition")

    monkeypatch.setattr(node, "admit", abort)
    with pytest.raises(StoreConfigurationError, match="position"):
        await anext(store.follow(after="C:17/P:17"))
