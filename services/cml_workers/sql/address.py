"""Where a PostgreSQL is and how to connect to it, from a URL that means what it means to libpq.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS. What this driver cannot do is said. No error
shows any of the URL but names that are none of its user's: a password whose ``@``, ``/``, ``?`` or ``&`` is not escaped may be
anywhere in it.
"""

import asyncio
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import asyncpg  # type: ignore[import-untyped]
from asyncpg.exceptions import (  # type: ignore[import-untyped]
    CannotConnectNowError,
    TargetServerAttributeNotMatched,
)
from sqlalchemy.engine import URL

DRIVER = "postgresql+asyncpg"
SCHEMES = ("postgresql", "postgres", DRIVER)
HOST_SECONDS = 2.0
"""How long one of several hosts may take to let us in, unless ``connect_timeout`` says so."""

_URL = re.compile(
    r"(?P<scheme>[a-z+]+)://(?:(?P<user>[^@/:]*)(?::(?P<password>[^@/]*))?@)?(?P<hosts>[^@/?]*)"
    r"(?:/(?P<database>[^@?]*))?(?:\?(?P<options>[^@]*))?"
)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_HOST = re.compile(r"(?:\[(?P<literal>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s:\[\]]*))(?::(?P<port>[0-9]*))?")

_PARTS = ("user", "password", "host", "port", "dbname")
_FILES = ("sslrootcert", "sslcert", "sslkey")
_SESSION = ("application_name", "options")
"""What the server takes when a session begins."""
_SECRET = ("password", "sslpassword")
_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_VALUES: Mapping[str, Sequence[str]] = {
    "sslmode": _MODES,
    "channel_binding": ("disable", "prefer"),
    "gssencmode": ("disable", "prefer"),
    "target_session_attrs": ("any", "read-write", "primary"),
}
"""Of options that have few: those that this driver, or a read model, can do with."""
_KNOWN = (*_PARTS, *_FILES, "sslpassword", "connect_timeout", *_SESSION, *_VALUES)


@dataclass(frozen=True, slots=True)
class Address:
    """``url``: without options; ``arguments``: of the driver, beside the URL's.

    Raises ValueError, with a text that follows the name of the setting.
    """

    url: URL
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, text: str) -> "Address":
        """The address that a URL means."""
        parsed = _URL.fullmatch(text)
        if parsed is None or _BAD_ESCAPE.search(text):
            raise ValueError(
                "must be like postgresql://user:password@host:5432/name?option=value, in which a special character of user or "
                "password is escaped: @ as %40, / as %2F, ? as %3F, & as %26, % as %25"
            )
        options = dict(_options(parsed["options"] or ""))
        given = {
            "user": unquote(parsed["user"] or ""),
            "password": unquote(parsed["password"] or ""),
            "dbname": unquote(parsed["database"] or ""),
        }
        part = {**given, **{name: options[name] for name in _PARTS if name in options}}
        hosts, ports = _hosts(parsed["hosts"], options)
        arguments = {
            "host": hosts or None,
            "port": ports or None,
            "ssl": _tls(options),
            "server_settings": {name: options[name] for name in _SESSION if name in options},
            "target_session_attrs": options.get("target_session_attrs"),
            "timeout": _seconds(options.get("connect_timeout")),
            "async_creator_fn": _connect,
        }
        url = URL.create(
            DRIVER,
            part["user"] or None,
            part["password"] or None,
            ",".join(hosts) or None,
            ports[0] if len(ports) == 1 else None,
            part["dbname"] or None,
        )
        return cls(url, arguments)


async def _connect(
    *,
    host: Sequence[str] | None,
    port: Sequence[int] | None,
    timeout: float | None,  # noqa: ASYNC109 - the driver's
    **arguments: Any,
) -> Any:
    """To the first host that lets us in as we ask. The driver tries them, too, but a first one that hangs takes all its time."""
    *others, last = zip(host or (None,), port or (None,), strict=True)
    for name, its_port in others:
        with suppress(OSError, CannotConnectNowError, TargetServerAttributeNotMatched):
            async with asyncio.timeout(timeout or HOST_SECONDS):
                return await asyncpg.connect(host=name, port=its_port, timeout=None, **arguments)
    return await asyncpg.connect(host=last[0], port=last[1], timeout=timeout, **arguments)


