"""Tokens by which a service says on whose behalf it sends a command: signed, short-lived, for one command only.

``base64url(JSON {"actor", "command_id", "expires"}) "." base64url(HMAC-SHA256 of the former)``; the AMQP header
is ``TOKEN_HEADER``. A token for another command id, and so a replayed one, is not accepted.
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


class InvalidTokenError(ValueError):
    """The token is not valid for this command now."""


def sign(key: bytes, *, actor: str, command_id: str, expires: datetime) -> str:
    """A token by which the command is sent on behalf of ``actor``."""
    claims = {"actor": actor, "command_id": command_id, "expires": int(expires.timestamp())}
    payload = _encoded(json.dumps(claims, separators=(",", ":"), sort_keys=True).encode())
    return f"{payload}.{_encoded(_signature(key, payload))}"


def verify(token: str, keys: Iterable[bytes], *, command_id: str, now: datetime) -> str:
    """The actor that the token names. Any of the keys may have signed it, so that keys can be changed.

    Raises:
        InvalidTokenError: forged, expired, too long-lived, too long, for another command, or of what names no actor.
    """
    if len(token) > MAX_TOKEN:
        raise InvalidTokenError(f"the token has {len(token)} characters; at most {MAX_TOKEN} are allowed")
    payload, _, signature = token.partition(".")
    try:
        given = _decoded(signature)
        signed = any(hmac.compare_digest(_signature(key, payload), given) for key in keys)
        claims = json.loads(_decoded(payload)) if signed else {}
        actor, bound_to, expires = (claims.get(name) for name in ("actor", "command_id", "expires"))
    except (ValueError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise InvalidTokenError("the token is malformed") from error
    if not (signed and isinstance(actor, str) and isinstance(expires, int)):
        raise InvalidTokenError("the token's signature is not valid")
    if bound_to != command_id:
        raise InvalidTokenError("the token was made for another command")
    if expires <= now.timestamp():
        raise InvalidTokenError("the token has expired")
    if expires > (now + LONGEST).timestamp():
        raise InvalidTokenError(f"the token is valid for longer than {LONGEST.total_seconds():g} s")
    try:
        return as_actor(actor)
    except ValueError as error:
        raise InvalidTokenError(f"the token names no actor: {error}") from error


def _signature(key: bytes, payload: str) -> bytes:
    return hmac.new(key, payload.encode(), hashlib.sha256).digest()


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
