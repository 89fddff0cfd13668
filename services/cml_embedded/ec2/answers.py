"""Answers in EC2's XML."""

from uuid import uuid4
from xml.sax.saxutils import escape

Answer = tuple[int, bytes]
"""HTTP status and body."""


class Refusal(Exception):  # noqa: N818 - an answer of EC2
    """EC2 says no, with this code. ``status``: of HTTP."""

    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


def unknown(instance_id: str) -> Refusal:
    return Refusal("InvalidInstanceID.NotFound", f"The instance ID '{instance_id}' does not exist")


def error(code: str, message: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error>'
        f"<Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
        f"</Error></Errors><RequestID>{uuid4()}</RequestID></Response>"
    ).encode()


def response(action: str, content: str) -> bytes:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><{action}Response '
        f'xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>{uuid4()}</requestId>'
        f"{content}</{action}Response>"
    ).encode()
