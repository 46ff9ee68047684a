"""Generates malformed inputs for readers of files that come from elsewhere.

Derandomised and bounded: the same inputs every time, a few seconds a reader.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

BOUNDED = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

_DEEP = 5_000
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 2**31, 2**63, 2**64, 10**30])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "..", "/", "a\x00b", "\x1b[2J", "a\nb", "x" * 300, "\u202e", "1e5"])
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
ODD_TEXTS = [
    b"",
    b"\xff\xfe",
    b"\x00",
    b"[" * _DEEP,
    b'{"a":' * _DEEP,
    b"9" * 5000,
    b"x" * 200_000,  # more than a cell of a table may have
    b"\xef\xbb\xbf{}",
    b'"\\ud800"',
    b"NaN",
    b"- " * 3000,
    b"a: &a [*a]",
    b"!!timestamp x",
    b"2020-99-99",
    b"? {a: 1}\n: b",
]


def damaged(valid: bytes) -> st.SearchStrategy[bytes]:
    """`valid` with a few pieces overwritten, cut out or put in; or something else altogether."""
    piece = st.binary(max_size=6) | st.sampled_from([b"\x00", b"-", b'"', b"\n", b"9" * 5000])
    edit = st.tuples(st.integers(0, len(valid)), st.integers(0, 12), piece)
    edited = st.lists(edit, min_size=1, max_size=4).map(lambda edits: _apply(valid, edits))
    return edited | st.binary(max_size=60) | st.sampled_from(ODD_TEXTS)


def damaged_json(valid: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """As `damaged`; or a JSON object of that kind with a value replaced, gone or too much."""
    replaced = st.tuples(st.sampled_from(_paths(valid)), VALUES).map(
        lambda change: json.dumps(_replace(valid, *change)).encode()
    )
    return (
        replaced
        | damaged(json.dumps(valid).encode())
        | VALUES.map(lambda v: json.dumps(v).encode())
    )


def value_or_own_error(read: Callable[[], object], *own: type[Exception]) -> object:
    """The result of `read`, or None when it raises one of `own`, whose message must be one line."""
    try:
        return read()
    except own as error:
        said = str(error)
    assert said
    assert "\n" not in said
    return None


def _apply(valid: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    content = valid
    for start, length, piece in edits:
        content = content[:start] + piece + content[start + length :]
    return content


def _paths(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in items:
        found.append((*prefix, key))
        if isinstance(value, dict | list):
            found += _paths(value, (*prefix, key))
    return found


def _replace(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = value if len(path) == 1 else _replace(copy[path[0]], path[1:], value)
    return copy
