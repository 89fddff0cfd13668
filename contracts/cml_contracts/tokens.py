"""Tokens by which a service says on whose behalf it sends a command: signed, short-lived, for one command only.

``"v2." base64url(JSON) "." base64url(HMAC-SHA256 of what is before the last dot)``, without padding; the AMQP header is
``TOKEN_HEADER``. The JSON object has ``actor``; ``user``: the broker's user that sends the command; ``command_id`` and ``type``:
its AMQP properties ``message_id`` and ``type``; ``body``: SHA-256 of its body as it is sent, in hexadecimal digits, and so the worker
that it is for; ``expires``: seconds since 1970. For another sender, id, type or body, and so replayed, it is not accepted.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Iterable
from datetime import datetime, timedelta

from cml_contracts.texts import as_actor

TOKEN_HEADER = "x-cml-actor-token"  # noqa: S105 - the header's name
LONGEST = timedelta(minutes=10)
"""How far ahead a token may expire."""
MAX_TOKEN = 4096
"""Characters; a longer one is not read."""
NOT_KEPT = "not kept"
"""What stands for a token in a dead letter, so that nobody takes the command for one that its sender sent in its own name."""
_VERSION = "v2."


class InvalidTokenError(ValueError):
    """The token is not valid for this command now."""


class ExpiredTokenError(InvalidTokenError):
    """It was valid for this command; another one is needed."""


def sign(
    key: bytes, *, actor: str, user: str, command_id: str, command_type: str, body: bytes, expires: datetime
) -> str:
    """A token by which ``user`` sends this command on behalf of ``actor``.

    ``body``: the bytes that are sent; those of ``WorkerClient`` are ``cml_contracts.model.encoded(command)``.
    """
    claims = {
        "actor": actor,
        "expires": int(expires.timestamp()),
        **_bound(user, command_id, command_type, body),
    }
    payload = _VERSION + _encoded(json.dumps(claims, separators=(",", ":"), sort_keys=True).encode())
    return f"{payload}.{_encoded(_signature(key, payload))}"


def verify(
    token: str,
    keys: Iterable[bytes],
    *,
    user: str,
    command_id: str,
    command_type: str,
    body: bytes,
    now: datetime,
) -> str:
    """The actor that the token names. Any of the keys may have signed it, so that keys can be changed.

    Raises:
        ExpiredTokenError: it has expired, and is right otherwise.
        InvalidTokenError: forged, too long-lived, too long, for another command, or of what names no actor.
    """
    if len(token) > MAX_TOKEN:
        raise InvalidTokenError(f"the token has {len(token)} characters; at most {MAX_TOKEN} are allowed")
    if token == NOT_KEPT:
        raise InvalidTokenError(
            "its token is not kept with a dead letter; its sender has to send the command again"
        )
    if not token.startswith(_VERSION):
        raise InvalidTokenError("the token is malformed: it does not begin with v2.")
    payload, _, signature = token.rpartition(".")
    try:
        given = _decoded(signature)
        signed = any(hmac.compare_digest(_signature(key, payload), given) for key in keys)
        claims = json.loads(_decoded(payload.removeprefix(_VERSION))) if signed else {}
        actor, expires = claims.get("actor"), claims.get("expires")
    except (ValueError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise InvalidTokenError("the token is malformed") from error
    if not (signed and isinstance(actor, str) and isinstance(expires, int)):
        raise InvalidTokenError("the token's signature is not valid")
    for name, value in _bound(user, command_id, command_type, body).items():
        if claims.get(name) != value:
            raise InvalidTokenError(f"the token was made for another command: its {name} differs")
    if expires > (now + LONGEST).timestamp():
        raise InvalidTokenError(f"the token is valid for longer than {LONGEST.total_seconds():g} s")
    try:
        as_actor(actor)
    except ValueError as error:
        raise InvalidTokenError(f"the token names no actor: {error}") from error
    if expires <= now.timestamp():
        raise ExpiredTokenError(
            "the token has expired; send the command again under its id, with another token"
        )
    return actor


def _bound(user: str, command_id: str, command_type: str, body: bytes) -> dict[str, str]:
    """What a token is for."""
    digest = hashlib.sha256(body).hexdigest()
    return {"user": user, "command_id": command_id, "type": command_type, "body": digest}


def _signature(key: bytes, payload: str) -> bytes:
    return hmac.new(key, payload.encode(), hashlib.sha256).digest()


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
