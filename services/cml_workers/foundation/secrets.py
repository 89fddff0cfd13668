"""Which headers of a message may hold a secret: they are not kept for longer than the message is handled."""

_MARKS = ("authorization", "cookie", "credential", "password", "secret", "token", "api-key", "apikey")
"""What the names of such headers contain, those of other people's systems included."""


def may_be_secret(header: str) -> bool:
    """Whether its name says so."""
    name = header.lower()
    return any(mark in name for mark in _MARKS)