def _options(text: str) -> Iterator[tuple[str, str]]:
    pairs = [each.partition("=") for each in text.split("&") if each]
    if not all(is_pair for _, is_pair, _ in pairs):
        raise ValueError("has something behind its ? that is no option=value")
    unknown = {unquote(name) for name, _, _ in pairs}.difference(_KNOWN)
    if unknown:
        named = "" if any(name in _SECRET for name, _, _ in pairs) else f": {', '.join(sorted(unknown))}"
        raise ValueError(f"has options that are not known{named}; known are {', '.join(sorted(_KNOWN))}")
    for name, value in ((unquote(name), unquote(value)) for name, _, value in pairs):
        if name in _VALUES and value not in _VALUES[name]:
            raise ValueError(f"has a {name} that is not one of {', '.join(_VALUES[name])}")
        yield name, value


def _hosts(authority: str, options: Mapping[str, str]) -> tuple[list[str], list[int]]:
    """Names, or folders of sockets, and ports. Both empty: where the driver looks by itself."""
    found = [_HOST.fullmatch(each) for each in authority.split(",")]
    names, ports = [], []
    for each in found:
        if each is None:
            raise ValueError("has a host that is not like name, name:5432 or [::1]:5432")
        names.append(unquote(each["literal"] or each["name"]))
        ports.append(each["port"] or "")
    if "host" in options:
        names = options["host"].split(",")
    if "port" in options:
        ports = options["port"].split(",")
    if len(ports) == 1:
        ports *= len(names)
    if len(ports) != len(names):
        raise ValueError("must have one port, or one for each host")
    if not all(not port or (port.isdecimal() and 0 < int(port) < 65536) for port in ports):
        raise ValueError("has a port that is not a number from 1 to 65535")
    if names == [""] and ports == [""]:
        return [], []
    if names != [""] and not all(names):
        raise ValueError("has an empty host among others")
    return [name or "localhost" for name in names], [int(port or 5432) for port in ports]


def _seconds(text: str | None) -> float | None:
    """As libpq: 0 and less is no limit."""
    try:
        seconds = int(text or 0)
    except ValueError:
        raise ValueError("has a connect_timeout that is not a number of seconds") from None
    return seconds if seconds > 0 else None


def _tls(options: Mapping[str, str]) -> str | ssl.SSLContext:
    """How to secure the connection. The driver takes libpq's modes by name, but the files only as a context.

    Stricter than libpq: a file without a mode is not ignored where the server has no TLS; and without ``sslrootcert`` the
    authorities of the system count.
    """
    files = [name for name in _FILES if name in options]
    mode = options.get("sslmode") or (
        "verify-full" if "sslrootcert" in files else "require" if files else "prefer"
    )
    if mode in ("allow", "prefer") and files:
        raise ValueError(
            f"has sslmode={mode}, which may do without TLS and so without {', '.join(files)}: say require or verify-full"
        )
    if mode in ("disable", "allow", "prefer") or (mode == "require" and not files):
        return mode
    authority = options.get("sslrootcert")
    if authority == "system" and mode != "verify-full":
        raise ValueError("has sslrootcert=system, which needs sslmode=verify-full")
    try:
        context = ssl.create_default_context(cafile=None if authority == "system" else authority)
        context.check_hostname = mode == "verify-full"
        if mode == "require" and not authority:
            context.verify_mode = ssl.CERT_NONE
        if "sslcert" in options:
            # With a password in any case, as otherwise an encrypted key asks for one on the terminal.
            context.load_cert_chain(options["sslcert"], options.get("sslkey"), options.get("sslpassword", ""))
    except OSError as error:
        raise ValueError(f"has an sslrootcert, sslcert or sslkey that cannot be read: {error}") from error
    return context
