"""Single files of a directory: listed, compared and brought back by the command line of a real site."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.site import LiveSite, connected, flush, write

pytestmark = pytest.mark.e2e


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LiveSite]:
    """A site, with its logs in the report of a failure."""
    with LiveSite(tmp_path / "live") as site:
        site.start()
        yield site
        site.print_logs()


def mark(site: LiveSite, tag: str) -> str:
    """A tagged checkpoint that holds the directory as it is now, once it is at the target."""
    return site.mark_directory("docs", "data", tag).id


def test_a_file_comes_back_as_it_was_and_the_difference_says_which(site: LiveSite, tmp_path: Path) -> None:
    """A volume beside it differs by the range that was written, and by no other."""
    data = tmp_path / "data"
    (data / "etc").mkdir(parents=True)
    (data / "etc" / "app.conf").write_text("right")
    (data / "etc" / "other.conf").write_text("stays")
    (data / "gone.txt").write_text("gone soon")
    site.protect(
        "docs",
        {
            "data": {"kind": "directory", "path": str(data)},
            "disk": {"kind": "volume", "path": str(tmp_path / "disk.raw"), "size": "1MiB"},
        },
    )
    before = mark(site, "before")
    (data / "etc" / "app.conf").write_text("wrong and longer")
    (data / "gone.txt").unlink()
    (data / "new.txt").write_text("new")
    with connected(site.uri("docs/disk")) as disk:
        write(disk, 65536, b"x" * 4096)
        flush(disk)
    after = mark(site, "after")
    page = site.dpac_json("diff", "docs", "--from", "tag:before", "--to", "tag:after")
    assert (page["before"], page["after"]) == (before, after)
    told = {
        (item["what"], item["path"], item["size_before"], item["size_after"])
        for item in page["items"]
        if item["member"] == "data" and item["path"] not in (".", "etc")  # folders change with what lies in them
    }
    assert told == {
        ("changed", "etc/app.conf", 5, 16),
        ("removed", "gone.txt", 9, None),
        ("added", "new.txt", None, 3),
    }
    assert [(item["offset"], item["length"]) for item in page["items"] if item["member"] == "disk"] == [(65536, 4096)]
    listed = site.dpac_json("files", "docs", "**/*.conf", "--member", "data", "--at", "tag:before")
    assert [item["path"] for item in listed["items"]] == ["etc/app.conf", "etc/other.conf"]
    to = tmp_path / "back"
    globs = ("--path", "etc/app*", "--path", "gone.txt")
    site.dpac("restore", "docs", "--member", "data", "--at", "tag:before", *globs, "--to", str(to))
    assert {str(path.relative_to(to)): path.read_text() for path in to.rglob("*") if path.is_file()} == {
        "etc/app.conf": "right",
        "gone.txt": "gone soon",
    }
    assert (to / "etc").stat().st_mode == (data / "etc").stat().st_mode
    missing = site.dpac(
        "restore", "docs", "--member", "data", "--path", "etc/ap.conf", "--to", str(tmp_path / "x"), status=None
    )
    assert missing.returncode != 0
    assert "etc/app.conf" in missing.stderr
    assert "no paths" in site.dpac("files", "docs", "--member", "disk", status=2).stderr
