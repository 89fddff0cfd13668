"""Values of filters as EC2 matches them: ``*``, ``?`` and backslashes before them, and no sets of characters.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html
"""

import re
from typing import Any

from moto.ec2 import utils

_PARTS = re.compile(r"\\(.)|([*?])|(.)", re.DOTALL)
_WILD = {"*": ".*", "?": "."}
_matching = utils.is_filter_matching


def matches(pattern: str, value: str) -> bool:
    """Whether the whole value is like the pattern."""
    expression = "".join(
        _WILD[wild] if wild else re.escape(escaped or plain)
        for escaped, wild, plain in _PARTS.findall(pattern)
    )
    return re.fullmatch(expression, value, re.DOTALL) is not None


def _is_matching(obj: Any, _filter: str, filter_value: Any) -> bool:
    value = obj.get_filter_value(_filter)
    if not isinstance(value, str) or filter_value is None:
        return _matching(obj, _filter, filter_value)
    patterns = [filter_value] if isinstance(filter_value, str) else filter_value
    return any(matches(each, value) for each in patterns)


def correct() -> None:
    """Have moto match so, which takes the patterns of file names instead."""
    utils.is_filter_matching = _is_matching
