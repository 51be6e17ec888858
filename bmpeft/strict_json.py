"""Reading JSON that others wrote: objects in UTF-8, each key once, no NaN; nothing else."""

from __future__ import annotations

import json
from typing import Any


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object in these bytes.

    Python's reader keeps the last of two equal keys, others keep the first: a file with both could mean one thing
    to a check and another to what is checked. It also takes NaN, Infinity, UTF-16 and UTF-32, which are no JSON.

    Raises:
        ValueError: one line that says what is wrong; it repeats nothing of the content.
    """
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_each_key_once, parse_constant=_no_constant)
    except _Refused:
        raise
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError:
        raise ValueError("not a JSON object") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


class _Refused(ValueError):
    """JSON for Python's reader, but not for this one."""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _Refused("not JSON: a key occurs twice in one object")
    return result


def _no_constant(name: str) -> Any:
    raise _Refused(f"not JSON: {name} is no number of it")
