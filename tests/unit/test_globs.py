"""Globs: what they mean of a directory's paths, and what is said when they mean nothing."""

from __future__ import annotations

import pytest

from dpac_api.errors import Invalid, NotFound
from dpac_engine.core.globs import matching, with_folders

PATHS = [
    b".",
    b"a.b[1].txt",
    b"etc",
    b"etc/a.conf",
    b"etc/sub",
    b"etc/sub/b.conf",
    b"var/lib/y.db",
    b"x.db",
    b"\xff.bin",
]
ALL = set(PATHS) - {b"."}


@pytest.mark.parametrize(
    ("glob", "meant"),
    [
        ("etc/*.conf", {b"etc/a.conf"}),
        ("/etc/a.conf", {b"etc/a.conf"}),
        ("etc", {b"etc", b"etc/a.conf", b"etc/sub", b"etc/sub/b.conf"}),
        ("etc/", {b"etc", b"etc/a.conf", b"etc/sub", b"etc/sub/b.conf"}),
        ("etc/**", {b"etc/a.conf", b"etc/sub", b"etc/sub/b.conf"}),
        ("**/*.conf", {b"etc/a.conf", b"etc/sub/b.conf"}),
        ("**/*.db", {b"var/lib/y.db", b"x.db"}),
        ("**", ALL),
        ("*", ALL),
        ("?.db", {b"x.db"}),
        ("[!a-w].db", {b"x.db"}),
        ("*[[]1].t*t", {b"a.b[1].txt"}),
        ("e?c/a[.]conf", {b"etc/a.conf"}),
        ("\\xff*", {b"\xff.bin"}),
    ],
)
def test_a_glob_means_these_paths(glob: str, meant: set[bytes]) -> None:
    """Names stay within their folder, folders mean what lies below them."""
    assert set(matching(PATHS, [glob])) == meant


@pytest.mark.parametrize("glob", ["..", "a//b", "etc/../x", "", "/", "[z-a]"])
def test_what_is_no_glob_is_refused(glob: str) -> None:
    """Nothing climbs out of the member."""
    with pytest.raises(Invalid):
        matching(PATHS, [glob])


def test_a_glob_that_means_nothing_suggests_near_names() -> None:
    """Even if another glob beside it does."""
    with pytest.raises(NotFound, match=r"'etc/a.cnf'.*etc/a.conf"):
        matching(PATHS, ["x.db", "etc/a.cnf"])
    with pytest.raises(NotFound, match=r"etc/sub/b\.conf"):
        matching(PATHS, ["b.conf"])


def test_folders_above_a_path_come_with_it() -> None:
    """Up to the root."""
    assert with_folders([b"etc/sub/b.conf"]) == {b".", b"etc", b"etc/sub", b"etc/sub/b.conf"}
