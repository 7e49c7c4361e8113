"""Globs over the paths of a directory member.

A pattern is relative to the member's root and matches whole paths: `*`, `?` and `[a-z]` stay within a name, `**` as a whole
part stands for any number of folders, none too. A pattern that matches a folder means all that lies below it. Case counts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from dpac_api.errors import Invalid, NotFound
from dpac_engine.core.entries import ROOT

NEAR_MAX = 5
"""Names that an error suggests."""
_NEAR_AMONG_MAX = 20_000


def matching(paths: Sequence[bytes], patterns: Iterable[str]) -> list[bytes]:
    """The paths (sorted) that any pattern means, sorted. NotFound, with near names, for a pattern that means none."""
    found: set[bytes] = set()
    texts = [(path, text_of(path)) for path in paths if path != ROOT]
    for pattern in patterns:
        try:
            means = re.compile(_translated(pattern)).match
        except re.error:
            raise Invalid(
                f"{pattern!r} has a range that is none. Write it like '[a-z]'.", property_path="paths"
            ) from None
        hits = [path for path, text in texts if means(text)]
        if not hits:
            raise NotFound(
                f"Nothing there is called {pattern!r}.{_near(pattern, texts)} `dpac files` lists what there is."
            )
        found.update(hits)
    return sorted(found)


def with_folders(paths: Iterable[bytes]) -> set[bytes]:
    """The paths and every folder above them, the root too."""
    found = {ROOT}
    for path in paths:
        while path and path not in found:
            found.add(path)
            path = path.rpartition(b"/")[0]
    return found


def text_of(path: bytes) -> str:
    """A path as people see and write it; bytes that are no UTF-8 as `\\xNN`."""
    return path.decode(errors="backslashreplace")


def _translated(pattern: str) -> str:
    parts = [part for part in pattern.strip("/").split("/") if part != "."]
    if not parts or "" in parts or ".." in parts:
        raise Invalid(
            f"{pattern!r} is no path below the member's root. Write it like 'etc/*.conf' or '**/*.db'.",
            property_path="paths",
        )
    regex = ""
    for at, part in enumerate(parts):
        last = at == len(parts) - 1
        if part == "**":
            regex += ".*" if last else "(?:[^/]+/)*"
        else:
            regex += "".join(_token(token) for token in _TOKENS.findall(part)) + ("" if last else "/")
    return f"(?s:{regex}(?:/.*)?)\\Z"


_WILD = {"*": "[^/]*", "?": "[^/]"}
_TOKENS = re.compile(r"\[[!^]?\]?[^\]]*\]|.", re.DOTALL)


def _token(token: str) -> str:
    """The regular expression of a part of a name: fnmatch's rules, but nothing matches a slash."""
    if token in _WILD:
        return _WILD[token]
    if len(token) == 1:
        return re.escape(token)
    negated, inner = token[1] in "!^", token[1:-1].lstrip("!^") or token[1:-1]
    escaped = re.sub(r"([\\\[\]^&~|])", r"\\\1", inner)
    return f"(?!/)[{'^' if negated else ''}{escaped}]"


def _near(pattern: str, texts: Sequence[tuple[bytes, str]]) -> str:
    among = [text for _, text in texts[:_NEAR_AMONG_MAX]]
    name = pattern.rpartition("/")[2]
    by_name = {text.rpartition("/")[2]: text for text in among}
    near = difflib.get_close_matches(pattern, among, NEAR_MAX, 0.6)
    near += [by_name[found] for found in difflib.get_close_matches(name, by_name, NEAR_MAX, 0.6)]
    unique = list(dict.fromkeys(near))[:NEAR_MAX]
    return f" There is: {', '.join(unique)}." if unique else ""
